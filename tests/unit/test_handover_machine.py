"""The handover's table: what was begun is undone in reverse order, unless it has gone live."""

from collections.abc import Iterator

import pytest

from mycoproxy.handover import TABLE, Action, Event, State
from mycoproxy.statetable import IllegalEventError

UNDOES = {
    Action.HOLD: Action.RELEASE_HOLD,
    Action.CAPTURE: Action.RESUME_SOURCE,
    Action.REHOME: Action.UNDO_REHOME,
    Action.ESTABLISH: Action.DISCARD,
}
DOING = list(UNDOES)
WAY_BACK = [UNDOES[action] for action in reversed(DOING)]
#: What a caller feeds a handover that goes well.
COMMANDS = [Event.START, Event.COMMIT, Event.LIVE]
WAITING = {
    State.IDLE: {Event.START, Event.ABORT},
    State.READY: {Event.COMMIT, Event.ABORT},
    State.COMMITTED: {Event.LIVE, Event.TARGET_DEAD},
}


def walk(*failing: Action, commands: list[Event] | None = None) -> tuple[State, list[Action]]:
    """Run the table with some actions failing; commands are fed where it waits."""
    state = TABLE.initial
    performed: list[Action] = []
    for command in COMMANDS if commands is None else commands:
        if state not in WAITING:
            break
        transition = TABLE.step(state, command)
        while transition.action is not None:
            performed.append(transition.action)
            assert len(performed) < 50, "the table runs in a circle"
            event = Event.FAILED if transition.action in failing else Event.DONE
            transition = TABLE.step(transition.state, event)
        state = transition.state
    return state, performed


def rows_with_actions() -> Iterator[tuple[State, Action]]:
    seen = {(to.state, to.action) for to in TABLE.rows.values() if to.action is not None}
    yield from sorted(seen, key=lambda row: row[0].value)


def leads_to(state: State) -> set[State]:
    """Every state that can follow, this one included."""
    seen, frontier = {state}, [state]
    while frontier:
        origin = frontier.pop()
        for (at, _), to in TABLE.rows.items():
            if at is origin and to.state not in seen:
                seen.add(to.state)
                frontier.append(to.state)
    return seen


def test_every_state_can_be_reached() -> None:
    assert TABLE.reachable() == frozenset(State)


def test_the_final_states_are_done_and_rolled_back() -> None:
    assert TABLE.final_states() == {State.DONE, State.ROLLED_BACK}


@pytest.mark.parametrize("state", list(State), ids=lambda state: state.name)
def test_every_state_leads_to_a_final_state(state: State) -> None:
    assert leads_to(state) & TABLE.final_states()


@pytest.mark.parametrize(("state", "action"), list(rows_with_actions()), ids=lambda v: v.name)
def test_every_action_may_end_well_or_badly_and_nothing_else_may_happen_meanwhile(
    state: State, action: Action
) -> None:
    assert {event for at, event in TABLE.rows if at is state} == {Event.DONE, Event.FAILED}


def test_every_action_is_performed_in_one_state_of_its_own() -> None:
    rows = list(rows_with_actions())
    assert {action for _, action in rows} == set(Action)
    assert len({state for state, _ in rows}) == len(rows) == len(Action)


@pytest.mark.parametrize("state", list(WAITING), ids=lambda state: state.name)
def test_a_state_that_waits_takes_these_events_and_no_others(state: State) -> None:
    for event in Event:
        if event in WAITING[state]:
            TABLE.step(state, event)
        else:
            with pytest.raises(IllegalEventError):
                TABLE.step(state, event)


@pytest.mark.parametrize("state", [State.DONE, State.ROLLED_BACK], ids=lambda state: state.name)
@pytest.mark.parametrize("event", list(Event), ids=lambda event: event.name)
def test_nothing_happens_to_a_handover_that_has_ended(state: State, event: Event) -> None:
    with pytest.raises(IllegalEventError):
        TABLE.step(state, event)


def test_a_handover_performs_its_steps_in_order() -> None:
    assert walk() == (State.DONE, [*DOING, Action.RECORD_COMMIT, Action.GO_LIVE])


@pytest.mark.parametrize("failing", [*DOING, Action.RECORD_COMMIT], ids=lambda a: a.name)
def test_a_failure_undoes_all_that_was_begun_in_reverse_order(failing: Action) -> None:
    state, performed = walk(failing)
    done = performed[: performed.index(failing) + 1]
    assert state is State.ROLLED_BACK
    assert done == [*DOING, Action.RECORD_COMMIT][: len(done)]
    assert performed[len(done) :] == [UNDOES[one] for one in reversed(done) if one in UNDOES]


@pytest.mark.parametrize("failing", [*DOING, Action.RECORD_COMMIT], ids=lambda a: a.name)
@pytest.mark.parametrize("also", WAY_BACK, ids=lambda action: action.name)
def test_a_failure_of_undoing_skips_no_other_undoing(failing: Action, also: Action) -> None:
    assert walk(failing, also) == walk(failing)


@pytest.mark.parametrize("failing", [*DOING, Action.RECORD_COMMIT], ids=lambda a: a.name)
def test_all_undoing_failing_still_ends(failing: Action) -> None:
    assert walk(failing, *WAY_BACK) == walk(failing)


def test_a_handover_that_has_not_begun_is_ended_without_doing_anything() -> None:
    assert walk(commands=[Event.ABORT]) == (State.ROLLED_BACK, [])


@pytest.mark.parametrize("also", [None, *WAY_BACK], ids=lambda a: a.name if a else "all-well")
def test_a_handover_that_is_ready_can_be_undone(also: Action | None) -> None:
    failing = [also] if also else []
    state, performed = walk(*failing, commands=[Event.START, Event.ABORT])
    assert (state, performed) == (State.ROLLED_BACK, [*DOING, *WAY_BACK])


@pytest.mark.parametrize("also", [None, *WAY_BACK], ids=lambda a: a.name if a else "all-well")
def test_a_committed_handover_can_be_undone_if_the_target_is_dead(also: Action | None) -> None:
    failing = [also] if also else []
    state, performed = walk(*failing, commands=[Event.START, Event.COMMIT, Event.TARGET_DEAD])
    assert state is State.ROLLED_BACK
    assert performed == [*DOING, Action.RECORD_COMMIT, *WAY_BACK]


def test_connections_that_went_live_in_part_are_not_taken_back() -> None:
    assert walk(Action.GO_LIVE)[0] is State.DONE


def test_nothing_leads_back_from_going_live() -> None:
    assert leads_to(State.GOING_LIVE) == {State.GOING_LIVE, State.DONE}


@pytest.mark.parametrize("row", list(TABLE.rows), ids=lambda row: f"{row[0].name}-{row[1].name}")
def test_every_row_is_walked_by_some_failure_of_two_actions(row: tuple[State, Event]) -> None:
    walked: set[tuple[State, Event]] = set()
    ways = [
        COMMANDS,
        [Event.ABORT],
        [Event.START, Event.ABORT],
        [Event.START, Event.COMMIT, Event.TARGET_DEAD],
    ]
    for commands in ways:
        for failing in [(first, second) for first in Action for second in Action] + [()]:
            state = TABLE.initial
            for command in commands:
                event = command
                while (state, event) in TABLE.rows:
                    walked.add((state, event))
                    to = TABLE.step(state, event)
                    state = to.state
                    if to.action is None:
                        break
                    event = Event.FAILED if to.action in failing else Event.DONE
    assert row in walked
