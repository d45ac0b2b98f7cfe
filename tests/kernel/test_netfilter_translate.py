"""A client that dialled the workload's address itself goes on when that address changes."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from netfilter_lab import (
    PORT,
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
from mycoproxy.netfilter.hold import Hold
from mycoproxy.netfilter.rebind import admit, undo
from mycoproxy.netfilter.renamed import plain_entry
from mycoproxy.netfilter.reserved_ports import release_ports, reserve_ports
from mycoproxy.netfilter.translate import Move, Translate

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

VERSIONS = pytest.mark.parametrize("version", [4, 6])

# What a careful host has: connections begin with a SYN, whatever does not fit is dropped.
STATEFUL = """\
table inet firewall {{
    chain check {{
        type filter hook {hook} priority filter; policy drop;
        iif lo accept
        ct state invalid counter drop
        ct state established,related accept
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
        tcp flags & (fin | syn | rst | ack) == syn accept
    }}
}}
"""


@pytest.fixture
def lab(network: Any) -> Iterator[Lab]:
    with service_lab(network, nat=False) as made:
        yield made


@pytest.fixture
def translate(lab: Lab) -> Translate:
    return Translate(lab.nft["client"])


def _move(server: socket.socket, lab: Lab, target: str) -> Move:
    name = tuple_of(server)
    return Move(name, lab.endpoint(target, name.local.version))


def _reserved(lab: Lab, name: str = "client") -> str:
    sysctl = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")
    found: str = lab.node(name).call(sysctl.read_text).strip()
    return found


@VERSIONS
@pytest.mark.parametrize("where", ["client", "router"])
def test_a_translated_connection_goes_on_at_the_new_address(
    lab: Lab, version: int, where: str
) -> None:
    listener = lab.listen("a", version)
    client, server = lab.connect(listener, lab.address["a", version])
    other_client, other_server = lab.connect(listener, lab.address["a", version])
    move = _move(server, lab, "b")
    translate = Translate(lab.nft[where])
    lab.node(where).call(translate.add, [move])
    moved = lab.move(server, "a", "b")
    assert_talks(client, moved, 3_000_000)
    assert client.getpeername()[:2] == (lab.address["a", version], PORT)
    assert moved.getpeername()[:2] == client.getsockname()[:2]
    assert_talks(other_client, other_server)
    # New connections find each address as it is.
    assert_talks(*lab.connect(listener, lab.address["a", version]))
    assert_talks(*lab.connect(lab.listen("b", version), lab.address["b", version]))
    moved.close()
    client.settimeout(10)
    assert client.recv(1) == b""
    lab.node(where).call(translate.clear)
    lab.node(where).call(translate.clear)
    assert lab.ruleset(where) == ""


@VERSIONS
def test_a_connection_that_the_workload_opened_goes_on_too(
    lab: Lab, translate: Translate, version: int
) -> None:
    listener = lab.listen("client", version)
    workload = lab.a.call(
        socket.create_connection,
        (lab.address["client", version], PORT),
        timeout=10,
        source_address=(lab.address["a", version], PORT),
    )
    lab.keep(workload)
    peer = lab.keep(listener.accept()[0])
    lab.client.call(translate.add, [_move(workload, lab, "b")])
    moved = lab.move(workload, "a", "b")
    assert_talks(peer, moved)
    assert peer.getpeername()[0] == lab.address["a", version]


@VERSIONS
def test_there_and_back_again_leaves_no_translation(
    lab: Lab, translate: Translate, version: int
) -> None:
    client, server = lab.connect(lab.listen("a", version), lab.address["a", version])
    dialled = tuple_of(server)
    for source, target in (("a", "b"), ("b", "a"), ("a", "b")):
        lab.client.call(translate.add, [_move(server, lab, target)])
        server = lab.move(server, source, target)
        assert_talks(client, server)
        wanted = {} if target == "a" else {dialled: lab.endpoint("b", version)}
        assert lab.client.call(translate.list) == wanted


@VERSIONS
def test_the_reversed_move_takes_it_back(lab: Lab, translate: Translate, version: int) -> None:
    client, server = lab.connect(lab.listen("a", version), lab.address["a", version])
    move = _move(server, lab, "b")
    lab.client.call(translate.add, [move])
    lab.client.call(translate.add, [move.reversed()])
    assert lab.client.call(translate.list) == {}
    assert _reserved(lab) == ""
    assert_talks(client, server)


def test_translations_outlive_the_process_that_made_them(lab: Lab, translate: Translate) -> None:
    client, server = lab.connect(lab.listen("a", 4), lab.address["a", 4])
    name = tuple_of(server)
    lab.client.call(translate.add, [_move(server, lab, "b")])
    moved = lab.move(server, "a", "b")
    later = Translate(lab.nft["client"])
    lab.client.call(later.install)
    assert lab.client.call(later.list) == {name: lab.endpoint("b", 4)}
    assert_talks(client, moved)
    lab.client.call(later.remove, [tuple_of(moved)])
    assert lab.client.call(later.list) == {}


def test_connections_of_both_families_are_translated_at_once(
    lab: Lab, translate: Translate
) -> None:
    pairs = [lab.connect(lab.listen("a", version), lab.address["a", version]) for version in (4, 6)]
    lab.client.call(translate.add, [_move(server, lab, "b") for _, server in pairs])
    assert len(lab.client.call(translate.list)) == 2
    for client, server in pairs:
        assert_talks(client, lab.move(server, "a", "b"))


def test_a_mapped_name_is_translated_as_ipv4(lab: Lab, translate: Translate) -> None:
    listener = lab.keep(
        lab.a.call(socket.create_server, ("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True)
    )
    client, server = lab.connect(listener, lab.address["a", 4])
    name = tuple_of(server)
    assert name.local.address.startswith("::ffff:")
    new = Endpoint(f"::ffff:{lab.address['b', 4]}", PORT)
    lab.client.call(translate.add, [Move(name, new)])
    state_move = lab.client.call(translate.list)
    assert list(state_move.values()) == [lab.endpoint("b", 4)]
    client.sendall(b"x")
    wait_until(lambda: attempts(client) > 0 or readable(client), "b is asked")
    assert not readable(server)


def test_the_ports_of_translated_connections_are_reserved_meanwhile(
    lab: Lab, translate: Translate
) -> None:
    lab.client.sysctl("net.ipv4.ip_local_reserved_ports", "1234,30000-30002")
    _, server = lab.connect(lab.listen("a", 4), lab.address["a", 4])
    move = _move(server, lab, "b")
    port = move.connection.remote.port
    lab.client.call(translate.add, [move])
    assert str(port) in _reserved(lab).split(",")
    lab.client.call(translate.remove, [move.connection])
    assert _reserved(lab) == "1234,30000-30002"
    # What somebody else reserved stays reserved.
    lab.client.sysctl("net.ipv4.ip_local_reserved_ports", str(port))
    lab.client.call(translate.add, [move])
    lab.client.call(translate.clear)
    assert _reserved(lab) == str(port)


def test_thousands_of_translations_are_added_listed_and_removed(
    lab: Lab, translate: Translate
) -> None:
    _, server = lab.connect(lab.listen("a", 4), lab.address["a", 4])
    name = tuple_of(server)
    moves = [
        Move(FourTuple(name.local, name.remote._replace(port=port)), lab.endpoint("b", 4))
        for port in range(20000, 24000, 2)
    ]
    lab.client.call(translate.add, moves)
    found = lab.client.call(translate.list)
    assert found == {move.connection: move.new for move in moves}
    assert lab.client.call(reserve_ports, range(20000, 24000)) == set(range(20001, 24000, 2))
    lab.client.call(release_ports, range(20001, 24000, 2))
    lab.client.call(translate.remove, [move.connection for move in moves])
    assert lab.client.call(translate.list) == {}
    assert _reserved(lab) == ""


@VERSIONS
@pytest.mark.parametrize("where", ["client", "router"])
def test_a_stateful_firewall_beside_the_translation_notices_nothing(
    lab: Lab, version: int, where: str
) -> None:
    for hook in ("input", "output") if where == "client" else ("forward",):
        name = "firewall" if hook != "output" else "firewall_out"
        lab.run(where, STATEFUL.format(hook=hook).replace("inet firewall", f"inet {name}"))
    client, server = lab.connect(lab.listen("a", version), lab.address["a", version])
    assert_talks(client, server)
    translate = Translate(lab.nft[where])
    lab.node(where).call(translate.add, [_move(server, lab, "b")])
    moved = lab.move(server, "a", "b")
    # Far more than a window: tracking that saw one direction only would have given up by now.
    assert_talks(client, moved, 20_000_000)
    listed = lab.run(where, "list table inet firewall")
    assert "ct state invalid counter packets 0 bytes 0 drop" in listed
    moved.close()
    client.settimeout(10)
    assert client.recv(1) == b""


@VERSIONS
def test_a_stateful_firewall_on_the_way_needs_to_be_told(
    lab: Lab, translate: Translate, version: int
) -> None:
    lab.run("router", STATEFUL.format(hook="forward"))
    client, server = lab.connect(lab.listen("a", version), lab.address["a", version])
    name = tuple_of(server)
    conntrack = lab.on("router", Conntrack)
    entry = lab.router.call(conntrack.find, [name])[name]
    assert not entry.has_nat
    lab.client.call(translate.add, [_move(server, lab, "b")])
    moved = lab.move(server, "a", "b")
    before = attempts(client)
    client.sendall(b"x")
    wait_until(lambda: attempts(client) > before, "the firewall drops it")
    assert not readable(moved)
    known = plain_entry(entry, name, tuple_of(moved))
    rebound = lab.router.call(admit, conntrack, [known])
    assert receive(moved, 1) == b"x"
    assert_talks(client, moved, 3_000_000)
    again = lab.router.call(admit, conntrack, [known])
    assert again == rebound
    assert_talks(client, moved)
    lab.router.call(undo, conntrack, Hold(lab.nft["router"], "unused"), rebound)
    assert lab.router.call(conntrack.find, [tuple_of(moved)]) == {}
