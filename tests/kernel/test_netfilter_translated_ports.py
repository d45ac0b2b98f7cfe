"""Address and port are translated: outside clients with one port that are anchored at one node.

Both would be that node's address and their common port to the workload, and conntrack refuses the
second (its reply tuple is taken, EEXIST). So it gets another port there.
"""

import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from netfilter_lab import PORT, Lab, assert_talks, service_lab, tuple_of

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.netfilter.anchor import Anchors
from mycoproxy.netfilter.conntrack import Conntrack
from mycoproxy.netfilter.hold import Hold
from mycoproxy.netfilter.nfnetlink import NetfilterError
from mycoproxy.netfilter.rebind import Rebound, rebind
from mycoproxy.netfilter.renamed import renamed_entry, untracked_entry
from mycoproxy.netfilter.translate import TABLE, Move, Translate

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

VERSIONS = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture
def lab(network: Any) -> Iterator[Lab]:
    with service_lab(network) as made:
        yield made


class Anchored:
    """Connections of outside clients that stay on the router when the workload goes from a to b."""

    def __init__(self, lab: Lab, version: int) -> None:
        self.lab = lab
        self.version = version
        self.listener = lab.listen("a", version)
        self.conntrack = lab.on("router", Conntrack)
        self.hold = Hold(lab.nft["router"], "rebind")
        lab.router.call(self.hold.install)
        anchors = Anchors(lab.nft["router"])
        lab.router.call(anchors.install)
        self.address: str = lab.router.call(anchors.address_toward, lab.address["b", version])
        self.translate = Translate(lab.nft["b"])

    def clients(self, count: int) -> list[str]:
        """Addresses of as many outside clients, all on the client's node."""
        first = self.lab.address["client", self.version]
        found = [first, *(f"{first[:-1]}{more}" for more in range(5, 4 + count))]
        for address in found[1:]:
            self.lab.client.add_address("to-router", address, 24 if self.version == 4 else 64)
        return found

    def connect(self, source: str, port: int) -> tuple[socket.socket, socket.socket]:
        """(client's socket, server's socket)."""
        client = self.lab.client.call(
            socket.create_connection,
            (self.lab.address["a", self.version], PORT),
            timeout=10,
            source_address=(source, port),
        )
        return self.lab.keep(client), self.lab.keep(self.listener.accept()[0])

    def anchor(self, server: socket.socket, port: int) -> socket.socket:
        """Move it; the router speaks for its client from ``port``."""
        old = tuple_of(server)
        new = FourTuple(self.lab.endpoint("b", self.version), Endpoint(self.address, port))
        entry = self.lab.router.call(self.conntrack.find, [old]).get(old, untracked_entry(old))
        change = Rebound(entry, renamed_entry(entry, old, new))
        self.lab.router.call(rebind, self.conntrack, self.hold, [change])
        move = Move(FourTuple(local=old.remote, remote=new.local), new.remote)
        self.lab.b.call(self.translate.add, [move])
        return self.lab.move(server, "a", "b")


@VERSIONS
def test_clients_with_the_same_port_are_anchored_at_one_node(lab: Lab, version: int) -> None:
    anchored = Anchored(lab, version)
    pairs = [anchored.connect(source, 40_000) for source in anchored.clients(3)]
    moved = [anchored.anchor(pairs[0][1], 40_000)]
    with pytest.raises(NetfilterError) as taken:
        anchored.anchor(pairs[1][1], 40_000)
    assert taken.value.errno == errno.EEXIST
    moved += [anchored.anchor(pairs[1][1], 40_001), anchored.anchor(pairs[2][1], 40_002)]
    for (client, _), server in zip(pairs, moved, strict=True):
        assert_talks(client, server, 1_000_000)
        assert server.getpeername()[:2] == client.getsockname()[:2]
    now = lab.b.call(anchored.translate.list)
    assert sorted(end.port for end in now.values()) == [40_000, 40_001, 40_002]
    assert {name.local for name in now} == {tuple_of(server).remote for server in moved}


@VERSIONS
def test_the_name_in_between_may_be_another_connections(lab: Lab, version: int) -> None:
    """One client, two connections; the first gets the second one's port at the anchor."""
    anchored = Anchored(lab, version)
    first_client, second_client = anchored.clients(2)
    blocking = anchored.connect(first_client, 40_000)
    first = anchored.connect(second_client, 40_000)
    second = anchored.connect(second_client, 40_001)
    moved = [
        anchored.anchor(blocking[1], 40_000),
        anchored.anchor(first[1], 40_001),  # in between: the name of ``second``
        anchored.anchor(second[1], 40_002),
    ]
    direct, accepted = lab.connect(lab.listen("b", version), lab.address["b", version])
    for client, server in zip((blocking[0], first[0], second[0]), moved, strict=True):
        assert_talks(client, server, 1_000_000)
    assert_talks(direct, accepted)


@VERSIONS
def test_a_name_in_between_is_not_given_twice(lab: Lab, version: int) -> None:
    """One client's connections, anchored at two nodes, which cannot know of each other."""
    translate = Translate(lab.nft["b"])
    workload, client = lab.endpoint("b", version), lab.address["client", version]
    node, other = (lab.address[name, version] for name in ("a", "client"))
    first, second = (
        Move(FourTuple(Endpoint(client, port), workload), Endpoint(address, 50_000))
        for port, address in ((40_000, node), (40_001, other))
    )
    lab.b.call(translate.add, [first])
    with pytest.raises(NetfilterError):
        lab.b.call(translate.add, [second])
    assert lab.b.call(translate.list) == {first.connection: first.new}
    lab.b.call(translate.add, [Move(second.connection, Endpoint(other, 50_001))])
    assert len(lab.b.call(translate.list)) == 2
    lab.b.call(translate.clear)
    assert lab.ruleset("b") == ""


@VERSIONS
def test_ports_are_translated_there_and_back_again(lab: Lab, version: int) -> None:
    translate = Translate(lab.nft["b"])
    dialled = FourTuple(
        Endpoint(lab.address["client", version], 40_000), lab.endpoint("b", version)
    )
    places = [Endpoint(lab.address["a", version], port) for port in (50_000, 40_000, 50_001)]
    here = dialled
    for place in places:
        lab.b.call(translate.add, [Move(here, place)])
        assert lab.b.call(translate.list) == {dialled: place}
        here = FourTuple(place, dialled.remote)
    lab.b.call(translate.add, [Move(here, dialled.local)])
    assert lab.b.call(translate.list) == {}


@VERSIONS
def test_names_of_a_connection_with_another_port_do_not_collide(lab: Lab, version: int) -> None:
    """What the workload opens: under the anchor's name it is refused; under the client's own it is
    another connection, and ends the translation."""
    anchored = Anchored(lab, version)
    first, source = anchored.clients(2)
    blocking = anchored.connect(first, 40_000)
    client, server = anchored.connect(source, 40_000)
    anchored.anchor(blocking[1], 40_000)
    moved = anchored.anchor(server, 40_001)
    # As in a move, where the workload's socket is there before.
    lab.run("b", f"flush set inet {TABLE} opening{version}")

    family = moved.family

    def dial(target: tuple[str, int]) -> None:
        with socket.socket(family) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.settimeout(10)
            sock.bind((lab.address["b", version], PORT))
            sock.connect(target)

    with pytest.raises(ConnectionRefusedError):
        lab.b.call(dial, (anchored.address, 40_001))
    assert_talks(client, moved)
    assert len(lab.b.call(anchored.translate.list)) == 2
    lab.b.call(moved.setsockopt, socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    moved.close()
    client.settimeout(10)
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    client.close()
    listener = lab.client.call(socket.create_server, (source, 40_000), family=family)
    lab.b.call(dial, (source, 40_000))
    accepted = lab.keep(lab.keep(listener).accept()[0])
    assert accepted.getpeername()[:2] == (lab.address["b", version], PORT)
    assert len(lab.b.call(anchored.translate.list)) == 1
    assert lab.b.call(anchored.translate.tidy) == 1
    lab.b.call(anchored.translate.clear)
    assert lab.ruleset("b") == ""
