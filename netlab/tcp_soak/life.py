"""One connection of a soak, from its SYN to its last acknowledgement.

Each direction has a stream of random bytes that both ends can tell from a seed, so every byte that
arrives is looked at. What the two do is chosen by the connection's own random numbers: talk, let
one direction end early, or leave bytes unread until the queues are full.

The client's buffers are limited before it connects, the server's afterwards, which takes back a
window that was announced. Both at once would be too much for the kernel, moved or not: if either
end drops what the other has under way, each one's acknowledgement is outside of the other's window,
and what they send again is before it, for ever (docs/kernel.md).
"""

import random
import select
import socket
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from mycoproxy.tcp import TcpConnectionState, repair
from netlab.load.content import count_wrong
from netlab.tcp_soak.course import Course
from netlab.tcp_soak.drive import events, pending_error, receive, send
from netlab.tcp_soak.ends import End
from netlab.tcp_soak.kinds import dial

_BLOCK: Final = 1 << 16
_MOST_AT_ONCE: Final = 20_000
#: Bytes that a direction nobody reads is filled with at most; more than the buffers below take.
_ENOUGH: Final = 1 << 20
_BUFFERS: Final = (None, 4096, 32_768, 200_000)


class Manner(StrEnum):
    """What the two ends of a connection do, until it is time to come to an end."""

    TALK = "both talk"
    CLIENT_ENDS = "the client has ended"
    SERVER_ENDS = "the server has ended"
    CLIENT_DOES_NOT_READ = "the client does not read"
    SERVER_DOES_NOT_READ = "the server does not read"
    NOBODY_READS = "nobody reads"
    SILENCE = "nobody says anything"


class _Source:
    """Endless bytes that follow from a seed."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)  # noqa: S311  (not a secret)
        self._block = b""

    def peek(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        while len(self._block) < count:
            self._block += self._random.randbytes(_BLOCK)
        return self._block[:count]

    def advance(self, count: int) -> None:
        self._block = self._block[count:]


@dataclass
class Direction:
    """One of the two streams. Bytes are counted as they are taken and as they arrive."""

    seed: str
    sent: int = 0
    received: int = 0
    wrong: int = 0
    has_ended: bool = False
    end_is_heard: bool = False
    _said: _Source = field(init=False)
    _expected: _Source = field(init=False)

    def __post_init__(self) -> None:
        self._said, self._expected = _Source(self.seed), _Source(self.seed)

    def write(self, sender: End, count: int) -> None:
        """Some more, if there is room."""
        if self.has_ended:
            return
        taken = send(sender, self._said.peek(count))
        self._said.advance(taken)
        self.sent += taken

    def end(self, sender: End) -> None:
        """No more."""
        if not self.has_ended:
            sender.sock.shutdown(socket.SHUT_WR)
            self.has_ended = True

    def read(self, receiver: End, count: int) -> None:
        """What is there; every byte is looked at."""
        if self.end_is_heard:
            return
        found = receive(receiver, count)
        if found == b"":
            self.end_is_heard = True
        elif found:
            self.wrong += count_wrong(self._expected.peek(len(found)), found)
            self._expected.advance(len(found))
            self.received += len(found)


class Life:
    """A connection. ``moves``: so many it goes through; ``server`` is None until accepted."""

    def __init__(self, course: Course, number: int, seed: int) -> None:
        self._random = random.Random(f"{seed} {number}")  # noqa: S311
        self.version = self._random.choice((4, 6))
        self.manner = self._random.choice(list(Manner))
        self.moves = self._random.randint(2, 12)
        self.client = dial(course, self.version, self._limit_buffers)
        self.port: int = self.client.sock.getsockname()[1]
        self.server: End | None = None
        self.there = Direction(f"{seed} {number} there")
        self.back = Direction(f"{seed} {number} back")
        self._words = self._random.randint(1, 200_000)
        self.is_open = False
        self.left_in_time_wait = False

    def __str__(self) -> str:
        return (
            f"connection of port {self.port} (IPv{self.version}, {self.manner}): "
            f"{self.there.received} of {self.there.sent} bytes there, "
            f"{self.back.received} of {self.back.sent} back"
        )

    def _limit_buffers(self, end: End) -> None:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            size = self._random.choice(_BUFFERS)
            if size is not None:
                end.set_option(socket.SOL_SOCKET, option, size)

    def accepted(self, server: End) -> None:
        """The server has its end now."""
        self.server = server
        self._limit_buffers(server)

    @property
    def is_ending(self) -> bool:
        """It has had its moves."""
        return self.moves <= 0

    @property
    def server_is_over(self) -> bool:
        """The server's kernel has nothing left to send, or waits in TIME_WAIT."""
        return self.server is not None and _is_over(self.server)

    @property
    def client_is_over(self) -> bool:
        """As `server_is_over`. A client that has not begun is not."""
        return self.is_open and _is_over(self.client)

    def step(self) -> bool:
        """Do a little; True once all has come to its end. Raises ``OSError`` if it breaks."""
        if not self.is_open:
            if not events(self.client, select.POLLOUT):
                return False
            error = pending_error(self.client)
            if error:
                raise OSError(error, "connect failed")
            self.is_open = True
        self._write()
        self._read()
        return (
            self.is_ending
            and self.there.end_is_heard
            and self.back.end_is_heard
            and self.client_is_over
            and self.server_is_over
        )

    def _write(self) -> None:
        for direction, end, early in (
            (self.there, self.client, Manner.CLIENT_ENDS),
            (self.back, self.server, Manner.SERVER_ENDS),
        ):
            if end is None:
                continue
            if self.is_ending or (self.manner is early and direction.sent > self._words):
                direction.end(end)
            elif (
                self.manner is not Manner.SILENCE and direction.sent - direction.received < _ENOUGH
            ):
                direction.write(end, self._random.randint(1, _MOST_AT_ONCE))

    def _read(self) -> None:
        for direction, end, idle in (
            (self.there, self.server, Manner.SERVER_DOES_NOT_READ),
            (self.back, self.client, Manner.CLIENT_DOES_NOT_READ),
        ):
            is_idle = self.manner in (idle, Manner.NOBODY_READS)
            if end is not None and (self.is_ending or not is_idle):
                direction.read(end, self._random.randint(1, _MOST_AT_ONCE))

    def complaint(self) -> str | None:
        """What is not as it should be at the end, in words."""
        if self.there.received != self.there.sent or self.back.received != self.back.sent:
            return f"{self}: bytes are missing"
        for end in (self.client, self.server):
            error = pending_error(end) if end is not None else 0
            if error and not self.left_in_time_wait:
                return f"{self}: error {error} in the end"
        return None

    def close(self) -> None:
        """Close both ends."""
        self.client.close()
        if self.server is not None:
            self.server.close()


def _is_over(end: End) -> bool:
    # Not POLLHUP, which is there before the last acknowledgement is.
    return end.is_closed or repair.connection_state(end.sock) is TcpConnectionState.CLOSE
