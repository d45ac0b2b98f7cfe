"""Frames that leave a fixed time later, in virtual time: when, in which order, how many at once."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netlab.wire.delay import ROOM_BYTES, DelayLine
from netlab.wire.impairment import Counters


def test_a_frame_leaves_after_the_delay_and_not_before() -> None:
    line = DelayLine(0.02)
    line.arrive(1.0, b"x")
    assert line.next_departure() == 1.02
    assert line.leave(1.0199) == []
    assert line.leave(1.02) == [b"x"]
    assert line.leave(2.0) == []
    assert line.next_departure() is None


@given(gaps=st.lists(st.floats(0, 0.05), max_size=50), step=st.floats(0.001, 0.1))
def test_every_frame_leaves_once_in_the_order_of_arrival(gaps: list[float], step: float) -> None:
    line = DelayLine(0.02)
    left: list[tuple[float, bytes]] = []
    arrivals = list(itertools.accumulate(gaps))
    for number, now in enumerate(arrivals):
        left += [(now, each) for each in line.leave(now)]
        line.arrive(now, number.to_bytes(4, "big"))
    while (departure := line.next_departure()) is not None:
        now = departure + step
        left += [(now, each) for each in line.leave(now)]
    assert [each for _, each in left] == [n.to_bytes(4, "big") for n in range(len(gaps))]
    assert all(time >= came + 0.02 for (time, _), came in zip(left, arrivals, strict=True))
    assert line.counters == Counters(packets=len(gaps))


def test_what_finds_no_room_is_dropped_and_counted_and_room_comes_back() -> None:
    line = DelayLine(1.0, room=10_000)
    for number in range(10):
        line.arrive(0.0, bytes([number]) * 3000)
    assert [frame[0] for frame in line.leave(1.0)] == [0, 1, 2]
    assert line.counters == Counters(packets=10, dropped=7)
    line.arrive(2.0, bytes(3000))
    assert len(line.leave(math.inf)) == 1


def test_small_frames_are_bounded_too() -> None:
    line = DelayLine(1.0, room=10_000)
    for _ in range(1000):
        line.arrive(0.0, b"")
    assert len(line.leave(1.0)) == 50


@pytest.mark.parametrize("gigabits", [2, 5, 10])
def test_there_is_room_for_40_ms_of_several_gigabits(gigabits: int) -> None:
    line = DelayLine(0.04)
    frame = bytes(65_550)
    for _ in range(int(gigabits * 1e9 / 8 * 0.04 / len(frame))):
        line.arrive(0.0, frame)
    assert line.counters.dropped == 0
    assert ROOM_BYTES == 64 << 20
