"""Sockets of two copies of a container are paired by their descriptors' names."""

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycoproxy.sockets import DescriptorName, Matcher, MatchError, match


class Sock(NamedTuple):
    label: str
    names: tuple[DescriptorName, ...]


def sock(label: str, *names: tuple[int, int]) -> Sock:
    return Sock(label, tuple(DescriptorName(*name) for name in names))


def test_the_same_descriptor_is_the_same_socket() -> None:
    one, two = sock("one", (1, 5)), sock("two", (1, 6))
    there, other = sock("there", (1, 6)), sock("other", (1, 5))
    assert match([one, two], [there, other]).pairs == ((one, other), (two, there))


def test_any_shared_name_is_enough() -> None:
    shared = sock("shared", (1, 5), (7, 5), (8, 5))
    restored = sock("restored", (8, 5), (9, 9))
    assert match([shared], [restored]).pairs == ((shared, restored),)


def test_the_same_number_in_another_task_is_another_socket() -> None:
    matching = match([sock("one", (1, 5))], [sock("two", (2, 5))])
    assert matching.pairs == ()


def test_what_is_left_over_is_named() -> None:
    new = sock("new", (3, 4))
    target = Matcher([new])
    matching = target.match([sock("gone", (1, 5), (2, 5))])
    assert matching.missing == ((1, 5), (2, 5))
    assert target.unmatched == (new,)
    assert str(matching.missing[0]) == "pid 1 fd 5"


def test_the_source_may_come_in_parts_and_no_socket_of_the_target_is_given_twice() -> None:
    first, second = sock("first", (1, 5)), sock("second", (1, 6))
    target = Matcher([sock("there", (1, 6)), sock("other", (1, 5), (2, 5))])
    assert [len(target.match([one]).pairs) for one in (first, second)] == [1, 1]
    assert target.unmatched == ()
    with pytest.raises(MatchError, match="one socket on one side is two on the other"):
        target.match([sock("again", (2, 5))])


@pytest.mark.parametrize("swap", [False, True])
def test_one_socket_that_is_two_on_the_other_side_is_an_error(swap: bool) -> None:
    one = [sock("both", (1, 5), (2, 5))]
    two = [sock("first", (1, 5)), sock("second", (2, 5))]
    with pytest.raises(MatchError, match="one socket on one side is two on the other"):
        match(*((two, one) if swap else (one, two)))


def test_a_name_given_twice_is_an_error() -> None:
    with pytest.raises(MatchError, match="pid 1 fd 5 is named by two sockets"):
        match([], [sock("first", (1, 5)), sock("second", (1, 5))])


NAMES = st.sets(st.tuples(st.integers(1, 5), st.integers(0, 9)), max_size=30)


@given(NAMES, st.randoms())
def test_a_copy_matches_completely_in_any_order(
    names: set[tuple[int, int]], random: object
) -> None:
    source = [sock(str(name), name) for name in names]
    target = list(source)
    random.shuffle(target)  # type: ignore[attr-defined]
    matching = match(source, target)
    assert all(one is other for one, other in matching.pairs)
    assert len(matching.pairs) == len(names)
    assert matching.missing == ()
