"""Random traffic, random half-closes, moves at random moments, over a wire that loses, doubles and
reorders: both streams come out as they went in.

MYCOPROXY_EXAMPLES: so many scripts instead of the usual few. The scripts are new ones each time
(a run that repeats itself would find what it found before); a script that fails is printed. How the
wire treats each packet is not part of it.
"""

import hashlib
import os
import random
import select
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from tcp_courses import Courses

from mycoproxy.tcp import TcpConnectionState
from netlab.tcp_soak.course import Course
from netlab.tcp_soak.drive import (
    events,
    expect_end,
    pending_error,
    queued,
    receive,
    send,
    wait_for,
    wait_until,
)
from netlab.tcp_soak.ends import End
from netlab.tcp_soak.kinds import accept, dial, wait_connected
from netlab.tcp_soak.move import move
from netlab.wire.impairment import Impairment

pytestmark = pytest.mark.root

BAD = Impairment(loss=0.03, duplicate=0.03, reorder=0.1, delay=0.0005, jitter=0.0005)
EXAMPLES = int(os.environ.get("MYCOPROXY_EXAMPLES", "40"))

Side = Literal["client", "server"]


@dataclass(frozen=True)
class Send:
    """Write as much of so many bytes as there is room for."""

    side: Side
    count: int


@dataclass(frozen=True)
class Read:
    """Read at most so many bytes, if any are there."""

    side: Side
    count: int


@dataclass(frozen=True)
class ShutDown:
    """Say that no more will be sent."""

    side: Side


@dataclass(frozen=True)
class Wait:
    """Until what was sent to this side begins to arrive."""

    side: Side


@dataclass(frozen=True)
class Accept:
    """The server accepts the connection; before, it has no end of it."""


@dataclass(frozen=True)
class Move:
    """Move the server, whatever state the connection is in."""


Step = Send | Read | ShutDown | Wait | Accept | Move

sides = st.sampled_from(("client", "server"))
sizes = st.one_of(st.integers(1, 20), st.integers(1, 5_000), st.integers(1, 400_000))
steps = st.one_of(
    st.builds(Send, sides, sizes),
    st.builds(Read, sides, sizes),
    st.builds(Wait, sides),
    st.builds(Move),
    st.builds(Send, sides, sizes),
    st.builds(Move),
    st.builds(ShutDown, sides),
    st.just(Accept()),
)
scripts = st.lists(steps, min_size=1, max_size=40)


@dataclass
class Party:
    """One end, and the two streams as it knows them."""

    end: End | None
    source: random.Random
    sent: int = 0
    received: int = 0
    said: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    heard: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    is_done: bool = False
    has_heard_all: bool = False

    def send(self, count: int) -> None:
        if self.end is None or self.is_done:
            return
        while count:
            data = self.source.randbytes(min(count, 1 << 16))
            taken = send(self.end, data)
            self.said.update(data[:taken])
            self.sent += taken
            count -= len(data)
            if taken < len(data):
                return

    def read(self, count: int) -> None:
        if self.end is None or self.has_heard_all:
            return
        found = receive(self.end, count)
        if found is None:
            return
        self.heard.update(found)
        self.received += len(found)
        self.has_heard_all = not found

    def shut_down(self) -> None:
        if self.end is None or self.is_done:
            return
        wait_connected(self.end)
        self.end.sock.shutdown(socket.SHUT_WR)
        self.is_done = True


class Conversation:
    """A connection that a script is carried out on."""

    def __init__(self, course: Course, version: int, seed: int) -> None:
        self._course = course
        self._version = version
        self.client = Party(dial(course, version), random.Random(seed))
        self.server = Party(None, random.Random(seed + 1))
        self.left_in_time_wait = False

    def carry_out(self, step: Step) -> None:
        match step:
            case Send(side, count):
                self._party(side).send(count)
            case Read(side, count):
                self._party(side).read(count)
            case ShutDown(side):
                self._party(side).shut_down()
            case Wait(side):
                self._wait(self._party(side), self._party(side, other=True))
            case Accept():
                self._accept()
            case Move():
                self._move()

    def _move(self) -> None:
        """Two things do not move, and are not tried here: what has no descriptor any more but waits
        in TIME_WAIT in case its last acknowledgement was lost; and an answer to a client's SYN that
        is lost once more after the move, which nobody repeats."""
        server, client = self.server.end, self.client.end
        assert client is not None
        if server is not None:
            if _is_over(server):
                wait_until(partial(_is_over, client), "the client's end")
            (state,) = move(self._course, [server]).ends
            self.left_in_time_wait |= state.state is TcpConnectionState.CLOSE
        elif self._is_open():
            move(self._course, [], waiting=True)
        else:
            self._course.impair(Impairment())
            move(self._course, [], waiting=True)
            wait_connected(client)
            self._course.impair(BAD)

    def _is_open(self) -> bool:
        assert self.client.end is not None
        return bool(events(self.client.end, select.POLLOUT))

    def _party(self, side: Side, *, other: bool = False) -> Party:
        return self.client if (side == "client") is not other else self.server

    def _wait(self, hearer: Party, speaker: Party) -> None:
        end = hearer.end
        if end is not None and speaker.sent > hearer.received:
            wait_until(lambda: queued(end), "bytes to arrive")

    def _accept(self) -> None:
        def is_accepted() -> bool:
            self.server.end = self.server.end or accept(self._course, self._version)
            return self.server.end is not None

        wait_until(is_accepted, "a connection to accept")

    def finish(self) -> None:
        """Both say that they are done, and read to the end; then both ends are in order."""
        self._accept()
        for party in (self.client, self.server):
            party.shut_down()
        for one, other in ((self.client, self.server), (self.server, self.client)):
            assert one.end is not None
            while not one.has_heard_all:
                wait_for(one.end, select.POLLIN)
                one.read(1 << 20)
            expect_end(one.end)
            assert one.received == other.sent
            assert one.heard.digest() == other.said.digest()
        for party in (self.client, self.server):
            end = party.end
            assert end is not None
            wait_until(partial(_is_over, end), "both directions' end")
            assert self.left_in_time_wait or pending_error(end) == 0

    def close(self) -> None:
        for party in (self.client, self.server):
            if party.end is not None:
                party.end.close()


def _is_over(end: End) -> bool:
    return bool(events(end, 0) & select.POLLHUP)


@pytest.fixture(scope="module")
def courses() -> Iterator[Courses]:
    made = Courses(BAD)
    yield made
    made.close()


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=False,
    database=None,
    print_blob=True,
    # Not shrinking: the wire is not repeatable, and each try may take seconds.
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(script=scripts, version=st.sampled_from((4, 6)), seed=st.integers(0, 1 << 32))
@pytest.mark.timeout(120 + 5 * EXAMPLES)
def test_streams_agree_whatever_happens(
    courses: Courses, script: list[Step], version: int, seed: int
) -> None:
    note(f"{len(script)} steps, IPv{version}")
    try:
        conversation = Conversation(courses.course, version, seed)
        try:
            assert conversation.client.end is not None
            port = conversation.client.end.sock.getsockname()[1]
            for step in script:
                conversation.carry_out(step)
            conversation.finish()
            assert conversation.left_in_time_wait or port not in courses.resets.ports()
        finally:
            conversation.close()
    except BaseException:
        courses.close()
        raise
