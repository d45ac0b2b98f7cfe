"""A connection through a Service goes on at the new address: its conntrack entry is replaced."""

import errno
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from netfilter_lab import (
    VIRTUAL,
    Lab,
    assert_talks,
    attempts,
    readable,
    receive,
    service_lab,
    tuple_of,
    wait_until,
)

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.netfilter.conntrack import Conntrack
from mycoproxy.netfilter.entry import ConntrackEntry, Direction
from mycoproxy.netfilter.hold import Hold
from mycoproxy.netfilter.nfnetlink import NetfilterError
from mycoproxy.netfilter.rebind import Rebound, admit, rebind, undo
from mycoproxy.netfilter.renamed import renamed_entry, restored, untracked_entry

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

SOME_ENTRY = restored(
    untracked_entry(FourTuple(Endpoint("192.0.2.1", 1), Endpoint("192.0.2.2", 2)))
)
VERSIONS = pytest.mark.parametrize("version", [4, 6])

# A forward chain that lets connections begin with a SYN only, and drops what does not fit.
STATEFUL = """\
table inet firewall {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state invalid drop
        ct state established,related accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
        tcp flags & (fin | syn | rst | ack) == syn accept
    }
}
"""


@pytest.fixture(params=[False, True], ids=["dnat", "dnat and masquerade"])
def lab(network: Any, request: pytest.FixtureRequest) -> Iterator[Lab]:
    with service_lab(network, masquerade=request.param) as made:
        yield made


@pytest.fixture
def plain_lab(network: Any) -> Iterator[Lab]:
    with service_lab(network) as made:
        yield made


def answered_by(entry: ConntrackEntry, new: Endpoint) -> ConntrackEntry:
    """The entry once the workload is at ``new``."""
    name = entry.workload
    return renamed_entry(entry, name, name._replace(local=new))


class Agent:
    """What an agent has on the node that NATs."""

    def __init__(self, lab: Lab, name: str = "router") -> None:
        self.lab = lab
        self.name = name
        self.node = lab.node(name)
        self.conntrack: Conntrack = lab.on(name, Conntrack)
        self.hold = Hold(lab.nft[name], "rebind")
        self.node.call(self.hold.install)

    def entry(self, name: FourTuple) -> ConntrackEntry:
        found: ConntrackEntry = self.node.call(self.conntrack.find, [name])[name]
        return found

    def rebind(self, *entries: ConntrackEntry, to: Endpoint) -> tuple[Rebound, ...]:
        rebound = tuple(Rebound(entry, answered_by(entry, to)) for entry in entries)
        self.node.call(rebind, self.conntrack, self.hold, rebound)
        return rebound

    def undo(self, rebound: tuple[Rebound, ...]) -> None:
        self.node.call(undo, self.conntrack, self.hold, rebound)

    def release(self) -> None:
        self.node.call(self.hold.release)
        assert "mycoproxy" not in self.lab.ruleset(self.name)


@VERSIONS
def test_a_rebound_connection_goes_on_at_the_new_address(lab: Lab, version: int) -> None:
    client, server = lab.connect(lab.listen("a", version), VIRTUAL[version])
    assert_talks(client, server)
    router = Agent(lab)
    name = tuple_of(server)
    (rebound,) = router.rebind(router.entry(name), to=lab.endpoint("b", version))
    moved = lab.move(server, "a", "b")
    assert_talks(client, moved, 2_000_000)
    assert client.getpeername()[0] == VIRTUAL[version]
    assert moved.getpeername()[:2] == tuple(name.remote)
    after = router.entry(tuple_of(moved))
    assert after.orig == rebound.new.orig
    assert after.status & rebound.old.status == rebound.old.status  # type: ignore[union-attr]
    router.release()


@VERSIONS
def test_a_stateful_firewall_lets_a_rebound_connection_pass(lab: Lab, version: int) -> None:
    lab.run("router", STATEFUL)
    client, server = lab.connect(lab.listen("a", version), VIRTUAL[version])
    assert_talks(client, server)
    router = Agent(lab)
    router.rebind(router.entry(tuple_of(server)), to=lab.endpoint("b", version))
    moved = lab.move(server, "a", "b")
    assert_talks(client, moved, 2_000_000)
    moved.close()
    client.settimeout(10)
    assert client.recv(1) == b""


@VERSIONS
def test_undoing_leads_back_to_the_old_address(lab: Lab, version: int) -> None:
    client, server = lab.connect(lab.listen("a", version), VIRTUAL[version])
    router = Agent(lab)
    before = router.entry(tuple_of(server))
    rebound = router.rebind(before, to=lab.endpoint("b", version))
    # Nobody is at home there: its reset must not reach the client before the path is back.
    router.undo(rebound)
    assert_talks(client, server)
    after = router.entry(tuple_of(server))
    assert (after.orig, after.reply, after.mark) == (before.orig, before.reply, before.mark)
    router.release()


@VERSIONS
def test_there_and_back_again(plain_lab: Lab, version: int) -> None:
    lab = plain_lab
    client, server = lab.connect(lab.listen("a", version), VIRTUAL[version])
    router = Agent(lab)
    for source, target in (("a", "b"), ("b", "a"), ("a", "b")):
        entry = router.entry(tuple_of(server))
        router.rebind(entry, to=lab.endpoint(target, version))
        server = lab.move(server, source, target)
        assert_talks(client, server)


@VERSIONS
def test_a_stream_in_flight_arrives_whole(plain_lab: Lab, version: int) -> None:
    lab = plain_lab
    client, server = lab.connect(lab.listen("a", version), VIRTUAL[version])
    router = Agent(lab)
    name = tuple_of(server)
    entry = router.entry(name)
    sent = b"".join(n.to_bytes(8, "big") for n in range(1_000_000))
    thread = threading.Thread(target=client.sendall, args=(sent,))
    thread.start()
    got = receive(server, 1_000_000)
    at_source = Hold(lab.nft["a"], "source")
    lab.a.call(at_source.install)
    lab.a.call(at_source.hold, [name])
    # Held on the router for longer than the change, so that no segment meets a missing socket.
    virtual = FourTuple(entry.orig.destination, entry.orig.source)
    lab.router.call(router.hold.hold, [virtual])
    router.rebind(entry, to=lab.endpoint("b", version))
    moved = lab.move(server, "a", "b")
    lab.router.call(router.hold.let_go, [virtual])
    got += receive(moved, len(sent) - len(got))
    thread.join(10)
    assert not thread.is_alive()
    assert got == sent
    assert_talks(client, moved)


@VERSIONS
def test_a_client_on_the_node_that_nats_is_rebound_there(network: Any, version: int) -> None:
    nat = """\
    table inet service {{
        chain output {{
            type nat hook output priority -100; policy accept;
            ip daddr 10.96.0.10 dnat ip to {a4}
            ip6 daddr fd96::10 dnat ip6 to {a6}
        }}
    }}
    """
    with service_lab(network, nat=False) as lab:
        lab.run("client", nat.format(a4=lab.address["a", 4], a6=lab.address["a", 6]))
        client, server = lab.connect(lab.listen("a", version), VIRTUAL[version])
        here = Agent(lab, "client")
        here.rebind(here.entry(tuple_of(server)), to=lab.endpoint("b", version))
        moved = lab.move(server, "a", "b")
        assert_talks(client, moved, 2_000_000)
        assert client.getpeername()[0] == VIRTUAL[version]
        here.release()


def test_connections_that_were_held_before_stay_held(plain_lab: Lab) -> None:
    lab = plain_lab
    client, server = lab.connect(lab.listen("a", 4), VIRTUAL[4])
    router = Agent(lab)
    name = tuple_of(server)
    entry = router.entry(name)
    virtual = FourTuple(entry.orig.destination, entry.orig.source)
    lab.router.call(router.hold.hold, [virtual])
    router.rebind(entry, to=lab.endpoint("a", 4))
    before = attempts(client)
    client.sendall(b"x")
    wait_until(lambda: attempts(client) > before, "data is sent again")
    assert not readable(server)
    lab.router.call(router.hold.let_go, [virtual])
    assert receive(server, 1) == b"x"


def test_an_entry_that_the_kernel_remade_meanwhile_is_replaced(plain_lab: Lab) -> None:
    lab = plain_lab
    client, server = lab.connect(lab.listen("a", 4), VIRTUAL[4])
    router = Agent(lab)
    entry = router.entry(tuple_of(server))
    assert lab.router.call(router.conntrack.delete, [entry]) == [0]
    client.sendall(b"x")  # picked up in the middle; the Service's rule chooses again
    assert receive(server, 1) == b"x"
    router.rebind(entry, to=lab.endpoint("b", 4))
    moved = lab.move(server, "a", "b")
    assert_talks(client, moved)


def test_an_entry_that_is_gone_is_made_anew(plain_lab: Lab) -> None:
    lab = plain_lab
    client, server = lab.connect(lab.listen("a", 4), VIRTUAL[4])
    router = Agent(lab)
    entry = router.entry(tuple_of(server))
    lab.router.call(router.conntrack.delete, [entry])
    router.rebind(entry, to=lab.endpoint("b", 4))
    moved = lab.move(server, "a", "b")
    assert_talks(client, moved)


def test_all_are_rebound_or_none(plain_lab: Lab) -> None:
    lab = plain_lab
    listener = lab.listen("a", 4)
    pairs = [lab.connect(listener, VIRTUAL[4]) for _ in range(3)]
    router = Agent(lab)
    entries = [router.entry(tuple_of(server)) for _, server in pairs]
    target = lab.endpoint("b", 4)
    # Another connection already has the name that the second one would get behind the NAT.
    in_the_way = replace(
        entries[1],
        orig=Direction(entries[1].orig.source, Endpoint("10.96.0.99", 1)),
        reply=Direction(target, entries[1].reply.destination),
    )
    assert lab.router.call(router.conntrack.insert, [in_the_way]) == [0]
    with pytest.raises(NetfilterError) as caught:
        router.rebind(*entries, to=target)
    assert caught.value.errno == errno.EEXIST
    assert str(entries[1].orig) in str(caught.value)
    for client, server in pairs:
        assert_talks(client, server)
    router.release()


@VERSIONS
def test_a_packet_that_was_faster_does_not_keep_an_entry_out(plain_lab: Lab, version: int) -> None:
    """What a workload opened through NAT is carried to a node that has seen an answer already."""
    lab = plain_lab
    router = Agent(lab)
    address = lab.address["client", version]
    workload, backend = Endpoint(address, 41000), lab.endpoint("b", version)
    virtual = Endpoint(VIRTUAL[version], 80)
    carried = replace(
        SOME_ENTRY, orig=Direction(workload, virtual), reply=Direction(backend, workload)
    )
    faster = replace(
        SOME_ENTRY, orig=Direction(backend, workload), reply=Direction(workload, backend)
    )
    assert lab.router.call(router.conntrack.insert, [faster]) == [0]
    lab.router.call(admit, router.conntrack, [carried])
    found = lab.router.call(router.conntrack.get, carried.orig)
    assert found is not None
    assert found.reply == carried.reply
    assert lab.router.call(router.conntrack.get, faster.orig) is None
