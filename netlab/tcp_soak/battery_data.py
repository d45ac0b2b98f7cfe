"""The battery's checks of data: all bytes arrive, once, in order, and a writer has to wait."""

import random
import select
import socket
from collections.abc import Callable
from typing import Final

from netlab.tcp_soak.drive import (
    Transfer,
    events,
    expect,
    expect_silence,
    fill,
    queued,
    receive_exactly,
    run,
    send,
    send_all,
    settle,
    transfer,
    wait_for,
    wait_until,
)
from netlab.tcp_soak.ends import Pair

_LARGE: Final = random.Random(1).randbytes(2_000_000)  # noqa: S311
_MEDIUM: Final = _LARGE[:300_000]


def one_byte_each_way(pair: Pair) -> None:
    """The least there is."""
    for sender, receiver in ((pair.left, pair.right), (pair.right, pair.left)):
        send_all(sender, b"x")
        pair.move()
        expect(receiver, b"x")
        expect_silence(receiver)


def an_empty_write_says_nothing(pair: Pair) -> None:
    """It is no end of the stream."""
    assert pair.left.sock.send(b"") == 0
    pair.move()
    send_all(pair.left, b"y")
    expect(pair.right, b"y")
    expect_silence(pair.right)


def any_buffer_can_be_sent(pair: Pair) -> None:
    """Not only ``bytes``; and several at once."""
    pair.left.sock.send(bytearray(b"1"))
    pair.left.sock.send(memoryview(b"2"))
    pair.move()
    pair.left.sock.sendmsg([b"34", b"", b"5"])
    expect(pair.right, b"12345")


def tiny_writes_keep_their_order(pair: Pair) -> None:
    """One byte at a time, with Nagle's algorithm and without."""
    data = _LARGE[:400]
    for number, byte in enumerate(data):
        send_all(pair.left, bytes([byte]))
        if number == len(data) // 2:
            pair.move()
            pair.left.set_option(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    expect(pair.right, data)


def tiny_reads_lose_nothing(pair: Pair) -> None:
    """A byte at a time, out of a queue that moves half read."""
    data = _LARGE[:200]
    send_all(pair.left, data)
    half = b"".join(receive_exactly(pair.right, 1) for _ in data[:100])
    pair.move()
    assert half + b"".join(receive_exactly(pair.right, 1) for _ in data[100:]) == data


def a_large_transfer(pair: Pair) -> None:
    """Far more than the buffers hold, the reader as quick as the writer."""
    transfer(pair, _LARGE, moves=2)


def both_directions_at_once(pair: Pair) -> None:
    """Each in pieces of its own random sizes."""
    run(
        [
            Transfer(pair.left, pair.right, _MEDIUM, seed=1, most=1 << 14),
            Transfer(pair.right, pair.left, _MEDIUM[::-1], seed=2, most=1 << 14),
        ],
        pair,
        moves=2,
    )


def echo(pair: Pair) -> None:
    """Question and answer, moved with the question under way and with the answer."""
    for number in range(20):
        message = b"round %d " % number * (1 + number * 50)
        send_all(pair.left, message)
        if number == 5:
            pair.move()
        expect(pair.right, message)
        send_all(pair.right, message[::-1])
        if number == 10:
            pair.move()
        expect(pair.left, message[::-1])


def a_writer_waits_for_its_reader(pair: Pair) -> None:
    """Full to the last byte; then room is made, and the writer hears of it."""
    data = fill(pair.left, seed=1)
    pair.move()
    # Moved queues may take less memory than they did: then there is room for some more.
    data += fill(pair.left, seed=2)
    assert not events(pair.left, select.POLLOUT)
    assert send(pair.left, b"x") == 0
    expect(pair.right, data)
    wait_for(pair.left, select.POLLOUT)
    send_all(pair.left, b"more")
    expect(pair.right, b"more")


def both_writers_wait(pair: Pair) -> None:
    """Both full at once, and moved so; neither direction hinders the other."""
    there = fill(pair.left, seed=1)
    back = fill(pair.right, seed=2)
    pair.move()
    expect(pair.left, back)
    send_all(pair.right, b"after")
    expect(pair.left, b"after")
    expect(pair.right, there)
    send_all(pair.left, b"after")
    expect(pair.right, b"after")


def a_little_room_is_made_at_a_time(pair: Pair) -> None:
    """The reader is slow, and the window closes again and again."""
    data = fill(pair.left, seed=3)
    arrived = b""
    for number in range(1, 11):
        arrived += receive_exactly(pair.right, len(data) // 10)
        if number in (3, 7):
            pair.move()
    expect(pair.right, data[len(arrived) :])
    assert data.startswith(arrived)
    transfer(pair, _MEDIUM)


def a_small_receive_buffer(pair: Pair) -> None:
    """The smallest windows there are."""
    pair.right.set_option(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    transfer(pair, _MEDIUM[:30_000], moves=1, most=4096)


def a_small_send_buffer(pair: Pair) -> None:
    """A writer that has to wait all the time."""
    pair.left.set_option(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    transfer(pair, _MEDIUM, moves=1)


def a_look_takes_nothing_away(pair: Pair) -> None:
    """MSG_PEEK, before a move and after it."""
    send_all(pair.left, b"look at me")
    wait_until(lambda: queued(pair.right) == 10, "10 bytes")
    assert pair.right.sock.recv(4, socket.MSG_PEEK) == b"look"
    pair.move()
    assert pair.right.sock.recv(100, socket.MSG_PEEK) == b"look at me"
    expect(pair.right, b"look ")
    assert pair.right.sock.recv(100, socket.MSG_PEEK) == b"at me"
    assert queued(pair.right) == 5
    expect(pair.right, b"at me")
    expect_silence(pair.right)


def names_stay(pair: Pair) -> None:
    """Each end is what the other calls its peer."""

    def names() -> tuple[object, ...]:
        return (
            pair.left.sock.getsockname(),
            pair.left.sock.getpeername(),
            pair.right.sock.getsockname(),
            pair.right.sock.getpeername(),
        )

    before = names()
    assert before[:2] == before[3:1:-1]
    pair.move()
    assert names() == before


def what_was_corked_comes_when_it_is_let_go(pair: Pair) -> None:
    """TCP_CORK: the last, short segment waits in the send queue."""
    pair.left.set_option(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    send_all(pair.left, b"corked")
    pair.move()
    send_all(pair.left, b" bytes")
    pair.left.set_option(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    expect(pair.right, b"corked bytes")
    settle(pair.left)


def a_pause_changes_nothing(pair: Pair) -> None:
    """Everything is acknowledged on both sides; then it goes on."""
    transfer(pair, _MEDIUM)
    settle(pair.left)
    pair.move()
    pair.move()
    transfer(pair.flipped(), _MEDIUM)
    transfer(pair, _MEDIUM)


CHECKS: Final[tuple[Callable[[Pair], None], ...]] = (
    one_byte_each_way,
    an_empty_write_says_nothing,
    any_buffer_can_be_sent,
    tiny_writes_keep_their_order,
    tiny_reads_lose_nothing,
    a_large_transfer,
    both_directions_at_once,
    echo,
    a_writer_waits_for_its_reader,
    both_writers_wait,
    a_little_room_is_made_at_a_time,
    a_small_receive_buffer,
    a_small_send_buffer,
    a_look_takes_nothing_away,
    names_stay,
    what_was_corked_comes_when_it_is_let_go,
    a_pause_changes_nothing,
)
