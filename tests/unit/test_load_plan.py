"""What the checker's connections ask, redis-cli's count, and the pace of a transfer."""

from itertools import islice

import pytest

from netlab.load import resp
from netlab.load.plan import Preloaded, plan
from netlab.load.redis_cli import Count
from netlab.load.transfer import Pace

SOME = Preloaded(keys=100, value_bytes=50, seed=3)


def test_the_counter_is_expected_to_grow_by_one_each_time() -> None:
    requests = list(islice(plan("c", 0, SOME), 41))
    counted = [each.expected for each in requests if b"INCR" in each.sent]
    assert counted == [resp.integer(number) for number in range(1, 11)]


def test_an_own_key_is_expected_to_hold_what_was_set_last() -> None:
    requests = list(islice(plan("c", 5, SOME), 41))
    own = [each for each in requests if b"own:c:5" in each.sent]
    for put, get in zip(own[::2], own[1::2], strict=True):
        assert put.sent.endswith(get.expected)  # the value as a bulk string, in both


def test_without_preloaded_keys_none_is_asked_for() -> None:
    requests = islice(plan("c", 0, Preloaded(0, 0)), 40)
    assert not any(b"key:" in each.sent for each in requests)


def test_connections_and_clients_have_keys_of_their_own() -> None:
    first = {next(plan(name, number, SOME)).sent for name in "ab" for number in range(5)}
    assert len(first) == 10


def test_a_plan_is_the_same_each_time() -> None:
    assert list(islice(plan("c", 1, SOME), 50)) == list(islice(plan("c", 1, SOME), 50))


def test_consecutive_numbers_from_redis_cli_are_right() -> None:
    count = Count()
    assert all(count.line(line) for line in (b"17\n", b"18\n", b"19\n"))
    assert (count.lines, count.bytes_wrong, count.bytes_checked) == (3, 0, 9)


@pytest.mark.parametrize("line", [b"6\n", b"8\n", b"9\n", b"\n", b"(error) x\n", b"Error: y\n"])
def test_any_other_line_from_redis_cli_is_wrong(line: bytes) -> None:
    count = Count()
    count.line(b"6\n")
    assert not count.line(line)
    assert count.bytes_wrong >= 1
    assert count.wrong


def test_a_first_line_that_is_no_number_is_wrong() -> None:
    count = Count()
    assert not count.line(b"Could not connect\n")
    assert count.wrong


def test_a_pace_allows_its_rate() -> None:
    pace = Pace(1000.0, 5.0)
    assert pace.allow(5.0625) == 62
    pace.moved(62)
    assert pace.allow(5.078125) == 16  # the half byte is not forgotten


def test_a_pace_does_not_catch_up_a_long_pause() -> None:
    pace = Pace(1000.0, 0.0)
    assert pace.allow(60.0) == 100
