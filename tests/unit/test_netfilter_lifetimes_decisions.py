"""Which translations have outlived their connection, given what is known of it."""

import pytest

from mycoproxy.netfilter.endings import Evidence, Standing, judge
from mycoproxy.sockdiag import FoundSocket

ESTABLISHED = FoundSocket(1, 4711, 0, 0)
TIME_WAIT = FoundSocket(6, 0, 0, 0, expires=59_000)
ORPHAN_FIN_WAIT2 = FoundSocket(5, 0, 0, 0, expires=900)


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("missed_before", [False, True])
def test_a_socket_of_the_name_keeps_it_whatever_was_told(told: bool, missed_before: bool) -> None:
    for here in (False, True):
        evidence = Evidence(here, ESTABLISHED, told=told, missed_before=missed_before)
        assert judge(evidence) is Standing.LIVES


@pytest.mark.parametrize("remainder", [TIME_WAIT, ORPHAN_FIN_WAIT2])
def test_a_remainder_lingers_even_if_its_socket_was_told_to_be_gone(remainder: FoundSocket) -> None:
    assert judge(Evidence(True, remainder, told=True)) is Standing.LINGERS


def test_one_that_was_told_to_be_gone_and_is_has_ended() -> None:
    assert judge(Evidence(True, told=True)) is Standing.ENDED
    assert judge(Evidence(False, tracked=False, told=True)) is Standing.ENDED
    assert judge(Evidence(False, tracked=None, told=True)) is Standing.ENDED


def test_one_that_nobody_told_of_has_to_be_missing_twice() -> None:
    assert judge(Evidence(True)) is Standing.MISSING
    assert judge(Evidence(True, missed_before=True)) is Standing.ENDED


def test_where_it_is_only_forwarded_conntrack_decides() -> None:
    assert judge(Evidence(False, tracked=True, missed_before=True)) is Standing.LIVES
    assert judge(Evidence(False, tracked=False)) is Standing.MISSING
    assert judge(Evidence(False, tracked=False, missed_before=True)) is Standing.ENDED


def test_where_one_end_is_here_conntracks_memory_keeps_nothing() -> None:
    assert judge(Evidence(True, tracked=True, told=True)) is Standing.ENDED


def test_where_nothing_is_tracked_nothing_follows_from_its_absence() -> None:
    assert judge(Evidence(False, tracked=None, missed_before=True)) is Standing.UNKNOWN
