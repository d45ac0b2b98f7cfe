"""Thousands of moves of connections in use, over a bad wire, and every byte looked at.

All connections are at one place, and move together. In between their two ends, and everyone's, have
some milliseconds: one loop, in one thread, so the server stands while it is moved, and so does the
client's task, but not the client's kernel, nor the wire.

Two things do not move, and are stepped around:

* A connection in TIME_WAIT has no descriptor. It is there to acknowledge the peer's last segment
  once more; if that was lost, and the route leads elsewhere, a reset answers. So a move waits until
  the client knows of the end. Should it get there only in the middle of a move, a reset that comes
  of it is counted apart.
* A handshake whose SYN-ACK is lost once more right after the move: nobody repeats it. So while a
  client is connecting, moves happen over a good wire.

A move begins the timeouts of what it moves anew. A connection that waits for one, because a segment
was lost, might never get there if the next move is always sooner; so there is none while one that
has had its moves is long about its end. ``longest_ending`` says how long: a few seconds, as without
moves. The peer does not move, and doubles its timeouts while its segments or their answers are
lost; one that stands at 2 s when its window opens, and loses one segment more, takes 6.
"""

import errno
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from mycoproxy.tcp import TcpConnectionState
from netlab.tcp_soak.course import Course
from netlab.tcp_soak.kinds import accept
from netlab.tcp_soak.life import Life
from netlab.tcp_soak.move import move
from netlab.tcp_soak.resets import Resets
from netlab.wire.impairment import Impairment

BAD: Final = Impairment(loss=0.02, duplicate=0.02, reorder=0.05, delay=0.0003, jitter=0.0003)
CONNECTIONS: Final = 12

_LOSSES_AFTER_MS: Final = 20
_ANSWERED: Final = 0.005  # seconds: an announced handshake is, over a good wire
_PAUSE: Final = 0.0005  # seconds between two looks at everything
_LONGEST_TRAFFIC: Final = 0.02
_TIME_WAIT: Final = 1.0
_LONG: Final = 2.0  # seconds from the last move of a connection to its end
#: Seconds. A window whose opening was lost is asked for at longer and longer intervals.
_TO_THE_END: Final = 90.0
_UNACCEPTED = "unaccepted"
_RESETS = frozenset({errno.ECONNRESET, errno.EPIPE})


@dataclass
class Result:
    """What came of a soak. ``resets``: connections that were reset; ``failures``: connections that
    were, or came to a stop, or had an error or a wrong byte; a move that failed is one too.
    ``longest_ending``: seconds from the last of a connection's moves to its end, at most."""

    seed: int
    moves: int = 0
    bytes_checked: int = 0
    bytes_wrong: int = 0
    resets: int = 0
    failures: int = 0
    seconds: float = 0.0
    connections: int = 0
    segments_delivered: int = 0
    left_in_time_wait: int = 0
    longest_ending: float = 0.0
    moves_by_state: Counter[str] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not (self.bytes_wrong or self.resets or self.failures)


class Soak:
    """``count`` moves. ``progress`` is told in words now and then."""

    def __init__(self, count: int, seed: int, progress: Callable[[str], None]) -> None:
        self._count = count
        self._seed = seed
        self._progress = progress
        self._random = random.Random(seed)  # noqa: S311  (not a secret)
        self._lives: dict[int, Life] = {}
        self._begun: dict[int, float] = {}
        self._reset: set[int] = set()
        self._excused: set[int] = set()
        self.result = Result(seed)

    def run(self) -> Result:
        """Until all moves are done and all connections have ended.

        Raises ``MycoError``, ``OSError`` if a move fails, or the course cannot be built.
        """
        begin = time.monotonic()
        with Course(BAD, seed=self._seed) as course:
            course.notice_losses_after(_LOSSES_AFTER_MS)
            resets = Resets(course.client)
            self._course = course
            try:
                while self.result.moves < self._count:
                    self._fill_up()
                    self._traffic(self._random.uniform(0, _LONGEST_TRAFFIC))
                    self._move()
                self._finish()
                seen = resets.ports() - self._excused
            finally:
                for life in self._lives.values():
                    life.close()
                self.result.seconds = round(time.monotonic() - begin, 3)
        for port in seen - self._reset:
            self._fail(f"a reset was sent to the client of port {port}")
        self.result.resets = len(self._reset | seen)
        return self.result

    def _fill_up(self) -> None:
        while len(self._lives) < CONNECTIONS:
            life = Life(self._course, self.result.connections, self._seed)
            self.result.connections += 1
            self._lives[life.port] = life

    def _traffic(self, seconds: float) -> None:
        """Let everyone do something for so long."""
        if self._random.random() < 0.3 or any(life.is_ending for life in self._lives.values()):
            self._accept()
        end = time.monotonic() + seconds
        while True:
            for life in list(self._lives.values()):
                self._step(life)
            if time.monotonic() > end:
                return
            time.sleep(_PAUSE)

    def _accept(self) -> None:
        for version in (4, 6):
            while (end := accept(self._course, version)) is not None:
                port = end.sock.getpeername()[1]
                if port in self._lives:
                    self._lives[port].accepted(end)
                else:
                    end.close()  # its client has given up

    def _step(self, life: Life) -> None:
        try:
            if life.step():
                self._end(life, life.complaint())
            elif life.is_ending and time.monotonic() > self._begun[life.port] + _TO_THE_END:
                self._end(life, f"{life}: does not come to an end within {_TO_THE_END:g} s")
        except OSError as error:
            if error.errno in _RESETS:
                self._reset.add(life.port)
            self._end(life, f"{life}: {error}")

    def _end(self, life: Life, complaint: str | None) -> None:
        del self._lives[life.port]
        life.close()
        wrong = life.there.wrong + life.back.wrong
        if (begun := self._begun.get(life.port)) is not None:
            taken = round(time.monotonic() - begun, 3)
            self.result.longest_ending = max(self.result.longest_ending, taken)
        self.result.bytes_checked += life.there.received + life.back.received
        self.result.bytes_wrong += wrong
        if wrong and complaint is None:
            complaint = f"{life}: {wrong} bytes are wrong"
        if complaint is not None:
            self._fail(complaint)

    def _fail(self, message: str) -> None:
        self.result.failures += 1
        self.result.messages.append(message)
        self._progress(f"FAILED: {message}")

    def _move(self) -> None:
        self._let_the_slow_end()
        self._let_clients_hear_of_the_end()
        lives = list(self._lives.values())
        accepted = [life for life in lives if life.server is not None]
        ends = [life.server for life in accepted if life.server is not None]
        connecting = any(not life.is_open for life in lives)
        if connecting:
            self._course.impair(Impairment())
        moved = move(self._course, ends, waiting=len(accepted) < len(lives))
        for life, state in zip(accepted, moved.ends, strict=True):
            if state.state is TcpConnectionState.CLOSE and not life.client_is_over:
                life.left_in_time_wait = True
                self._excused.add(life.port)
                self.result.left_in_time_wait += 1
        for life in lives:
            life.moves -= 1
            if life.is_ending:
                self._begun.setdefault(life.port, time.monotonic())
        result, before = self.result, self.result.moves
        result.moves += len(moved)
        result.segments_delivered += moved.lost
        result.moves_by_state.update(state.state.name.lower() for state in moved.ends)
        result.moves_by_state[_UNACCEPTED] += len(moved.waiting)
        if connecting:
            self._traffic(_ANSWERED)
            self._course.impair(BAD)
        if before // 500 != result.moves // 500:
            self._progress(f"{result.moves} moves, {result.connections} connections")

    def _let_the_slow_end(self) -> None:
        while any(
            life.is_ending and time.monotonic() > self._begun[life.port] + _LONG
            for life in self._lives.values()
        ):
            self._traffic(_PAUSE)

    def _let_clients_hear_of_the_end(self) -> None:
        end = time.monotonic() + _TIME_WAIT
        while time.monotonic() < end and any(
            life.server_is_over and not life.client_is_over for life in self._lives.values()
        ):
            self._traffic(0)

    def _finish(self) -> None:
        now = time.monotonic()
        for life in self._lives.values():
            life.moves = 0
            self._begun.setdefault(life.port, now)
        while self._lives:
            self._traffic(_PAUSE)
