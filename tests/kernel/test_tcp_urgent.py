"""Urgent data (MSG_OOB) moves with its mark, whether the owner has read it or not."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from tcp_lab import DEADLINE, Move, exchange, receive_exactly, settle, wait_until

from mycoproxy import tcp
from mycoproxy.tcp import accept_queue, repair

pytestmark = pytest.mark.root


@pytest.fixture(params=["v4", "v6", "mapped"])
def move(network: Any, request: Any) -> Iterator[Move]:
    made = Move(network, request.param)
    try:
        yield made
    finally:
        made.close()


def send(move: Move, before: bytes, after: bytes) -> None:
    if before:
        move.client.sendall(before)
    move.client.send(b"!", socket.MSG_OOB)
    if after:
        move.client.sendall(after)
    settle(move.client)


@pytest.mark.parametrize(("before", "after"), [(b"before", b"after"), (b"", b"after"), (b"b", b"")])
@pytest.mark.parametrize("inline", [0, 1])
@pytest.mark.parametrize("place", ["moved", "peeked", "rolled back"])
def test_urgent_data_that_waits_to_be_read(
    move: Move, inline: int, before: bytes, after: bytes, place: str
) -> None:
    move.build()
    move.connect()
    move.server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline)
    send(move, before, after)
    if place == "peeked":
        tcp.capture(move.server, peek=True)
        sock = move.server
    elif place == "rolled back":
        move.roll_back(move.capture())
        sock = move.server
    else:
        move.move()
        sock = move.moved
    sock.setblocking(True)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE) == inline
    if not inline:
        assert sock.recv(1, socket.MSG_OOB) == b"!"
    assert receive_exactly(sock, len(before)) == before
    assert receive_exactly(sock, len(after) + inline) == b"!"[:inline] + after
    exchange(move.client, sock)


@pytest.mark.parametrize(("before", "after"), [(b"before", b"after"), (b"", b"after"), (b"b", b"")])
def test_urgent_data_that_was_read_out_of_band_is_not_read_again(
    move: Move, before: bytes, after: bytes
) -> None:
    move.build()
    move.connect()
    send(move, before, after)
    assert move.server.recv(1, socket.MSG_OOB) == b"!"
    move.move()
    assert receive_exactly(move.moved, len(before + after)) == before + after
    exchange(move.client, move.moved)


def test_a_fin_behind_urgent_data_follows_it(move: Move) -> None:
    move.build()
    move.connect()
    send(move, b"before", b"after")
    move.client.shutdown(socket.SHUT_WR)
    wait_until(
        lambda: repair.connection_state(move.server) is tcp.TcpConnectionState.CLOSE_WAIT, "FIN"
    )
    move.move()
    assert move.moved.recv(1, socket.MSG_OOB) == b"!"
    assert receive_exactly(move.moved, 99) == b"beforeafter"
    move.moved.sendall(b"answer")
    assert receive_exactly(move.client, 6) == b"answer"


def test_urgent_data_of_a_connection_that_nobody_has_accepted(move: Move) -> None:
    move.build()
    move.connect()
    send(move, b"before", b"after")
    state = move.capture()
    move.address("b", present=True)
    listener = move.socket_in("b")
    listener.bind(("::" if move.kind == "mapped" else move.server_address, state.local.port))
    listener.listen()
    move._nft("b", "flush table inet lab\n")
    move._nft("b", BOTH_WAYS)
    move.b.call(accept_queue.put, listener, [state])
    move.shield("b", up=False)
    move.server.close()
    listener.settimeout(DEADLINE)
    with listener.accept()[0] as sock:
        assert sock.recv(1, socket.MSG_OOB) == b"!"
        assert receive_exactly(sock, 11) == b"beforeafter"
        exchange(move.client, sock)


BOTH_WAYS = """
table inet lab {
    chain in {
        type filter hook prerouting priority raw; policy accept;
        iif != lo meta l4proto tcp drop
    }
    chain out {
        type filter hook output priority raw; policy accept;
        oif != lo meta l4proto tcp drop
    }
}
"""
