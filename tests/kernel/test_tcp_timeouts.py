"""Timeouts after a move: neither end waits longer for what is lost than if nobody had moved.

The round trip estimate is the source's own, and no acknowledgement is left out.
"""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from tcp_lab import Move, exchange, receive_exactly, settle, wait_until

from mycoproxy import tcp
from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.sockdiag import SocketLookup
from mycoproxy.tcp import abi, repair
from netlab.tcp_soak import kinds
from netlab.tcp_soak.course import PORT, SERVER, Course
from netlab.tcp_soak.move import move as move_all

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

SILENCE = 1_500_000  # microseconds

# struct tcp_info, include/uapi/linux/tcp.h
RTO = 8
LAST_DATA_SENT = 44
RTT = 68
TOTAL_RETRANS = 100
SEND_WINDOW = 228  # Linux 5.4
INFO = 232


def info(sock: socket.socket, offset: int) -> int:
    found = sock.getsockopt(socket.IPPROTO_TCP, abi.TCP_INFO, INFO)
    return int.from_bytes(found[offset : offset + 4], "little")


@pytest.fixture(params=["v4", "v6", "mapped"])
def move(network: Any, request: Any) -> Iterator[Move]:
    made = Move(network, request.param)
    try:
        yield made
    finally:
        made.close()


def be_silent(sock: socket.socket) -> None:
    """Nothing was sent for so long; kernel time, so a slow machine changes nothing."""
    settle(sock)
    wait_until(lambda: info(sock, LAST_DATA_SENT) * 1000 > SILENCE, "silence")


def say_what_nobody_hears(move: Move, data: bytes) -> tcp.TcpState:
    """Sent, lost, and captured as sent and not acknowledged."""
    move.shield("c", up=True)
    move.server.sendall(data)
    state = move.capture()
    move.shield("c", up=False)
    assert state.send.sent == data
    return state


def test_what_was_lost_after_a_silence_comes_again_as_from_an_unmoved_sender(move: Move) -> None:
    """The peer's answers echo the last timestamp that it had in order, which is as old as that.

    Taken for a round trip, it made the timeout three times the silence.
    """
    move.build()
    move.connect()
    exchange(move.client, move.server)
    be_silent(move.server)
    before = info(move.server, RTT)
    assert 0 < before < SILENCE / 10
    move.move(say_what_nobody_hears(move, b"lost"))
    assert receive_exactly(move.client, 4) == b"lost"
    settle(move.moved)
    assert info(move.moved, RTT) < SILENCE / 4
    assert info(move.moved, RTO) < SILENCE
    exchange(move.client, move.moved)


def test_the_estimate_is_there_before_any_answer(move: Move) -> None:
    """The source's own, though no packet of the peer has come yet."""
    move.build()
    move.connect()
    exchange(move.client, move.server)
    be_silent(move.server)
    before = info(move.server, RTT)
    state = say_what_nobody_hears(move, b"lost")
    move.shield("c", up=True)
    move.move(state)
    clock_tick = 1000
    assert abs(info(move.moved, RTT) - before) <= 2 * clock_tick
    assert info(move.moved, RTO) < SILENCE / 2
    move.shield("c", up=False)
    assert receive_exactly(move.client, 4) == b"lost"


def test_nothing_is_left_of_it_in_the_send_queue(move: Move) -> None:
    """Captured again before the peer has said anything, the state is the same."""
    move.build()
    move.connect()
    exchange(move.client, move.server)
    first = say_what_nobody_hears(move, b"lost")
    move.shield("c", up=True)
    move.move(first)
    second = move.b.call(tcp.capture, move.moved, peek=True)
    assert second.send == first.send
    move.shield("c", up=False)
    assert receive_exactly(move.client, 4) == b"lost"


@pytest.mark.parametrize("kind", ["v4"])
def test_without_timestamps_the_send_queue_is_kept_as_it_was(network: Any, kind: str) -> None:
    move = Move(network, kind)
    try:
        move.build(sysctls={"net.ipv4.tcp_timestamps": 0})
        move.connect()
        exchange(move.client, move.server)
        state = say_what_nobody_hears(move, b"lost")
        move.shield("c", up=True)
        move.move(state)
        assert move.b.call(tcp.capture, move.moved, peek=True).send == state.send
        move.shield("c", up=False)
        assert receive_exactly(move.client, 4) == b"lost"
    finally:
        move.close()


def capture_before_the_acknowledgement(move: Move) -> tcp.TcpState:
    """Data has arrived, and its acknowledgement is delayed (40 ms): it is caught in that time."""
    for attempt in range(1, 100):
        move.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        move.client.sendall(b"x")
        wait_until(
            lambda wanted=attempt: repair.queued_bytes(move.server, abi.SIOCINQ) >= wanted, "data"
        )
        state = move.capture()
        if state.window.rcv_wup != state.next_expected:
            return state
        move.roll_back(state)
    raise AssertionError("every acknowledgement was quicker")


@pytest.mark.parametrize("ended", [False, True], ids=["established", "half-closed"])
def test_an_acknowledgement_that_was_delayed_is_sent_after_the_move(
    move: Move, ended: bool
) -> None:
    """Or the peer would send it all again, after a timeout that has doubled with each loss."""
    move.build()
    # Nothing of what follows takes so long: what is sent again is so for want of an answer.
    move.c.sysctl("net.ipv4.tcp_rto_min_us", 8_000_000)
    move.connect()
    exchange(move.client, move.server)
    if ended:
        move.server.shutdown(socket.SHUT_WR)
        assert receive_exactly(move.client, 1) == b""
        wait_until(
            lambda: repair.connection_state(move.server) is tcp.TcpConnectionState.FIN_WAIT2,
            "FIN_WAIT2",
        )
    move.move(capture_before_the_acknowledgement(move))
    settle(move.client)
    assert info(move.client, TOTAL_RETRANS) == 0
    assert receive_exactly(move.moved, 1) == b"x"


DEAF = f"""
table inet deaf {{
    chain prerouting {{
        type filter hook prerouting priority raw; policy accept;
        tcp sport {PORT} drop
    }}
}}
"""


@pytest.mark.parametrize("version", [4, 6])
def test_a_handshake_under_way_moves_with_no_larger_window_than_the_client_has(
    version: int,
) -> None:
    """What is sent beyond it is dropped, and comes again only after timeouts."""

    def prepare(client: kinds.End) -> None:
        client.set_option(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    with Course() as course, ExitStack() as stack:
        course.client.call(course.client.nft.run, DEAF)
        client = kinds.dial(course, version, prepare)
        stack.callback(client.close)
        name = FourTuple(Endpoint(SERVER[version], PORT), Endpoint(*client.sock.getsockname()[:2]))
        with course.here.place.call(SocketLookup) as lookup:
            wait_until(lambda: lookup.find(name) is not None, "a request")
        course.client.call(course.client.nft.run, "delete table inet deaf")
        assert len(move_all(course, [], waiting=True)) == 1
        kinds.wait_connected(client)
        server = kinds.accept(course, version)
        assert server is not None
        stack.callback(server.close)
        wait_until(lambda: info(server.sock, SEND_WINDOW), "the client's window")
        assert info(server.sock, SEND_WINDOW) <= 2 * 4096
        greeting = bytes(20_000)
        assert server.sock.send(greeting) == len(greeting)
        assert receive_exactly(client.sock, len(greeting)) == greeting
        assert info(server.sock, TOTAL_RETRANS) == 0
