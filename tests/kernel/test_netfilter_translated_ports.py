"""A proposal: translating address *and* port, for outside clients with the same source port.

Two of them that are anchored at one node would both be that node's address and their common port to
the workload: conntrack refuses the second (its reply tuple is taken, EEXIST). So the second gets
another port at the anchor, and in the workload's namespace both parts of the name are rewritten.

One lookup in nftables gives one value, so there are two, and the key of the second has one part
rewritten already. That intermediate name may be another connection's, and it does not matter: the
second map is asked only in the rule whose first lookup has hit. Outwards the port is rewritten
first and the address after that, inwards the other way round. Then the name in between is (the
client's address, the new port) both times, and all that the chooser of the port has to see to is
that this is not given out twice.
"""

import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from netfilter_lab import PORT, Lab, assert_talks, service_lab, tuple_of

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.netfilter.anchor import Anchors
from mycoproxy.netfilter.compiled import ANY_TABLE
from mycoproxy.netfilter.conntrack import Conntrack
from mycoproxy.netfilter.elements import SetChange, packed, pair_key, port_key
from mycoproxy.netfilter.hold import Hold
from mycoproxy.netfilter.nfnetlink import NetfilterError
from mycoproxy.netfilter.rebind import Rebound, rebind
from mycoproxy.netfilter.renamed import renamed_entry, untracked_entry
from mycoproxy.netfilter.translate import Move, Translate

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

PAIR = "ip saddr . tcp sport . ip daddr . tcp dport"
TABLE = "mycoproxy-moved-ports"
RULESET = f"""\
table inet {ANY_TABLE} {{
    map portout {{ type ipv4_addr . inet_service . ipv4_addr . inet_service : inet_service; }}
    map addressout {{ type ipv4_addr . inet_service . ipv4_addr . inet_service : ipv4_addr; }}
    map addressin {{ type ipv4_addr . inet_service . ipv4_addr . inet_service : ipv4_addr; }}
    map portin {{ type ipv4_addr . inet_service . ipv4_addr . inet_service : inet_service; }}
    chain output {{
        type route hook output priority -149; policy accept;
        tcp dport set {PAIR} map @portout ip daddr set {PAIR} map @addressout
    }}
    chain prerouting {{
        type filter hook prerouting priority -301; policy accept;
        ip saddr set {PAIR} map @addressin tcp sport set {PAIR} map @portin
    }}
}}
"""


@pytest.fixture
def lab(network: Any) -> Iterator[Lab]:
    with service_lab(network) as made:
        yield made


class Anchored:
    """Connections of outside clients that stay on the router when the workload goes from a to b."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.conntrack = lab.on("router", Conntrack)
        self.hold = Hold(lab.nft["router"], "rebind")
        lab.router.call(self.hold.install)
        anchors = Anchors(lab.nft["router"])
        lab.router.call(anchors.install)
        self.address: str = lab.router.call(anchors.address_toward, lab.address["b", 4])
        lab.b.call(lab.nft["b"].install, TABLE, RULESET)

    def anchor(self, server: socket.socket, port: int) -> socket.socket:
        """Move it; the router speaks for its client from ``port``."""
        old = tuple_of(server)
        new = FourTuple(self.lab.endpoint("b", 4), Endpoint(self.address, port))
        entry = self.lab.router.call(self.conntrack.find, [old]).get(old, untracked_entry(old))
        change = Rebound(entry, renamed_entry(entry, old, new))
        self.lab.router.call(rebind, self.conntrack, self.hold, [change])
        if port == old.remote.port:
            move = Move(FourTuple(local=old.remote, remote=new.local), new.remote)
            self.lab.b.call(Translate(self.lab.nft["b"]).add, [move])
        else:
            self._translate(new.local, old.remote, new.remote)
        return self.lab.move(server, "a", "b")

    def _translate(self, workload: Endpoint, client: Endpoint, anchor: Endpoint) -> None:
        between = Endpoint(client.address, anchor.port)
        changes = [
            SetChange(name, [pair_key(*ends)], [data])
            for name, ends, data in (
                ("portout", (workload, client), port_key(anchor.port)),
                ("addressout", (workload, between), packed(anchor.address)),
                ("addressin", (anchor, workload), packed(client.address)),
                ("portin", (between, workload), port_key(client.port)),
            )
        ]
        self.lab.b.call(self.lab.nft["b"].change, TABLE, changes)


def _clients(lab: Lab, count: int) -> list[str]:
    """Addresses of as many outside clients, all on the client's node."""
    first = lab.address["client", 4]
    network, _, host = first.rpartition(".")
    found = [first, *(f"{network}.{int(host) + 100 + more}" for more in range(1, count))]
    for address in found[1:]:
        lab.client.add_address("to-router", address, 24)
    return found


def _connect(lab: Lab, listener: socket.socket, source: str, port: int) -> Any:
    client = lab.client.call(
        socket.create_connection,
        (lab.address["a", 4], PORT),
        timeout=10,
        source_address=(source, port),
    )
    return lab.keep(client), lab.keep(listener.accept()[0])


def test_clients_with_the_same_port_are_anchored_at_one_node(lab: Lab) -> None:
    listener = lab.listen("a", 4)
    port = 40_000
    pairs = [_connect(lab, listener, source, port) for source in _clients(lab, 3)]
    anchored = Anchored(lab)
    moved = [anchored.anchor(pairs[0][1], port)]
    with pytest.raises(NetfilterError) as taken:
        anchored.anchor(pairs[1][1], port)
    assert taken.value.errno == errno.EEXIST
    moved += [anchored.anchor(pairs[1][1], 40_001), anchored.anchor(pairs[2][1], 40_002)]
    for (client, _), server in zip(pairs, moved, strict=True):
        assert_talks(client, server, 1_000_000)
        assert server.getpeername() == client.getsockname()


def test_the_name_in_between_may_be_another_connections(lab: Lab) -> None:
    """One client, two connections; the first gets the second one's port at the anchor."""
    first_client, second_client = _clients(lab, 2)
    listener = lab.listen("a", 4)
    blocking = _connect(lab, listener, first_client, 40_000)
    first = _connect(lab, listener, second_client, 40_000)
    second = _connect(lab, listener, second_client, 40_001)
    anchored = Anchored(lab)
    moved = [
        anchored.anchor(blocking[1], 40_000),
        anchored.anchor(first[1], 40_001),  # in between: the name of ``second``
        anchored.anchor(second[1], 40_002),
    ]
    direct, accepted = lab.connect(lab.listen("b", 4), lab.address["b", 4])
    for client, server in zip((blocking[0], first[0], second[0]), moved, strict=True):
        assert_talks(client, server, 1_000_000)
    assert_talks(direct, accepted)
