"""What a wire does to packets, in virtual time: losses, copies, order, delay, rate, and that a seed
repeats all of it."""

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycoproxy.errors import UsageError
from netlab.wire.impairment import BUFFERED, HELD_BACK, Counters, Impairment, Schedule

EVERYTHING = Impairment(loss=0.1, duplicate=0.1, reorder=0.2, delay=0.01, jitter=0.005, rate=1e6)


def packets(count: int) -> list[bytes]:
    return [number.to_bytes(4, "big") for number in range(count)]


def run(
    schedule: Schedule, arriving: list[bytes], *, spacing: float = 1e-4
) -> list[tuple[float, bytes]]:
    """Let packets arrive one after the other; each copy that leaves, with its time."""
    arrivals = [(number * spacing, packet) for number, packet in enumerate(arriving)]
    left = []
    now = 0.0
    while arrivals or schedule.next_departure() is not None:
        departure = schedule.next_departure()
        if arrivals and (departure is None or arrivals[0][0] <= departure):
            now, packet = arrivals.pop(0)
            schedule.arrive(now, packet)
        else:
            assert departure is not None
            assert departure >= now
            now = departure
            left += [(now, packet) for packet in schedule.leave(now)]
    return left


def test_an_unimpaired_wire_passes_every_packet_on_at_once() -> None:
    schedule = Schedule(Impairment(), 1)
    left = run(schedule, packets(100), spacing=0.001)
    assert left == [(number * 0.001, packet) for number, packet in enumerate(packets(100))]
    assert schedule.counters == Counters(packets=100)


def test_the_same_seed_does_the_same_and_another_one_does_not() -> None:
    first, again, other = (
        run(Schedule(EVERYTHING, seed), packets(1000)) for seed in ("1 left", "1 left", "2 left")
    )
    assert first == again
    assert first != other


def test_losses_and_copies_have_their_share_and_are_counted() -> None:
    schedule = Schedule(Impairment(loss=0.03, duplicate=0.05), 1)
    left = [packet for _, packet in run(schedule, packets(10_000))]
    seen = set(left)
    assert schedule.counters.lost == 10_000 - len(seen)
    assert schedule.counters.duplicated == len(left) - len(seen)
    assert (schedule.counters.lost, schedule.counters.duplicated) == (310, 494)


@pytest.mark.parametrize("name", ["loss", "duplicate", "reorder"])
def test_a_probability_of_one_is_every_packet_and_zero_none(name: str) -> None:
    always = Schedule(Impairment(**{name: 1.0}), 1)
    left = run(always, packets(50), spacing=1.0)
    assert len(left) == {"loss": 0, "duplicate": 100, "reorder": 50}[name]


@given(
    times=st.lists(st.floats(0, 0.01), max_size=60),
    delay=st.floats(0, 0.1),
    rate=st.none() | st.floats(1e3, 1e7),
    seed=st.integers(0, 100),
)
def test_without_jitter_and_reorder_the_order_is_kept(
    times: list[float], delay: float, rate: float | None, seed: int
) -> None:
    impairment = Impairment(loss=0.2, duplicate=0.2, delay=delay, rate=rate)
    schedule = Schedule(impairment, seed)
    for now, packet in zip(itertools.accumulate(times), packets(len(times)), strict=True):
        schedule.arrive(now, packet)
    left = schedule.leave(math.inf)
    assert left == sorted(left)
    assert schedule.counters.reordered == 0


def test_reordered_packets_are_overtaken_and_counted() -> None:
    schedule = Schedule(Impairment(reorder=0.1), 1)
    left = run(schedule, packets(1000))
    assert sorted(packet for _, packet in left) == packets(1000)
    furthest = b""
    late = 0
    for time, packet in left:
        assert time <= int.from_bytes(packet, "big") * 1e-4 + HELD_BACK
        late += packet < furthest
        furthest = max(furthest, packet)
    assert schedule.counters.reordered == late
    assert 50 < late < 150


def test_a_late_copy_of_the_last_packet_is_no_reordering() -> None:
    schedule = Schedule(Impairment(duplicate=1, jitter=0.01), 1)
    assert [packet for _, packet in run(schedule, [b"only"])] == [b"only", b"only"]
    assert schedule.counters.reordered == 0


def test_a_packet_leaves_after_its_delay_and_not_before() -> None:
    schedule = Schedule(Impairment(delay=0.05), 1)
    schedule.arrive(1.0, b"x")
    assert schedule.next_departure() == 1.05
    assert schedule.leave(1.0499) == []
    assert schedule.leave(1.05) == [b"x"]
    assert schedule.next_departure() is None


def test_jitter_is_added_to_the_delay() -> None:
    schedule = Schedule(Impairment(delay=0.05, jitter=0.02), 1)
    left = run(schedule, packets(200), spacing=1.0)
    delays = [time - number for number, (time, _) in enumerate(left)]
    assert min(delays) >= 0.05
    assert max(delays) <= 0.07 + 1e-9
    assert max(delays) - min(delays) > 0.015


def test_a_rate_spaces_packets_by_their_size() -> None:
    schedule = Schedule(Impairment(rate=1000, delay=0.5), 1)
    for _ in range(3):
        schedule.arrive(10.0, bytes(100))
    departures = []
    while (departure := schedule.next_departure()) is not None:
        departures.append(departure)
        schedule.leave(departure)
    assert departures == pytest.approx([10.6, 10.7, 10.8])


def test_what_a_rate_cannot_buffer_is_dropped() -> None:
    schedule = Schedule(Impairment(rate=1000), 1)
    for _ in range(10):
        schedule.arrive(0.0, bytes(100))
    fitting = int(BUFFERED * 1000 / 100) + 1
    assert len(schedule.leave(math.inf)) == fitting
    assert schedule.counters.dropped == 10 - fitting


def test_a_healed_schedule_keeps_what_is_under_way() -> None:
    schedule = Schedule(Impairment(loss=0, delay=1.0), 1)
    schedule.arrive(0.0, b"early")
    schedule.impairment = Impairment()
    schedule.arrive(0.1, b"late")
    assert schedule.leave(0.1) == [b"late"]
    assert schedule.leave(1.0) == [b"early"]
    assert schedule.counters == Counters(packets=2, reordered=1)


def test_counters_of_two_directions_add_up() -> None:
    assert Counters(1, 2, 3, 4, 5, 6) + Counters(10, 20, 30, 40, 50, 60) == Counters(
        11, 22, 33, 44, 55, 66
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss", -0.1),
        ("loss", 1.1),
        ("duplicate", math.nan),
        ("reorder", 2),
        ("delay", -1),
        ("delay", math.inf),
        ("jitter", math.nan),
        ("rate", 0),
        ("rate", math.inf),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"^{name}: .* wanted, found"):
        replace(Impairment(), **{name: value})
