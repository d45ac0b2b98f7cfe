"""The kinds of connection that the battery is run against: how a pair comes to be, and moves."""

import select
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from netlab.tcp_soak.course import PORT, SERVER, Course
from netlab.tcp_soak.drive import pending_error, wait_for, wait_until
from netlab.tcp_soak.ends import End, Pair
from netlab.tcp_soak.move import move


@dataclass(frozen=True, slots=True)
class Kind:
    """``before``: moves before a check begins; ``at_mark``: at each of its marks. ``adopted``: the
    first one happens while nobody has accepted the connection."""

    before: int = 0
    at_mark: int = 0
    adopted: bool = False


KINDS: Final[Mapping[str, Kind]] = {
    "direct": Kind(),
    "moved before": Kind(before=1),
    "moved in the middle": Kind(at_mark=1),
    "moved 20 times": Kind(before=20, at_mark=20),
    "adopted": Kind(before=1, at_mark=1, adopted=True),
}


def dial(course: Course, version: int, prepare: Callable[[End], None] | None = None) -> End:
    """Begin to connect to the server; the client's end, which ``prepare`` is given before."""
    client = End(course.client_socket(version))
    if prepare is not None:
        prepare(client)
    client.sock.connect_ex((SERVER[version], PORT))
    return client


def wait_connected(client: End) -> None:
    """Wait until a `dial` has come to something. Raises ``AssertionError``."""
    wait_for(client, select.POLLOUT)
    error = pending_error(client)
    assert not error, f"connect: error {error}"


def accept(course: Course, version: int) -> End | None:
    """The next connection out of the accept queue, or None."""
    try:
        return End(course.here.listeners[version].sock.accept()[0])
    except BlockingIOError:
        return None


def make_pair(course: Course, version: int, kind: Kind) -> Pair:
    """A connection of a kind; ``left`` is the client's end, ``right`` is the one that moves.

    No other connection of the course may be in use. Raises ``AssertionError``, ``MycoError``.
    """
    client = dial(course, version)
    wait_connected(client)
    before = kind.before
    if kind.adopted:
        wait_until(lambda: course.here.listeners[version].accept_queue, "an accept queue")
        assert len(move(course, [], waiting=True)) == 1
        before -= 1
    accepted: list[End] = []

    def is_accepted() -> bool:
        if (end := accept(course, version)) is not None:
            accepted.append(end)
        return bool(accepted)

    wait_until(is_accepted, "a connection to accept")
    (server,) = accepted
    assert server.sock.getpeername() == client.sock.getsockname()

    def move_times(count: int) -> None:
        for _ in range(count):
            if not server.is_closed:
                move(course, [server])

    move_times(before)
    for end in (client, server):
        end.set_option(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    return Pair(client, server, lambda: move_times(kind.at_mark))
