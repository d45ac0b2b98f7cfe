"""The battery's checks of readiness: poll and epoll, level- and edge-triggered, SO_RCVLOWAT.

After a move an edge-triggered epoll may report what it has reported before; a program has to bear
that anyway (epoll(7)). It must not keep anything to itself.
"""

import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from netlab.tcp_soak.drive import (
    DEADLINE,
    events,
    expect,
    expect_end,
    expect_silence,
    fill,
    queued,
    receive,
    send_all,
    wait_for,
    wait_until,
)
from netlab.tcp_soak.ends import End, Pair


@contextmanager
def _watching(end: End, wanted: int) -> Iterator[select.epoll]:
    with select.epoll() as epoll:
        end.watch(epoll, wanted)
        yield epoll
        if not end.is_closed:
            end.unwatch(epoll)


def _event(epoll: select.epoll, wanted: int) -> None:
    """One of ``wanted`` is reported; others before it are looked over."""

    def comes() -> bool:
        return any(found & wanted for _, found in epoll.poll(DEADLINE))

    wait_until(comes, f"event {wanted:#x}")


def _drain(end: End) -> bytes:
    parts = []
    while part := receive(end):
        parts.append(part)
    return b"".join(parts)


def poll_says_what_can_be_done(pair: Pair) -> None:
    """Readable only with data, writable with room."""
    assert events(pair.right, select.POLLIN | select.POLLOUT) == select.POLLOUT
    send_all(pair.left, b"data")
    wait_for(pair.right, select.POLLIN)
    pair.move()
    assert events(pair.right, select.POLLIN | select.POLLOUT) == select.POLLIN | select.POLLOUT
    expect(pair.right, b"data")
    assert events(pair.right, select.POLLIN | select.POLLOUT) == select.POLLOUT


def level_triggered_epoll_repeats_itself(pair: Pair) -> None:
    """Until everything is read."""
    with _watching(pair.right, select.EPOLLIN) as epoll:
        assert epoll.poll(0) == []
        send_all(pair.left, b"data")
        _event(epoll, select.EPOLLIN)
        pair.move()
        for _ in range(3):
            _event(epoll, select.EPOLLIN)
        expect(pair.right, b"da")
        _event(epoll, select.EPOLLIN)
        expect(pair.right, b"ta")
        assert epoll.poll(0) == []


def level_triggered_epoll_waits_for_room(pair: Pair) -> None:
    """EPOLLOUT comes when the peer has read."""
    data = fill(pair.left, seed=1)
    pair.move()
    data += fill(pair.left, seed=2)
    with _watching(pair.left, select.EPOLLOUT) as epoll:
        assert epoll.poll(0) == []
        pair.move()
        data += fill(pair.left, seed=3)
        expect(pair.right, data)
        _event(epoll, select.EPOLLOUT)


def edge_triggered_epoll_tells_of_each_arrival(pair: Pair) -> None:
    """Whether it was looked at before the move or not."""
    with _watching(pair.right, select.EPOLLIN | select.EPOLLET) as epoll:
        send_all(pair.left, b"one")
        _event(epoll, select.EPOLLIN)
        pair.move()
        send_all(pair.left, b"two")
        wait_until(lambda: queued(pair.right) == 6, "6 bytes")
        _event(epoll, select.EPOLLIN)
        assert _drain(pair.right) == b"onetwo"
        send_all(pair.left, b"three")
        _event(epoll, select.EPOLLIN)
        assert _drain(pair.right) == b"three"


def edge_triggered_epoll_forgets_nothing_that_came_before_a_move(pair: Pair) -> None:
    """Arrived, not reported yet, moved: filling the queue on the target wakes nobody by itself."""
    with _watching(pair.right, select.EPOLLIN | select.EPOLLET) as epoll:
        send_all(pair.left, b"one")
        wait_until(lambda: queued(pair.right) == 3, "3 bytes")
        pair.move()
        _event(epoll, select.EPOLLIN)
        assert _drain(pair.right) == b"one"


def edge_triggered_epoll_tells_of_what_comes_during_a_move(pair: Pair) -> None:
    """Sent just before it: it meets the hold, or the target."""
    with _watching(pair.right, select.EPOLLIN | select.EPOLLET) as epoll:
        send_all(pair.left, b"one")
        pair.move()
        _event(epoll, select.EPOLLIN)
        wait_until(lambda: queued(pair.right) == 3, "3 bytes")
        assert _drain(pair.right) == b"one"


def edge_triggered_epoll_tells_of_room(pair: Pair) -> None:
    """EPOLLOUT comes once after the writer was blocked."""
    data = fill(pair.left, seed=1)
    with _watching(pair.left, select.EPOLLOUT | select.EPOLLET) as epoll:
        pair.move()
        data += fill(pair.left, seed=2)
        while epoll.poll(0):
            pass
        expect(pair.right, data)
        _event(epoll, select.EPOLLOUT)


def edge_triggered_epoll_tells_of_the_end(pair: Pair) -> None:
    """EPOLLRDHUP, once it is there, on whichever side of a move."""
    with _watching(pair.right, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET) as epoll:
        send_all(pair.left, b"last")
        pair.left.sock.shutdown(socket.SHUT_WR)
        pair.move()
        _event(epoll, select.EPOLLRDHUP)
        expect(pair.right, b"last")
        expect_end(pair.right)


def edge_triggered_epoll_tells_of_an_end_that_came_before_a_move(pair: Pair) -> None:
    """Arrived, not reported yet, moved."""
    with _watching(pair.right, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET) as epoll:
        pair.left.sock.shutdown(socket.SHUT_WR)
        wait_for(pair.right, select.POLLRDHUP)
        pair.move()
        _event(epoll, select.EPOLLRDHUP)
        expect_end(pair.right)


def a_one_shot_event_is_one(pair: Pair) -> None:
    """EPOLLONESHOT, armed on one side of a move and again on the other."""
    with _watching(pair.right, select.EPOLLIN | select.EPOLLONESHOT) as epoll:
        send_all(pair.left, b"one")
        _event(epoll, select.EPOLLIN)
        assert epoll.poll(0) == []
        pair.move()
        pair.right.rewatch(epoll, select.EPOLLIN | select.EPOLLONESHOT)
        _event(epoll, select.EPOLLIN)
        expect(pair.right, b"one")


def too_little_does_not_wake(pair: Pair) -> None:
    """SO_RCVLOWAT: readable from so many bytes on, or at the end of the stream."""
    pair.right.set_option(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
    send_all(pair.left, b"12345")
    wait_until(lambda: queued(pair.right) == 5, "5 bytes")
    assert not events(pair.right, select.POLLIN)
    pair.move()
    assert pair.right.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 10
    assert not events(pair.right, select.POLLIN)
    send_all(pair.left, b"67890")
    wait_for(pair.right, select.POLLIN)
    assert queued(pair.right) == 10
    expect(pair.right, b"1234567890")
    send_all(pair.left, b"rest")
    pair.left.sock.shutdown(socket.SHUT_WR)
    pair.move()
    wait_for(pair.right, select.POLLIN)
    expect(pair.right, b"rest")
    expect_end(pair.right)


def too_much_unsent_is_not_writable(pair: Pair) -> None:
    """TCP_NOTSENT_LOWAT: a full window leaves a writer unwritable long before its buffer is."""
    pair.left.set_option(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 16384)
    data = fill(pair.left, seed=1)
    pair.move()
    data += fill(pair.left, seed=2)
    assert not events(pair.left, select.POLLOUT)
    expect(pair.right, data)
    wait_for(pair.left, select.POLLOUT)
    send_all(pair.left, b"x")
    expect(pair.right, b"x")
    expect_silence(pair.right)


CHECKS: Final[tuple[Callable[[Pair], None], ...]] = (
    poll_says_what_can_be_done,
    level_triggered_epoll_repeats_itself,
    level_triggered_epoll_waits_for_room,
    edge_triggered_epoll_tells_of_each_arrival,
    edge_triggered_epoll_forgets_nothing_that_came_before_a_move,
    edge_triggered_epoll_tells_of_what_comes_during_a_move,
    edge_triggered_epoll_tells_of_room,
    edge_triggered_epoll_tells_of_the_end,
    edge_triggered_epoll_tells_of_an_end_that_came_before_a_move,
    a_one_shot_event_is_one,
    too_little_does_not_wake,
    too_much_unsent_is_not_writable,
)
