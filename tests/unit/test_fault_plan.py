"""Which faults are injected: every combination first, the same for a seed, all in the parts."""

from collections import Counter
from itertools import product

import pytest

from migrate.machine.machine import Action
from mycoproxy.errors import UsageError
from netlab.fault_plan import EVERY, KINDS, ROLES, STEPS, Part, choose


@pytest.mark.parametrize("seed", [0, 1, 77])
def test_the_first_are_every_kind_role_and_step_once(seed: int) -> None:
    first = choose(EVERY, seed)
    assert Counter((one.kind, one.role, one.step) for one in first) == Counter(
        product(KINDS, ROLES, STEPS)
    )


def test_another_seed_is_another_order() -> None:
    assert choose(EVERY, 1) != choose(EVERY, 2)


def test_a_seed_and_a_count_say_it_all() -> None:
    assert choose(200, 7) == choose(200, 7)


def test_a_longer_run_begins_like_a_shorter_one() -> None:
    assert choose(200, 7)[:30] == choose(30, 7)


def test_those_after_the_first_are_mostly_of_the_handover_and_later() -> None:
    drawn = Counter(one.step for one in choose(EVERY + 1000, 3)[EVERY:])
    assert drawn[Action.HAND_OVER] > 400
    assert {Action.RESUME, Action.GO_LIVE, Action.REMOVE_SOURCE} < set(drawn)
    assert set(STEPS) < set(drawn)


def test_a_stop_lasts_five_seconds_and_a_partition_up_to_four() -> None:
    lasting = choose(1000, 4)
    assert {one.seconds for one in lasting if one.kind == "stop"} == {5.0}
    cuts = [one.seconds for one in lasting if one.kind == "cut"]
    assert 0.5 <= min(cuts) < 1
    assert 3 < max(cuts) <= 4


def test_the_parts_are_the_whole_each_fault_once() -> None:
    whole = choose(50, 9)
    parts = [Part(number, 4).of(whole) for number in (1, 2, 3, 4)]
    assert sorted(len(part) for part in parts) == [12, 12, 13, 13]
    assert Counter(map(str, whole)) == Counter(str(one) for part in parts for one in part)


def test_a_part_is_read_as_it_is_written() -> None:
    assert Part.parse("2/4") == Part(2, 4)
    assert str(Part(2, 4)) == "2/4"
    assert Part().of([1, 2, 3]) == [1, 2, 3]


@pytest.mark.parametrize("text", ["", "0/4", "5/4", "2", "2/", "-1/4", "2/4/6", "two/four"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="like 2/4"):
        Part.parse(text)
