"""What counts as harm in a run of faults, and what does not."""

import pytest

from netlab.fault_judging import Result

_HARMS = (
    *("wrong_copies", "bytes_wrong", "needless_resets", "connections_lost"),
    *("journals_left", "agents_died"),
)


def test_moves_that_were_rolled_back_are_no_harm() -> None:
    done = Result(injected=3, moved=1, rolled_back=2, not_reached=1, journal_refusals=4)
    assert done.is_good


@pytest.mark.parametrize("harm", _HARMS)
def test_one_harm_of_any_kind_is_enough(harm: str) -> None:
    done = Result(injected=3)
    setattr(done, harm, 1)
    assert not done.is_good


def test_whatever_had_to_be_told_is_a_harm() -> None:
    assert not Result(messages=["after all: a move without a fault failed"]).is_good
