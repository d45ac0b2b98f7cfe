"""One connection, captured in one namespace and established in another; the client stays."""

import contextlib
import itertools
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from tcp_lab import Move, exchange, fill, receive_exactly, wait_until

from mycoproxy import tcp
from mycoproxy.addresses import Endpoint
from mycoproxy.tcp import abi, repair

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

KINDS = ("v4", "v6", "mapped")


@pytest.fixture(params=KINDS)
def move(network: Any, request: Any) -> Iterator[Move]:
    made = Move(network, request.param)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def move_v4(network: Any) -> Iterator[Move]:
    made = Move(network, "v4")
    try:
        yield made
    finally:
        made.close()


def stream(size: int) -> bytes:
    return os.urandom(size)


def test_an_idle_connection_goes_on(move: Move) -> None:
    move.build()
    move.connect()
    exchange(move.client, move.server)
    state = move.move()
    assert state.send.sent == state.send.unsent == state.receive.data == b""
    assert state.local.address == move.server_address
    exchange(move.client, move.moved)


def test_bytes_in_the_receive_queue_are_read_once(move: Move) -> None:
    move.build()
    move.connect()
    data = stream(50_000)
    move.client.sendall(data)
    wait_until(lambda: repair.queued_bytes(move.server, abi.SIOCINQ) == len(data), "queued")
    state = move.move()
    assert state.receive.data == data
    assert receive_exactly(move.moved, len(data)) == data
    exchange(move.client, move.moved)


def test_unacknowledged_bytes_arrive_once(move: Move) -> None:
    move.build()
    move.connect()
    exchange(move.client, move.server)
    move.hold()  # the client's acknowledgements are lost, the server's bytes arrive
    data = stream(10_000)
    move.server.sendall(data)
    state = move.move()
    assert state.send.sent == data
    assert state.send.unsent == b""
    assert receive_exactly(move.client, len(data)) == data
    exchange(move.client, move.moved)
    wait_until(lambda: not repair.queued_bytes(move.moved, abi.SIOCOUTQ), "all acknowledged")


def test_bytes_that_never_reached_the_client_are_sent_again(move: Move) -> None:
    move.build()
    move.connect()
    exchange(move.client, move.server)
    move.hold()
    move.a.link_state(move.to_a.right_ifname, "down")  # and the server's bytes are lost
    data = stream(3_000)
    move.server.sendall(data)
    state = move.move()
    assert state.send.sent + state.send.unsent == data
    assert receive_exactly(move.client, len(data)) == data
    exchange(move.client, move.moved)


def test_unsent_bytes_follow_the_unacknowledged_ones(move: Move) -> None:
    move.build()
    move.connect(SO_RCVBUF=16_384)
    data = stream(60_000)
    move.server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200_000)
    move.server.sendall(data)  # more than the client's window takes
    state = move.capture()
    assert state.send.unsent
    assert data.endswith(state.send.sent + state.send.unsent)
    move.move(state)
    assert receive_exactly(move.client, len(data)) == data
    exchange(move.client, move.moved)


@pytest.mark.parametrize("locked", [True, False], ids=["locked", "auto-tuned"])
def test_buffers_full_to_the_last_byte_lose_none(move: Move, locked: bool) -> None:
    move.build()
    move.connect(**({"SO_RCVBUF": 40_000, "SO_SNDBUF": 40_000} if locked else {}))
    to_client = fill(move.server)
    to_server = fill(move.client)
    state = move.move()
    assert state.receive.data == to_server[: len(state.receive.data)]
    assert len(state.receive.data) > 10_000
    assert to_client.endswith(state.send.sent + state.send.unsent)
    assert len(state.send.unsent) > 10_000
    assert receive_exactly(move.moved, len(to_server)) == to_server
    assert receive_exactly(move.client, len(to_client)) == to_client
    exchange(move.client, move.moved)
    assert repair.buffer_lock(move.moved) == (3 if locked else 0)


OPTIONS = [
    dict(zip(("timestamps", "sack", "window_scaling"), values, strict=True))
    for values in itertools.product((0, 1), repeat=3)
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(k for k in o if o[k]) or "none")
@pytest.mark.parametrize("target", ["same", "opposite"])
def test_negotiated_options_survive(move_v4: Move, options: dict[str, int], target: str) -> None:
    move = move_v4
    move.build(sysctls={f"net.ipv4.tcp_{name}": value for name, value in options.items()})
    if target == "opposite":  # what the target would negotiate does not matter
        for name, value in options.items():
            move.b.sysctl(f"net.ipv4.tcp_{name}", 1 - value)
    move.connect()
    exchange(move.client, move.server)
    state = move.move()
    assert (state.negotiated.timestamps is not None) == options["timestamps"]
    assert state.negotiated.sack == options["sack"]
    assert (state.negotiated.window_scale is not None) == options["window_scaling"]
    for sender, receiver in ((move.client, move.moved), (move.moved, move.client)):
        transfer(sender, receiver, 2_000_000)
    again = tcp.capture(move.moved)
    tcp.resume(move.moved, again)
    assert comparable(again) == comparable(state)
    assert (again.negotiated.timestamps is None) == (state.negotiated.timestamps is None)
    exchange(move.client, move.moved)


def comparable(state: tcp.TcpState) -> Any:
    """What was negotiated, without the clock. No scaling is a shift of 0."""
    return state.negotiated._replace(
        timestamps=None, window_scale=state.negotiated.window_scale or tcp.WindowScale(0, 0)
    )


def transfer(sender: socket.socket, receiver: socket.socket, size: int) -> None:
    """``size`` bytes one way, more than the buffers hold, without threads."""
    data = stream(size)
    sender.setblocking(False)
    rest, got = memoryview(data), bytearray()
    receiver.settimeout(10)
    while len(got) < size:
        with contextlib.suppress(BlockingIOError):
            rest = rest[sender.send(rest) :] if rest else rest
        got += receiver.recv(1 << 20)
    assert got == data


def test_the_state_may_be_moved_on_and_back(move_v4: Move) -> None:
    move = move_v4
    move.build()
    move.connect()
    exchange(move.client, move.server)
    move.move()
    exchange(move.client, move.moved)
    move.unmute()
    move.route_to("a")
    state = tcp.capture(move.moved)
    back = move.socket_in("a")
    tcp.establish(back, state)
    tcp.release(back, state)
    move.moved.close()
    exchange(move.client, back)


def test_both_ends_may_change_their_address(network: Any) -> None:
    """New local address at the server, new remote at the client: as NAT would do it."""
    c, a, b = network.node("c"), network.node("a"), network.node("b")
    old, new = network.link(c, a), network.link(c, b)
    with a.call(socket.create_server, (old.right_v4, 0)) as listener:
        client = c.call(socket.create_connection, listener.getsockname())
        server, _ = listener.accept()
    with client, server:
        exchange(client, server)
        server_end, client_end = tcp.capture(server), tcp.capture(client)
        moved = b.call(socket.socket)
        again = c.call(socket.socket)
        with moved, again:
            here = Endpoint(new.right_v4, server_end.local.port)
            there = Endpoint(new.left_v4, client_end.local.port)
            tcp.establish(moved, server_end, local=here, remote=there)
            tcp.establish(again, client_end, local=there, remote=here)
            tcp.release(moved, server_end)
            tcp.release(again, client_end)
            exchange(again, moved)
            assert again.getpeername() == here
            assert moved.getpeername() == there


@pytest.mark.parametrize("size", [100, 20_000])
def test_what_was_lost_before_the_move_does_not_wait_for_a_first_estimate(
    move: Move, size: int
) -> None:
    """A socket without an estimate of its round trip waits a second, and longer (RFC 6298, 2.1)."""
    move.build()
    move.connect()
    exchange(move.client, move.server)
    move.shield("c", up=True)  # the client hears nothing
    sent = stream(size)
    move.server.sendall(sent)
    state = move.capture()
    assert state.send.sent == sent
    move.shield("c", up=False)
    move.move(state)
    wait_until(lambda: retransmission_timeout_us(move.moved) < 1_000_000, "an estimate")
    assert receive_exactly(move.client, size) == sent
    exchange(move.client, move.moved)


def retransmission_timeout_us(sock: socket.socket) -> int:
    """``tcpi_rto`` (struct tcp_info, include/uapi/linux/tcp.h)."""
    return struct.unpack_from("=I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 12), 8)[0]
