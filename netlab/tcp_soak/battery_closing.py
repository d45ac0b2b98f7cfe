"""The battery's checks of endings: half-closed, orderly, at once, and broken off."""

import random
import select
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import Final

from netlab.tcp_soak.drive import (
    Transfer,
    events,
    expect,
    expect_end,
    expect_reset,
    fill,
    pending_error,
    queued,
    receive,
    run,
    send,
    send_all,
    settle,
    transfer,
    wait_for,
    wait_until,
)
from netlab.tcp_soak.ends import End, Pair

_DATA: Final = random.Random(2).randbytes(300_000)  # noqa: S311
_NO_LINGER: Final = struct.pack("ii", 1, 0)


def _is_over(end: End) -> bool:
    """Both directions have ended, and the kernel has nothing left to do for it."""
    return bool(events(end, 0) & select.POLLHUP)


def the_end_comes_after_the_last_byte(pair: Pair) -> None:
    """And once: the reader sees it again and again, but nothing behind it."""
    send_all(pair.left, b"last words")
    pair.left.sock.shutdown(socket.SHUT_WR)
    pair.move()
    expect(pair.right, b"last words")
    expect_end(pair.right)
    pair.move()
    expect_end(pair.right)


def the_end_alone(pair: Pair) -> None:
    """Nothing was ever said."""
    pair.left.sock.shutdown(socket.SHUT_WR)
    pair.move()
    expect_end(pair.right)


def nothing_can_be_sent_after_the_end(pair: Pair) -> None:
    """EPIPE; and to say it twice does no harm."""
    pair.left.sock.shutdown(socket.SHUT_WR)
    pair.move()
    try:
        send(pair.left, b"x")
    except BrokenPipeError:
        pass
    else:
        raise AssertionError("EPIPE is wanted after SHUT_WR")
    pair.left.sock.shutdown(socket.SHUT_WR)
    expect_end(pair.right)


def the_other_direction_goes_on(pair: Pair) -> None:
    """Half-closed, and moved so, with data under way."""
    send_all(pair.left, b"that is all")
    pair.left.sock.shutdown(socket.SHUT_WR)
    transfer(pair.flipped(), _DATA, moves=2)
    expect(pair.right, b"that is all")
    expect_end(pair.right)
    transfer(pair.flipped(), _DATA, moves=1)
    pair.right.sock.shutdown(socket.SHUT_WR)
    pair.move()
    expect_end(pair.left)


def an_answer_to_an_ended_question(pair: Pair) -> None:
    """The peer speaks first after the end has reached it."""
    pair.left.sock.shutdown(socket.SHUT_WR)
    expect_end(pair.right)
    pair.move()
    send_all(pair.right, b"answer")
    pair.move()
    expect(pair.left, b"answer")
    pair.right.sock.shutdown(socket.SHUT_WR)
    expect_end(pair.left)
    expect_end(pair.right)


def the_end_behind_a_full_queue(pair: Pair) -> None:
    """The peer cannot be told yet."""
    data = fill(pair.left, seed=1)
    pair.left.sock.shutdown(socket.SHUT_WR)
    pair.move()
    send_all(pair.right, b"still there?")
    expect(pair.left, b"still there?")
    pair.move()
    expect(pair.right, data)
    expect_end(pair.right)


def the_end_before_a_full_queue(pair: Pair) -> None:
    """One has ended, the other's window is closed: the state of a slow download."""
    pair.left.sock.shutdown(socket.SHUT_WR)
    expect_end(pair.right)
    data = fill(pair.right, seed=2)
    pair.move()
    data += fill(pair.right, seed=3)
    pair.right.sock.shutdown(socket.SHUT_WR)
    pair.move()
    expect(pair.left, data)
    expect_end(pair.left)


def both_end_at_once(pair: Pair) -> None:
    """Neither knows of the other's end when it says its own."""
    pair.left.sock.shutdown(socket.SHUT_WR)
    pair.right.sock.shutdown(socket.SHUT_WR)
    pair.move()
    expect_end(pair.left)
    expect_end(pair.right)
    pair.move()
    for end in (pair.left, pair.right):
        wait_until(partial(_is_over, end), "the end of both directions")
        expect_end(end)
        assert pending_error(end) == 0


def both_end_at_once_with_data_under_way(pair: Pair) -> None:
    """And each reads the other's to the last byte."""
    there, back = fill(pair.left, seed=1), fill(pair.right, seed=2)
    pair.left.sock.shutdown(socket.SHUT_WR)
    pair.right.sock.shutdown(socket.SHUT_WR)
    pair.move()
    expect(pair.left, back)
    expect_end(pair.left)
    pair.move()
    expect(pair.right, there)
    expect_end(pair.right)


def orderly_end_one_after_the_other(pair: Pair) -> None:
    """Question, end, answer, end; no error is left."""
    send_all(pair.left, b"question")
    pair.left.sock.shutdown(socket.SHUT_WR)
    expect(pair.right, b"question")
    expect_end(pair.right)
    send_all(pair.right, b"answer")
    pair.move()
    pair.right.sock.shutdown(socket.SHUT_WR)
    pair.move()
    expect(pair.left, b"answer")
    expect_end(pair.left)
    for end in (pair.left, pair.right):
        wait_until(partial(_is_over, end), "the end of both directions")
        assert pending_error(end) == 0


def close_is_an_end(pair: Pair) -> None:
    """close(2) with nothing left to read. The peer may then close too."""
    send_all(pair.left, b"bye")
    settle(pair.left)
    pair.move()
    pair.left.close()
    expect(pair.right, b"bye")
    expect_end(pair.right)
    assert pending_error(pair.right) == 0
    pair.right.close()


def close_does_not_take_back_what_was_sent(pair: Pair) -> None:
    """The kernel goes on sending for a socket that nobody has any more."""
    data = fill(pair.left, seed=4)
    pair.move()
    pair.left.close()
    expect(pair.right, data)
    expect_end(pair.right)


def writing_to_a_closed_peer_breaks(pair: Pair) -> None:
    """First it is answered with a reset, then it is EPIPE."""
    pair.move()
    pair.right.close()
    expect_end(pair.left)
    send_all(pair.left, b"anyone?")
    wait_until(lambda: events(pair.left, 0) & select.POLLERR, "an answer")
    try:
        send(pair.left, b"x")
    except (BrokenPipeError, ConnectionResetError):
        pass
    else:
        raise AssertionError("EPIPE or ECONNRESET is wanted")


def close_with_unread_data_is_a_reset(pair: Pair) -> None:
    """RFC 2525, 2.17: whoever sent it has to know."""
    send_all(pair.left, b"unread")
    wait_until(lambda: queued(pair.right) == 6, "6 bytes")
    settle(pair.left)
    pair.move()
    pair.right.close()
    wait_until(lambda: events(pair.left, 0) & select.POLLERR, "a reset")
    pair.move()
    expect_reset(pair.left)


def a_reset_is_seen_as_one(pair: Pair) -> None:
    """Broken off by SO_LINGER with a time of 0."""
    pair.move()
    pair.right.set_option(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    pair.right.close()
    wait_until(lambda: events(pair.left, 0) & select.POLLERR, "a reset")
    pair.move()
    expect_reset(pair.left)


def a_reset_takes_no_data_away(pair: Pair) -> None:
    """What had arrived before can be read, then the error."""
    send_all(pair.right, b"before")
    wait_until(lambda: queued(pair.left) == 6, "6 bytes")
    settle(pair.right)
    pair.right.set_option(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    pair.move()
    pair.right.close()
    wait_until(lambda: events(pair.left, 0) & select.POLLERR, "a reset")
    pair.move()
    expect(pair.left, b"before")
    expect_reset(pair.left)


def reading_can_be_shut_down(pair: Pair) -> None:
    """SHUT_RD is no matter of the peer's, and does not stop writing."""
    pair.left.sock.shutdown(socket.SHUT_RD)
    assert receive(pair.left) == b""
    pair.move()
    assert receive(pair.left) == b""
    send_all(pair.left, b"one-way")
    expect(pair.right, b"one-way")
    pair.left.sock.shutdown(socket.SHUT_WR)
    expect_end(pair.right)


def a_reader_is_told_of_the_end(pair: Pair) -> None:
    """EOF is an event: POLLIN and POLLRDHUP, and stays one."""
    assert not events(pair.right, select.POLLIN | select.POLLRDHUP)
    pair.left.sock.shutdown(socket.SHUT_WR)
    pair.move()
    wait_for(pair.right, select.POLLRDHUP)
    assert events(pair.right, select.POLLIN) == select.POLLIN
    pair.move()
    assert events(pair.right, select.POLLRDHUP) == select.POLLRDHUP
    assert events(pair.right, select.POLLOUT) == select.POLLOUT


def data_both_ways_then_both_ends(pair: Pair) -> None:
    """A whole life."""
    run(
        [
            Transfer(pair.left, pair.right, _DATA, seed=1, most=1 << 15),
            Transfer(pair.right, pair.left, _DATA[::-1], seed=2, most=1 << 13),
        ],
        pair,
        moves=2,
    )
    orderly_end_one_after_the_other(pair)


CHECKS: Final[tuple[Callable[[Pair], None], ...]] = (
    the_end_comes_after_the_last_byte,
    the_end_alone,
    nothing_can_be_sent_after_the_end,
    the_other_direction_goes_on,
    an_answer_to_an_ended_question,
    the_end_behind_a_full_queue,
    the_end_before_a_full_queue,
    both_end_at_once,
    both_end_at_once_with_data_under_way,
    orderly_end_one_after_the_other,
    close_is_an_end,
    close_does_not_take_back_what_was_sent,
    writing_to_a_closed_peer_breaks,
    close_with_unread_data_is_a_reset,
    a_reset_is_seen_as_one,
    a_reset_takes_no_data_away,
    reading_can_be_shut_down,
    a_reader_is_told_of_the_end,
    data_both_ways_then_both_ends,
)
