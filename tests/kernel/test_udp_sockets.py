"""What waits in UDP sockets is looked at, stays there, and is delivered to others."""

import os
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.handover.datagram_ends import deliver
from mycoproxy.sockets import Task
from mycoproxy.sockets.datagram import Datagram, HeldDatagramSocket, take_datagram_sockets

pytestmark = [pytest.mark.root, pytest.mark.timeout(30)]

SECONDS = 5.0
UDP_GRO = 104  # include/uapi/linux/udp.h
UDP_SEGMENT = 103
IP_PKTINFO = 8  # include/uapi/linux/in.h


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def bound(stack: ExitStack, node: Any, address: str, *, dual: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = stack.enter_context(node.call(socket.socket, family, socket.SOCK_DGRAM))
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
    sock.bind((address, 0))
    sock.settimeout(SECONDS)
    return sock


def held(stack: ExitStack, node: Any) -> list[HeldDatagramSocket]:
    """This process is the task; of its sockets, those in the node's namespace are meant."""
    found = node.call(take_datagram_sockets, [Task(os.getpid(), 1)])
    for one in found:
        stack.enter_context(one.sock)
    return list(found)


def wait_for(sock: socket.socket, size: int) -> None:
    """Until a datagram is there, or so many of them: they come in order, over a veth."""
    assert select.select([sock], [], [], SECONDS)[0], f"nothing came, {size} wanted"


@pytest.mark.parametrize("version", [4, 6])
def test_only_bound_udp_sockets_of_the_namespace_are_taken(
    netns_pair: Any, stack: ExitStack, version: int
) -> None:
    address = netns_pair.address("right", version)
    server = bound(stack, netns_pair.right, address)
    bound(stack, netns_pair.left, netns_pair.address("left", version))
    stack.enter_context(
        netns_pair.right.call(socket.socket, server.family, socket.SOCK_DGRAM)
    )  # not bound
    stack.enter_context(
        netns_pair.right.call(socket.create_server, (address, 0), family=server.family)
    )
    (found,) = held(stack, netns_pair.right)
    assert found.local == Endpoint(*server.getsockname()[:2])
    assert found.remote is None
    assert [name.fd for name in found.names] == [server.fileno()]


@pytest.mark.parametrize("version", [4, 6])
def test_what_waits_is_seen_once_and_stays_for_its_reader(
    netns_pair: Any, stack: ExitStack, version: int
) -> None:
    server = bound(stack, netns_pair.right, "0.0.0.0" if version == 4 else "::")
    client = bound(stack, netns_pair.left, netns_pair.address("left", version))
    address = netns_pair.address("right", version)
    client.connect((address, server.getsockname()[1]))
    (found,) = held(stack, netns_pair.right)
    assert found.arrived() == []
    payloads = [b"first", b"", bytes(1400)]
    for payload in payloads:
        client.send(payload)
    wait_for(server, 3)
    flow = FourTuple(
        Endpoint(address, server.getsockname()[1]), Endpoint(*client.getsockname()[:2])
    )
    assert found.arrived() == [Datagram(flow, payload) for payload in payloads]
    assert found.arrived() == []
    client.send(b"late")
    assert found.arrived() == [Datagram(flow, b"late")]
    assert server.getsockopt(socket.IPPROTO_IP, IP_PKTINFO) == 0 or version == 6
    assert [server.recv(2000) for _ in range(4)] == [*payloads, b"late"]
    assert found.drops() == 0


def test_a_socket_for_both_versions_tells_which_address_was_meant(
    netns_pair: Any, stack: ExitStack
) -> None:
    server = bound(stack, netns_pair.right, "::", dual=True)
    client = bound(stack, netns_pair.left, netns_pair.left_v4)
    client.sendto(b"mapped", (netns_pair.right_v4, server.getsockname()[1]))
    wait_for(server, 1)
    (found,) = held(stack, netns_pair.right)
    (datagram,) = found.arrived()
    assert datagram.flow.local.address == f"::ffff:{netns_pair.right_v4}"
    assert datagram.flow.remote.address == f"::ffff:{netns_pair.left_v4}"


def test_datagrams_that_the_kernel_put_together_are_taken_apart(
    netns_pair: Any, stack: ExitStack
) -> None:
    server = bound(stack, netns_pair.right, netns_pair.right_v4)
    server.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    client = bound(stack, netns_pair.left, netns_pair.left_v4)
    client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 100)
    client.sendto(bytes(range(250)), server.getsockname())
    wait_for(server, 1)
    (found,) = held(stack, netns_pair.right)
    payloads = [datagram.payload for datagram in found.arrived()]
    assert payloads == [bytes(range(100)), bytes(range(100, 200)), bytes(range(200, 250))]


def test_what_a_full_queue_had_no_room_for_is_counted(netns_pair: Any, stack: ExitStack) -> None:
    server = bound(stack, netns_pair.right, netns_pair.right_v4)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client = bound(stack, netns_pair.left, netns_pair.left_v4)
    (found,) = held(stack, netns_pair.right)
    for number in range(50):
        client.sendto(number.to_bytes(1, "big") * 1000, server.getsockname())
    wait_for(server, 1)
    assert len(found.arrived()) + found.drops() == 50
    assert found.drops() > 0


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("size", [0, 1, 1471, 60_000])
def test_a_datagram_is_delivered_as_if_its_sender_had_sent_it(
    netns_pair: Any, stack: ExitStack, version: int, connected: bool, size: int
) -> None:
    address = netns_pair.address("right", version)
    server = bound(stack, netns_pair.right, address)
    client = (netns_pair.address("left", version), 4321)
    if connected:
        server.connect(client)
    flow = FourTuple(Endpoint(*server.getsockname()[:2]), Endpoint(*client))
    payload = bytes(index & 0xFF for index in range(size))
    netns_pair.right.call(deliver, [Datagram(flow, payload)])
    data, source = server.recvfrom(1 << 16)
    assert data == payload
    assert source[:2] == client


def test_one_that_cannot_be_delivered_does_not_keep_others_back(
    netns_pair: Any, stack: ExitStack
) -> None:
    server = bound(stack, netns_pair.right, netns_pair.right_v4)
    local = Endpoint(*server.getsockname())
    flow = FourTuple(local, Endpoint(netns_pair.left_v4, 4321))
    # There is no route to it.
    nowhere = FourTuple(Endpoint("198.51.100.99", 1), flow.remote)
    with pytest.raises(OSError, match="1 datagrams not delivered"):
        netns_pair.right.call(deliver, [Datagram(nowhere, b"x"), Datagram(flow, b"y")])
    assert server.recv(10) == b"y"
