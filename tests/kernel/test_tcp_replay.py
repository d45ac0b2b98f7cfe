"""What the client sends while nobody answers arrives without one retransmission."""

import itertools
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from tcp_lab import Move, exchange, receive_exactly, wait_until

from mycoproxy import tcp
from mycoproxy.addresses import FourTuple
from mycoproxy.tcp import abi, repair

pytestmark = [pytest.mark.root, pytest.mark.timeout(30)]

TOTAL_RETRANS = slice(100, 104)  # struct tcp_info, include/uapi/linux/tcp.h


@pytest.fixture(params=["v4", "v6", "mapped"])
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


def retransmissions(sock: socket.socket) -> int:
    info = sock.getsockopt(socket.IPPROTO_TCP, abi.TCP_INFO, TOTAL_RETRANS.stop)
    return int.from_bytes(info[TOTAL_RETRANS], "little")


def tap_in(move: Move, place: str) -> tcp.Tap:
    tap: tcp.Tap = getattr(move, place).call(tcp.Tap)
    move.stack.callback(tap.close)
    return tap


def send_during_hold(move: Move, *messages: bytes) -> tuple[tcp.TcpState, tcp.Tap]:
    tap = tap_in(move, "b")
    state = move.capture()
    for message in messages:
        move.client.sendall(message)
    return state, tap


def deliver(move: Move, state: tcp.TcpState, tap: tcp.Tap) -> int:
    state = move.move(state)
    lost = tap.lost([state])
    count: int = move.b.call(tcp.inject, lost)
    return count


def test_a_request_sent_during_the_hold_is_not_retransmitted(move: Move) -> None:
    move.build()
    move.connect()
    exchange(move.client, move.server)
    state, tap = send_during_hold(move, b"request")
    assert deliver(move, state, tap) == 1
    assert receive_exactly(move.moved, 7) == b"request"
    exchange(move.client, move.moved)
    assert retransmissions(move.client) == 0


@pytest.mark.parametrize("sack", [0, 1])
@pytest.mark.parametrize("timestamps", [0, 1])
def test_several_requests_arrive_in_order(move_v4: Move, sack: int, timestamps: int) -> None:
    move = move_v4
    move.build(sysctls={"net.ipv4.tcp_sack": sack, "net.ipv4.tcp_timestamps": timestamps})
    move.connect()
    exchange(move.client, move.server)
    state, tap = send_during_hold(move, *(b"request %d;" % number for number in range(4)))
    deliver(move, state, tap)
    expected = b"request 0;request 1;request 2;request 3;"
    assert receive_exactly(move.moved, len(expected)) == expected
    exchange(move.client, move.moved)


def test_an_upload_in_flight_arrives_complete(move: Move) -> None:
    """Segments leave the client uncut (TSO), so large ones are delivered in pieces."""
    move.build()
    move.connect()
    exchange(move.client, move.server)
    data = os.urandom(120_000)
    move.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 500_000)
    state, tap = send_during_hold(move, data)
    assert deliver(move, state, tap) >= 1
    assert receive_exactly(move.moved, len(data)) == data
    exchange(move.client, move.moved)


def test_a_close_during_the_hold_is_seen(move: Move) -> None:
    move.build()
    move.connect()
    exchange(move.client, move.server)
    tap = tap_in(move, "b")
    state = move.capture()
    move.client.sendall(b"last words")
    move.client.shutdown(socket.SHUT_WR)
    deliver(move, state, tap)
    assert receive_exactly(move.moved, 1000) == b"last words"
    move.moved.sendall(b"answer")
    assert receive_exactly(move.client, 6) == b"answer"


def test_an_abort_during_the_hold_is_seen(move_v4: Move) -> None:
    move = move_v4
    move.build()
    move.connect()
    exchange(move.client, move.server)
    tap = tap_in(move, "b")
    state = move.capture()
    move.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes((1, 0, 0, 0, 0, 0, 0, 0)))
    move.client.close()
    deliver(move, state, tap)
    move.moved.settimeout(10)
    with pytest.raises(ConnectionResetError):
        move.moved.recv(1)


def test_after_a_rollback_the_source_gets_what_was_held(move_v4: Move) -> None:
    move = move_v4
    move.build()
    move.connect()
    exchange(move.client, move.server)
    state, tap = send_during_hold(move, b"held")
    move.roll_back(state)
    move.a.call(tcp.inject, tap.lost([state]))
    assert receive_exactly(move.server, 4) == b"held"
    exchange(move.client, move.server)
    assert retransmissions(move.client) == 0


def test_what_arrived_before_the_capture_is_not_lost(move_v4: Move) -> None:
    move = move_v4
    move.build()
    move.connect()
    tap = tap_in(move, "a")
    move.client.sendall(b"queued")
    wait_until(lambda: repair.queued_bytes(move.server, abi.SIOCINQ) == 6, "queued")
    state = move.capture()
    assert tap.lost([state]) == ()


def test_other_connections_are_left_alone(move_v4: Move) -> None:
    move = move_v4
    move.build()
    move.connect()
    state, tap = send_during_hold(move, b"request")
    other = state.moved_to(remote=state.remote._replace(port=1))
    assert tap.lost([other]) == ()


def test_a_segment_is_delivered_under_the_new_name(network: Any) -> None:
    """Both ends are renamed, as a translation on the way would do it; nobody is at the new one."""
    c, a, b = network.node("c"), network.node("a"), network.node("b")
    old, new = network.link(c, a), network.link(c, b)
    with a.call(socket.create_server, (old.right_v4, 0)) as listener:
        client = c.call(socket.create_connection, listener.getsockname())
        server, _ = listener.accept()
    with client, server, a.call(tcp.Tap) as tap, b.call(socket.socket) as moved:
        exchange(client, server)
        state = tcp.capture(server)
        earlier = state.receive.next
        client.sendall(b"request")  # the source still acknowledges it: there is no hold here
        lost = tap.lost([state])
        here = state.local._replace(address=new.right_v4)
        there = state.remote._replace(address=f"{new.left_v4}99")
        tcp.establish(moved, state, local=here, remote=there)
        tcp.release(moved, state)
        b.call(tcp.inject, [s.moved_to(FourTuple(here, there)) for s in lost])
        assert receive_exactly(moved, 7) == b"request"
        assert state.receive.next == earlier


def test_lost_segments_come_once(move_v4: Move) -> None:
    move = move_v4
    move.build()
    move.connect()
    state, tap = send_during_hold(move, b"one")
    first = tap.lost([state])
    move.client.sendall(b"two")
    second = tap.lost([state])
    assert [s.segment[-3:] for s in itertools.chain(first, second)] == [b"one", b"two"]
