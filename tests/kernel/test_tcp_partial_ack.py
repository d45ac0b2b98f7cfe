"""A send queue whose first segment is acknowledged in part: the kernel keeps it whole, and counts
what it copies of it in its own way."""

import random
import socket
from collections.abc import Iterator

import pytest

from mycoproxy.tcp import capture, inject
from mycoproxy.tcp.segments import ACK, segment
from netlab.tcp_soak.course import Course
from netlab.tcp_soak.drive import expect, send_all, settle
from netlab.tcp_soak.ends import Pair
from netlab.tcp_soak.kinds import KINDS, Kind, make_pair
from netlab.wire.impairment import Impairment

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def course() -> Iterator[Course]:
    with Course() as made:
        yield made


def write_unheard(course: Course, pair: Pair, sizes: tuple[int, ...]) -> bytes:
    """The server writes; nothing of it arrives."""
    pair.right.set_option(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    settle(pair.right)
    course.impair(Impairment(loss=1))
    data = random.Random(1).randbytes(sum(sizes))
    for number, size in enumerate(sizes):
        begin = sum(sizes[:number])
        send_all(pair.right, data[begin : begin + size])
    return data


def acknowledge(course: Course, pair: Pair, count: int) -> None:
    """As the client would, but not at a segment's border."""
    call = course.here.place.call
    state = call(capture, pair.right.sock, peek=True)
    scale = state.negotiated.window_scale
    assert scale is not None
    call(
        inject,
        [
            segment(
                state.connection,
                flags=ACK,
                sequence=state.receive.next,
                acknowledgement=state.send.una + count,
                window=state.window.snd_wnd >> scale.send,
            )
        ],
    )
    after = call(capture, pair.right.sock, peek=True)
    assert after.send.una == state.send.una + count


@pytest.mark.parametrize("count", [1, 5, 999, 1000, 1005])
@pytest.mark.parametrize("sizes", [(1000, 1000), (1000, 3, 1000), (1000, 1000, 2), (1300, 7000)])
@pytest.mark.parametrize("version", [4, 6])
def test_what_is_left_of_a_segment_is_read_as_it_is(
    course: Course, version: int, sizes: tuple[int, ...], count: int
) -> None:
    pair = make_pair(course, version, KINDS["direct"])
    try:
        data = write_unheard(course, pair, sizes)
        acknowledge(course, pair, count)
        state = course.here.place.call(capture, pair.right.sock, peek=True)
        assert state.send.sent + state.send.unsent == data[count:]
    finally:
        pair.close()
        course.impair(Impairment())


def test_moved_again_and_again_before_anything_is_acknowledged(course: Course) -> None:
    """Each move may leave a segment in the queue whose beginning the peer has."""
    pair = make_pair(course, 4, Kind(at_mark=1))
    try:
        data = write_unheard(course, pair, (1000, 2000, 30_000))
        for number in range(8):
            pair.move()
            if number == 4:
                course.impair(Impairment(loss=0.5))
        course.impair(Impairment())
        expect(pair.left, data)
    finally:
        pair.close()
        course.impair(Impairment())
