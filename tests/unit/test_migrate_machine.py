"""The migration's table: every failure leads where it must, whatever else fails on the way."""

from collections.abc import Iterator

import pytest

from migrate.machine.machine import TABLE, Action, Event, State

FORWARD = [
    Action.CHECK,
    Action.PREPARE,
    Action.FREEZE,
    Action.DUMP,
    Action.SEND,
    Action.RESTORE,
    Action.HAND_OVER,
    Action.COMMIT,
    Action.RESUME,
    Action.GO_LIVE,
    Action.FINISH,
    Action.REMOVE_SOURCE,
    Action.CLEAN_UP,
]
UP_TO_THE_COMMIT = FORWARD[1 : FORWARD.index(Action.COMMIT) + 1]
NO_WAY_BACK = FORWARD[FORWARD.index(Action.GO_LIVE) :]
#: Doing -> undoing. CLEAN_UP, which undoes PREPARE, is the end of both ways.
UNDOES = {
    Action.PREPARE: Action.CLEAN_UP,
    Action.FREEZE: Action.THAW,
    Action.RESTORE: Action.ABORT_RESTORE,
    Action.HAND_OVER: Action.UNDO_HANDOVER,
}
WAY_BACK = [
    Action.ABORT_RESTORE,
    Action.UNDO_HANDOVER,
    Action.THAW,
    Action.CLEAN_UP,
]


def walk(*failing: Action) -> tuple[State, list[Action]]:
    """Run the table, with some actions failing whenever they are performed."""
    performed: list[Action] = []
    transition = TABLE.step(TABLE.initial, Event.START)
    while transition.action is not None:
        performed.append(transition.action)
        assert len(performed) < 50, "the table runs in a circle"
        event = Event.FAILED if transition.action in failing else Event.DONE
        transition = TABLE.step(transition.state, event)
    return transition.state, performed


def rows() -> Iterator[tuple[State, Action]]:
    """Every state that has an action, with each action that leads into it."""
    seen = {(to.state, to.action) for to in TABLE.rows.values() if to.action is not None}
    yield from sorted(seen, key=lambda row: (row[0].value, row[1].value))


def test_every_state_can_be_reached() -> None:
    assert TABLE.reachable() == frozenset(State)


def test_every_action_is_performed_somewhere() -> None:
    assert {action for _, action in rows()} == set(Action)


def test_the_final_states_are_these_four() -> None:
    assert TABLE.final_states() == {State.DONE, State.REFUSED, State.ROLLED_BACK, State.STUCK}


@pytest.mark.parametrize(("state", "action"), list(rows()), ids=lambda value: value.name)
def test_every_action_may_end_well_or_badly(state: State, action: Action) -> None:
    assert {event for origin, event in TABLE.rows if origin is state} == {Event.DONE, Event.FAILED}


def test_a_state_has_one_action_wherever_it_is_come_from() -> None:
    states = [state for state, _ in rows()]
    assert len(states) == len(set(states))


def test_a_move_performs_the_steps_in_order() -> None:
    assert walk() == (State.DONE, FORWARD)


def test_a_refused_preflight_changes_and_undoes_nothing() -> None:
    assert walk(Action.CHECK) == (State.REFUSED, [Action.CHECK])


@pytest.mark.parametrize("failing", UP_TO_THE_COMMIT, ids=lambda action: action.name)
def test_everything_that_was_begun_is_undone_and_the_copy_dies_first(failing: Action) -> None:
    state, performed = walk(failing)
    done = performed[: performed.index(failing) + 1]
    back = performed[len(done) :]
    assert state is State.ROLLED_BACK
    assert done == FORWARD[: len(done)]
    assert {UNDOES[action] for action in done if action in UNDOES} <= set(back)
    # One way back, joined at some point: undoing what was not begun does nothing.
    assert back == [action for action in WAY_BACK if action in back]


@pytest.mark.parametrize("failing", UP_TO_THE_COMMIT, ids=lambda action: action.name)
def test_the_source_is_thawed_exactly_if_it_was_being_frozen(failing: Action) -> None:
    _, performed = walk(failing)
    assert performed.count(Action.THAW) == performed.count(Action.FREEZE)


@pytest.mark.parametrize("failing", UP_TO_THE_COMMIT, ids=lambda action: action.name)
@pytest.mark.parametrize("also", WAY_BACK, ids=lambda action: action.name)
def test_a_failure_of_undoing_skips_no_other_undoing(failing: Action, also: Action) -> None:
    _, alone = walk(failing)
    state, performed = walk(failing, also)
    if also is Action.ABORT_RESTORE and also in alone:
        assert state is State.STUCK
    else:
        assert state is State.ROLLED_BACK
        assert performed == alone


@pytest.mark.parametrize(
    "failing",
    [Action.RESTORE, Action.HAND_OVER, Action.COMMIT, Action.RESUME],
    ids=lambda a: a.name,
)
def test_a_copy_that_may_be_alive_keeps_the_source_frozen(failing: Action) -> None:
    state, performed = walk(failing, Action.ABORT_RESTORE)
    assert state is State.STUCK
    assert performed[-1] is Action.ABORT_RESTORE
    assert Action.THAW not in performed


@pytest.mark.parametrize("failing", [*UP_TO_THE_COMMIT, Action.RESUME], ids=lambda a: a.name)
def test_the_source_is_thawed_only_after_the_copy_is_dead_and_the_handover_undone(
    failing: Action,
) -> None:
    _, performed = walk(failing)
    if Action.THAW not in performed:
        return
    before = performed[: performed.index(Action.THAW)]
    if Action.RESTORE in performed:
        assert Action.ABORT_RESTORE in before
    if Action.HAND_OVER in performed:
        assert before[-2:] == [Action.ABORT_RESTORE, Action.UNDO_HANDOVER]


def test_a_target_that_dies_before_its_first_instruction_gives_the_source_back() -> None:
    state, performed = walk(Action.RESUME)
    assert state is State.ROLLED_BACK
    assert performed == [*FORWARD[: FORWARD.index(Action.RESUME) + 1], *WAY_BACK]


@pytest.mark.parametrize("failing", NO_WAY_BACK, ids=lambda action: action.name)
@pytest.mark.parametrize("also", NO_WAY_BACK, ids=lambda action: action.name)
def test_once_connections_go_live_nothing_leads_back_and_nothing_is_left_out(
    failing: Action, also: Action
) -> None:
    assert walk(failing, also) == (State.DONE, FORWARD)


def test_no_row_leads_back_from_where_connections_go_live() -> None:
    seen = {State.GOING_LIVE}
    frontier = [State.GOING_LIVE]
    while frontier:
        state = frontier.pop()
        for (origin, _), to in TABLE.rows.items():
            if origin is state and to.state not in seen:
                seen.add(to.state)
                frontier.append(to.state)
    assert not seen & {State.THAWING, State.ROLLED_BACK, State.STUCK, State.ABORTING}


@pytest.mark.parametrize("row", list(TABLE.rows), ids=lambda row: f"{row[0].name}-{row[1].name}")
def test_every_row_is_walked_by_some_failure_of_two_actions(row: tuple[State, Event]) -> None:
    walked: set[tuple[State, Event]] = set()
    for first in [None, *Action]:
        for second in [None, *Action]:
            failing = {first, second}
            state, event = TABLE.initial, Event.START
            while (state, event) in TABLE.rows:
                walked.add((state, event))
                to = TABLE.step(state, event)
                state, event = to.state, Event.FAILED if to.action in failing else Event.DONE
    assert row in walked
