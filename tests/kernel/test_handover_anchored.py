"""Outside clients that nobody can tell of a new address go on through the node that is left.

::

    outside --- node --- a     where the workload is first
                 |  |
                 |  '---- b    where it goes, and
                 '------- c    where it goes after that, and d

``outside`` has two addresses. The node is the workload's own in the first move, and an anchor that
leads on in later ones. The copies are no work of CRIU's, see ``handover_lab``.
"""

import asyncio
import functools
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from handover_lab import Workload
from tcp_lab import DEADLINE, receive_exactly

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.handover import (
    Handover,
    HandoverError,
    LocalPeer,
    LocalSource,
    LocalTarget,
    Nodes,
)
from mycoproxy.netfilter.anchor import address_toward
from mycoproxy.netfilter.conntrack import Conntrack
from mycoproxy.netfilter.entry import ConntrackEntry
from mycoproxy.netfilter.nft import Nft
from mycoproxy.netfilter.renamed import restored, untracked_entry
from mycoproxy.netfilter.translate import Translate

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

PORT, CLIENT_PORT = 7000, 40_000


class AnchorLab:
    """The nodes, and a workload with its copies; one process drives all of them."""

    def __init__(self, network: Any, version: int) -> None:
        self.version = version
        self.outside, self.node = network.node("outside"), network.node("node")
        to_outside = network.link(self.outside, self.node)
        self.clients = [to_outside.address("left", version)]
        more = self.clients[0][:-1] + "9"
        self.outside.add_address("to-node", more, 24 if version == 4 else 64)
        self.clients.append(more)
        self.outside.set_route("default", gateway=to_outside.right_v4)
        self.outside.set_route("::/0", gateway=to_outside.right_v6)
        self.node.sysctl("net.ipv4.ip_forward", 1)
        self.node.sysctl("net.ipv6.conf.all.forwarding", 1)
        self.place: dict[str, Any] = {}
        self.address: dict[str, str] = {}
        self.workload: dict[str, Workload] = {}
        for name in "abcd":
            place = network.node(name)
            link = network.link(self.node, place)
            place.set_route("default", gateway=link.left_v4)
            place.set_route("::/0", gateway=link.left_v6)
            self.place[name] = place
            self.address[name] = link.address("right", version)
            self.workload[name] = Workload(place)
        self.own = self.node.call(address_toward, self.address["b"])
        self.family = socket.AF_INET if version == 4 else socket.AF_INET6
        self.open: list[Any] = []

    def keep(self, thing: Any) -> Any:
        self.open.append(thing)
        return thing

    def close(self) -> None:
        for one in self.open:
            one.close()
        for workload in self.workload.values():
            workload.close()

    def dial(self, node: Any, source: str, target: str) -> socket.socket:
        """Dial the workload's port from the clients' one."""
        sock: socket.socket = node.call(
            functools.partial(
                socket.create_connection,
                (target, PORT),
                timeout=DEADLINE,
                source_address=(source, CLIENT_PORT),
            )
        )
        return self.keep(sock)  # type: ignore[no-any-return]

    def connect(self) -> list[socket.socket]:
        """The clients', accepted as descriptors 20 and 21 where the workload is first."""
        self.workload["a"].listen(10, self.address["a"], PORT)
        found = []
        for fd, client in enumerate(self.clients, start=20):
            found.append(self.dial(self.outside, client, self.address["a"]))
            self.accept(fd)
        return found

    def accept(self, fd: int) -> None:
        """Accept a connection as descriptor ``fd``."""
        self.workload["a"].accept(10, fd)
        self.close_copies(fd)

    def close_copies(self, fd: int) -> None:
        """As CRIU will restore it."""
        for name in "bcd":
            self.workload[name].do(f"closed_as_criu_does({fd}, socket.{self.family.name})")

    async def move(
        self,
        old: str,
        new: str,
        *,
        home: str = "node",
        surveyed: Callable[[], None] = lambda: None,
    ) -> Handover:
        """``home``: whose node it is in this move; ``surveyed`` is called when that is done."""
        source = LocalSource(self.place[old].worker, self.workload[old].init, "test")
        target = LocalTarget(self.place[new].worker, "test")
        peer = LocalPeer(home, self.node.worker, "test", behind=())
        parts = (source, target, peer)
        handover = Handover(
            source,
            target,
            [peer],
            addresses={self.address[old]: self.address[new]},
            nodes=Nodes(old, new),
            record_commit=lambda: None,
        )
        try:
            for part in parts:
                await part.prepare()
            self.workload[old].stop()
            await handover.survey(await source.collect())
            surveyed()
            target.collect(self.workload[new].init, [self.workload[new].init])
            try:
                await handover.ready()
            except HandoverError:
                self.workload[new].close()
                self.workload[old].go_on()
                raise
            await handover.commit()
            await handover.go_live()
            await source.silence()
            await handover.finish()
            return handover
        finally:
            for part in parts:
                await part.close()

    def assert_talks(self, clients: list[socket.socket], place: str) -> None:
        """All of them, with sockets that know them by their own names."""
        for fd, client in enumerate(clients, start=20):
            with self.workload[place].socket(fd) as sock:
                assert sock.getpeername()[:2] == client.getsockname()[:2]
                talk(client, sock)

    def ports(self, place: str) -> set[int]:
        """From which ones the node speaks to the workload there."""
        return {end.port for end in self.place[place].call(_translated).values()}

    def entries(self) -> list[ConntrackEntry]:
        """What conntrack at the node knows of the clients' connections."""
        with Conntrack() as conntrack:
            found = conntrack.dump(version=self.version)
        return [one for one in found if one.orig.source.address in self.clients]


def _translated() -> dict[FourTuple, Endpoint]:
    with Nft() as nft:
        return Translate(nft).list()


@pytest.fixture(params=[4, 6])
def lab(network: Any, request: Any) -> Iterator[AnchorLab]:
    made = AnchorLab(network, request.param)
    try:
        yield made
    finally:
        made.close()


def test_clients_with_one_port_are_anchored_at_one_node(lab: AnchorLab) -> None:
    clients = lab.connect()
    asyncio.run(lab.move("a", "b", home="a"))
    lab.assert_talks(clients, "b")
    ports = lab.ports("b")
    assert CLIENT_PORT in ports
    assert len(ports) == 2


def test_anchored_clients_with_one_port_move_on_and_back(lab: AnchorLab) -> None:
    clients = lab.connect()
    asyncio.run(lab.move("a", "b", home="a"))
    ports = lab.ports("b")
    asyncio.run(lab.move("b", "c"))
    lab.assert_talks(clients, "c")
    assert lab.ports("c") == ports
    # The place that it comes back to is another one than it left: that has a shield for good.
    asyncio.run(lab.move("c", "d", home="d"))
    lab.assert_talks(clients, "d")
    assert lab.place["d"].call(_translated) == {}
    found = lab.node.call(lab.entries)
    assert {one.orig.source for one in found} == {one.reply.destination for one in found}
    assert len(found) == len(clients)


def test_a_port_that_the_node_uses_itself_is_not_given(lab: AnchorLab) -> None:
    clients = lab.connect()
    server = lab.place["b"].call(
        functools.partial(socket.create_server, (lab.address["b"], PORT), family=lab.family)
    )
    own = lab.dial(lab.node, lab.own, lab.address["b"])
    accepted = lab.keep(lab.keep(server).accept()[0])
    asyncio.run(lab.move("a", "b", home="a"))
    lab.assert_talks(clients, "b")
    assert CLIENT_PORT not in lab.ports("b")
    talk(own, accepted)


def test_a_port_that_the_node_has_towards_the_old_place_is_not_given(lab: AnchorLab) -> None:
    """One of the node's own connections to the workload, which moves with it."""
    clients = lab.connect()
    own = lab.dial(lab.node, lab.own, lab.address["a"])
    lab.accept(22)
    asyncio.run(lab.move("a", "b", home="a"))
    lab.assert_talks([*clients, own], "b")
    assert CLIENT_PORT not in lab.ports("b")


def test_a_port_that_is_taken_after_the_survey_undoes_the_move(lab: AnchorLab) -> None:
    clients = lab.connect()

    def take() -> None:
        """As somebody does whose connection the node passes on."""
        name = FourTuple(Endpoint(lab.address["b"], PORT), Endpoint(lab.own, CLIENT_PORT))
        with Conntrack() as conntrack:
            assert conntrack.insert([restored(untracked_entry(name))]) == [0]

    before = lab.node.call(lab.entries)
    with pytest.raises(HandoverError, match="EEXIST"):
        asyncio.run(lab.move("a", "b", home="a", surveyed=lambda: lab.node.call(take)))
    lab.assert_talks(clients, "a")
    assert before == []
    assert not any(one.has_nat for one in lab.node.call(lab.entries))
    assert lab.place["b"].call(_translated) == {}


def test_the_workloads_own_connections_from_one_port_are_anchored(lab: AnchorLab) -> None:
    """To one port of two hosts outside: the workload's end is the same, the other is not."""
    servers = [
        lab.keep(
            lab.outside.call(
                functools.partial(socket.create_server, (host, PORT), family=lab.family)
            )
        )
        for host in lab.clients
    ]
    others = []
    for fd, (host, server) in enumerate(zip(lab.clients, servers, strict=True), start=20):
        lab.workload["a"].do(
            f"new = socket.socket(socket.{lab.family.name})",
            "new.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)",
            f"new.bind(({lab.address['a']!r}, {CLIENT_PORT}))",
            f"new.connect(({host!r}, {PORT}))",
            f"place(new, {fd})",
        )
        lab.close_copies(fd)
        others.append(lab.keep(server.accept()[0]))
    asyncio.run(lab.move("a", "b", home="a"))
    lab.assert_talks(others, "b")
    assert len(lab.ports("b")) == 2


def talk(one: socket.socket, other: socket.socket) -> None:
    for sender, receiver in ((one, other), (other, one)) * 2:
        receiver.settimeout(DEADLINE)
        sender.sendall(b"x" * 3000)
        assert receive_exactly(receiver, 3000) == b"x" * 3000
