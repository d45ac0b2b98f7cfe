"""The soak: many connections at once, random traffic, and moves without an end, over a bad wire.

Every connection has two seeded streams, each byte of which is compared when it is read. Some end
one direction early, some do not read for some moves (so that queues fill and windows close), some
wait in the accept queue for some moves. When both streams of one have ended it is closed, and
another is opened. A connection that makes no progress for `STUCK` seconds has failed.
"""

import random
import select
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from netlab.tcp_soak.course import CLIENT, Course
from netlab.tcp_soak.drive import pending_error, receive, send
from netlab.tcp_soak.ends import End
from netlab.tcp_soak.kinds import accept, dial
from netlab.tcp_soak.move import move
from netlab.tcp_soak.resets import Resets
from netlab.wire.impairment import Impairment

BAD: Final = Impairment(loss=0.02, duplicate=0.02, reorder=0.1, delay=0.0003, jitter=0.0003)
CONNECTIONS: Final = 24
STUCK: Final = 60.0
"""Seconds. A wire that loses one packet in fifty lets TCP back off for some of them."""

_LOSSES_AFTER_MS: Final = 20
_BLOCK: Final = 1 << 20
_LONGEST_STREAM: Final = 300_000
_MOST_AT_ONCE: Final = 1 << 16
_SENTENCE: Final = 20_000  # bytes: the most that is written before the next one has its turn
_BETWEEN_MOVES: Final = 0.02  # seconds, at most


@dataclass
class Stream:
    """One direction: what is to be sent, from a random place of the seeded block on."""

    start: int
    length: int
    sent: int = 0
    received: int = 0
    wrong: int = 0
    ended: bool = False  # SHUT_WR was called
    heard_end: bool = False

    @property
    def is_over(self) -> bool:
        return self.heard_end


@dataclass
class Talk:
    """A connection: the client's end, the server's once it is accepted, both directions."""

    version: int
    client: End
    there: Stream
    back: Stream
    port: int
    server: End | None = None
    accepted_after: int = 0  # moves
    deaf_until: int = 0  # move number: until then nobody reads
    heard_at: float = field(default_factory=time.monotonic)

    @property
    def is_over(self) -> bool:
        return self.there.is_over and self.back.is_over


@dataclass
class Tally:
    """What the soak came to. ``moves`` counts connections; ``handovers`` move many at once."""

    moves: int = 0
    handovers: int = 0
    connections: int = 0
    bytes_checked: int = 0
    bytes_wrong: int = 0
    resets: int = 0
    failures: list[str] = field(default_factory=list)
    by_state: Counter[str] = field(default_factory=Counter)

    @property
    def ok(self) -> bool:
        return not (self.bytes_wrong or self.resets or self.failures)


class Soak:
    """A run. ``progress`` is told once a second how far it is. Raises ``MycoError``."""

    def __init__(self, *, seed: int, progress: Callable[[str], None] = lambda _: None) -> None:
        self._dice = random.Random(seed)  # noqa: S311
        self._seed = seed
        self._progress = progress
        self._block = self._dice.randbytes(_BLOCK) * 2
        self._talks: list[Talk] = []
        self.tally = Tally()

    def run(self, moves: int) -> Tally:
        """Until so many connections were moved, and all of them have come to their end."""
        tally = self.tally
        with Course(BAD, seed=self._seed) as course:
            course.notice_losses_after(_LOSSES_AFTER_MS)
            resets = Resets(course.client)
            told = time.monotonic()
            while (tally.moves < moves or self._talks) and not tally.failures:
                if tally.moves < moves:
                    while len(self._talks) < CONNECTIONS:
                        self._talks.append(self._open(course))
                self._let_them_talk(course, self._dice.random() * _BETWEEN_MOVES)
                if tally.moves < moves and not tally.failures:
                    self._move(course)
                if time.monotonic() - told > 1:
                    told = time.monotonic()
                    self._progress(
                        f"{tally.moves} of {moves} moves, {tally.bytes_checked >> 20} MiB checked"
                    )
            tally.resets += len(resets.ports())
            for talk in self._talks:
                talk.client.close()
                if talk.server is not None:
                    talk.server.close()
        return tally

    def _open(self, course: Course) -> Talk:
        dice = self._dice
        version = dice.choice(tuple(CLIENT))
        client = dial(course, version)
        self.tally.connections += 1
        return Talk(
            version,
            client,
            there=self._stream(),
            back=self._stream(),
            port=client.sock.getsockname()[1],
            accepted_after=self.tally.handovers + (dice.randrange(4) if dice.random() < 0.1 else 0),
        )

    def _stream(self) -> Stream:
        dice = self._dice
        length = dice.choice((0, 1, 1000, 50_000, _LONGEST_STREAM, _LONGEST_STREAM))
        return Stream(dice.randrange(_BLOCK), length)

    def _move(self, course: Course) -> None:
        """Everything that the server has, what it has not accepted too."""
        ends = [talk.server for talk in self._talks if talk.server is not None]
        moved = move(course, ends, waiting=True)
        self.tally.handovers += 1
        self.tally.moves += len(moved)
        self.tally.by_state.update(state.state.name for state in moved.ends)
        self.tally.by_state["unaccepted"] += len(moved.waiting)
        for talk in self._talks:
            if self._dice.random() < 0.05:
                talk.deaf_until = self.tally.handovers + self._dice.randrange(1, 6)

    def _let_them_talk(self, course: Course, seconds: float) -> None:
        until = time.monotonic() + seconds
        while True:
            self._accept(course)
            busy = False
            for talk in list(self._talks):
                try:
                    busy |= self._talk(talk)
                except OSError as error:
                    self._failed(talk, str(error))
                if talk.is_over:
                    self._end(talk)
            now = time.monotonic()
            if now > until or self.tally.failures:
                return
            if not busy:
                time.sleep(0.0005)

    def _accept(self, course: Course) -> None:
        """All that may be accepted by now; the queue is in order, so one that waits stops it."""
        for version in CLIENT:
            waiting = [
                talk for talk in self._talks if talk.server is None and talk.version == version
            ]
            if any(talk.accepted_after > self.tally.handovers for talk in waiting):
                continue
            while (end := accept(course, version)) is not None:
                port = end.sock.getpeername()[1]
                talk = next((one for one in waiting if one.port == port), None)
                if talk is None:
                    self.tally.failures.append(f"port {port} connected twice")
                    return
                talk.server = end

    def _talk(self, talk: Talk) -> bool:
        """What goes at the moment, each way; says whether anything did."""
        connected = _is_connected(talk.client)
        busy = False
        if connected:
            busy |= self._write(talk.client, talk.there)
        if talk.server is not None:
            busy |= self._write(talk.server, talk.back)
        if talk.deaf_until <= self.tally.handovers:
            if talk.server is not None:
                busy |= self._read(talk.server, talk.there)
            if connected:
                busy |= self._read(talk.client, talk.back)
        if busy or talk.deaf_until > self.tally.handovers:
            talk.heard_at = time.monotonic()
        elif time.monotonic() - talk.heard_at > STUCK:
            self._failed(talk, f"nothing went on for {STUCK:g} s")
        return busy

    def _write(self, end: End, stream: Stream) -> bool:
        if stream.ended:
            return False
        at = (stream.start + stream.sent) % _BLOCK
        if self._dice.random() < 0.7:
            return False
        left = min(stream.length - stream.sent, self._dice.randrange(1, _SENTENCE))
        taken = send(end, self._block[at : at + left]) if left else 0
        stream.sent += taken
        if stream.sent == stream.length:
            end.sock.shutdown(socket.SHUT_WR)
            stream.ended = True
        return bool(taken) or stream.ended

    def _read(self, end: End, stream: Stream) -> bool:
        if stream.heard_end:
            return False
        data = receive(end, _MOST_AT_ONCE)
        if data is None:
            return False
        if not data:
            stream.heard_end = True
            if stream.received != stream.length:
                raise OSError(f"the end came after {stream.received} of {stream.length} bytes")
            return True
        at = (stream.start + stream.received) % _BLOCK
        wanted = self._block[at : at + len(data)]
        if data != wanted:
            different = sum(one != other for one, other in zip(data, wanted, strict=True))
            self.tally.bytes_wrong += different
        stream.received += len(data)
        self.tally.bytes_checked += len(data)
        return True

    def _end(self, talk: Talk) -> None:
        self._talks.remove(talk)
        talk.client.close()
        if talk.server is not None:
            talk.server.close()

    def _failed(self, talk: Talk, what: str) -> None:
        self.tally.failures.append(
            f"IPv{talk.version} port {talk.port} after {self.tally.handovers} handovers: {what} "
            f"(to the server {talk.there}, to the client {talk.back})"
        )


def _is_connected(client: End) -> bool:
    """Raises ``OSError`` if the connect has failed."""
    poll = select.poll()
    poll.register(client.sock, select.POLLOUT)
    found = poll.poll(0)
    if found and found[0][1] & select.POLLERR:
        number = pending_error(client)
        raise OSError(number, "the client's socket has an error")
    return bool(found and found[0][1] & (select.POLLOUT | select.POLLHUP))
