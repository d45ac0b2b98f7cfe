"""The table and the loop that drives it, on a small machine: load, fire, and the way back."""

import asyncio
from collections.abc import Awaitable, Callable
from enum import Enum

import pytest

from mycoproxy.statetable import (
    Driver,
    IllegalEventError,
    InterruptedActionError,
    StateTable,
    Transition,
)


class State(Enum):
    IDLE = "idle"
    LOADING = "loading"
    LOADED = "loaded"
    FIRING = "firing"
    FIRED = "fired"
    UNLOADING = "unloading"
    EMPTY = "empty"


class Event(Enum):
    START = "start"
    GO = "go"
    DONE = "done"
    FAILED = "failed"


class Action(Enum):
    LOAD = "load"
    FIRE = "fire"
    UNLOAD = "unload"


TABLE: StateTable[State, Event, Action] = StateTable(
    State.IDLE,
    {
        (State.IDLE, Event.START): Transition(State.LOADING, Action.LOAD),
        (State.LOADING, Event.DONE): Transition(State.LOADED),
        (State.LOADING, Event.FAILED): Transition(State.UNLOADING, Action.UNLOAD),
        (State.LOADED, Event.GO): Transition(State.FIRING, Action.FIRE),
        (State.FIRING, Event.DONE): Transition(State.FIRED),
        (State.FIRING, Event.FAILED): Transition(State.UNLOADING, Action.UNLOAD),
        (State.UNLOADING, Event.DONE): Transition(State.EMPTY),
        (State.UNLOADING, Event.FAILED): Transition(State.EMPTY),
    },
)

Moment = tuple[str, Action] | tuple[str, State, Event, State]


class Recording:
    """Performs actions by writing down that it did; some of them fail."""

    def __init__(
        self,
        failing: dict[Action, BaseException] | None = None,
        record_fails: bool = False,
    ) -> None:
        self.moments: list[Moment] = []
        self._failing = failing or {}
        self._record_fails = record_fails

    async def perform(self, action: Action) -> None:
        self.moments.append(("performed", action))
        if action in self._failing:
            raise self._failing[action]

    def record(self, state: State, event: Event, to: Transition[State, Action]) -> None:
        self.moments.append(("recorded", state, event, to.state))
        if self._record_fails:
            raise OSError("no space for the journal")

    @property
    def performed(self) -> list[Action]:
        return [moment[1] for moment in self.moments if isinstance(moment[1], Action)]


def driver_of(
    perform: Callable[[Action], Awaitable[None]],
    record: Callable[[State, Event, Transition[State, Action]], None] | None = None,
) -> Driver[State, Event, Action]:
    return Driver(TABLE, done=Event.DONE, failed=Event.FAILED, perform=perform, record=record)


def test_an_event_that_is_not_listed_is_an_error_that_names_state_and_event() -> None:
    with pytest.raises(IllegalEventError, match="event GO in state IDLE"):
        TABLE.step(State.IDLE, Event.GO)


def test_the_driver_does_not_move_on_an_event_that_is_not_listed() -> None:
    recording = Recording()
    driver = driver_of(recording.perform, recording.record)
    with pytest.raises(IllegalEventError):
        asyncio.run(driver.feed(Event.GO))
    assert (driver.state, recording.moments) == (State.IDLE, [])


def test_final_and_reachable_states_follow_from_the_rows() -> None:
    assert TABLE.final_states() == {State.FIRED, State.EMPTY}
    assert TABLE.reachable() == frozenset(State)
    cut = {key: to for key, to in TABLE.rows.items() if key != (State.LOADED, Event.GO)}
    assert StateTable(State.IDLE, cut).reachable() == {
        State.IDLE,
        State.LOADING,
        State.LOADED,
        State.UNLOADING,
        State.EMPTY,
    }


def test_a_table_does_not_change_with_the_mapping_that_it_was_made_of() -> None:
    rows = dict(TABLE.rows)
    table = StateTable(State.IDLE, rows)
    rows.clear()
    assert table.rows == TABLE.rows


def test_the_markdown_table_has_one_line_for_each_row() -> None:
    lines = list(TABLE.markdown())
    assert len(lines) == 2 + len(TABLE.rows)
    assert lines[2] == "| idle | start | loading | load |"
    assert lines[3] == "| loading | done | loaded |  |"


def test_the_driver_performs_feeds_back_and_stops_where_there_is_no_action() -> None:
    recording = Recording()
    driver = driver_of(recording.perform)
    assert asyncio.run(driver.feed(Event.START)) is State.LOADED
    assert recording.performed == [Action.LOAD]
    assert asyncio.run(driver.feed(Event.GO)) is State.FIRED
    assert recording.performed == [Action.LOAD, Action.FIRE]
    assert driver.errors == []


def test_errors_are_kept_in_the_order_in_which_they_happened() -> None:
    cause, later = RuntimeError("cause"), ValueError("later")
    recording = Recording({Action.LOAD: cause, Action.UNLOAD: later})
    driver = driver_of(recording.perform)
    assert asyncio.run(driver.feed(Event.START)) is State.EMPTY
    assert driver.errors == [cause, later]


def test_every_transition_is_recorded_before_its_action_is_performed() -> None:
    recording = Recording({Action.LOAD: RuntimeError("cause")})
    asyncio.run(driver_of(recording.perform, recording.record).feed(Event.START))
    assert recording.moments == [
        ("recorded", State.IDLE, Event.START, State.LOADING),
        ("performed", Action.LOAD),
        ("recorded", State.LOADING, Event.FAILED, State.UNLOADING),
        ("performed", Action.UNLOAD),
        ("recorded", State.UNLOADING, Event.DONE, State.EMPTY),
    ]


def test_a_record_that_cannot_be_written_stops_nothing_and_is_reported() -> None:
    recording = Recording({Action.LOAD: RuntimeError("cause")}, record_fails=True)
    driver = driver_of(recording.perform, recording.record)
    assert asyncio.run(driver.feed(Event.START)) is State.EMPTY
    assert recording.performed == [Action.LOAD, Action.UNLOAD]
    assert [type(error) for error in driver.errors] == [OSError, RuntimeError, OSError, OSError]


def test_a_record_that_fails_otherwise_is_a_bug_and_nothing_is_performed() -> None:
    recording = Recording()

    def record(*_: object) -> None:
        raise ZeroDivisionError

    driver = driver_of(recording.perform, record)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(driver.feed(Event.START))
    assert (driver.state, recording.performed) == (State.IDLE, [])


@pytest.mark.parametrize(
    "stop", [KeyboardInterrupt(), SystemExit(3)], ids=lambda e: type(e).__name__
)
def test_an_interruption_is_undone_and_then_raised_again(stop: BaseException) -> None:
    recording = Recording({Action.LOAD: stop})
    driver = driver_of(recording.perform)

    async def feed() -> BaseException | None:
        try:
            await driver.feed(Event.START)
        except BaseException as raised:  # noqa: BLE001 - it must not end the event loop
            return raised
        return None

    assert asyncio.run(feed()) is stop
    assert recording.performed == [Action.LOAD, Action.UNLOAD]
    assert driver.state is State.EMPTY
    assert isinstance(driver.errors[0], InterruptedActionError)
    assert "load" in str(driver.errors[0])


def test_a_cancelled_task_undoes_the_action_that_it_was_in_before_it_ends() -> None:
    performed: list[Action] = []

    async def scenario() -> tuple[bool, Driver[State, Event, Action]]:
        begun = asyncio.Event()

        async def perform(action: Action) -> None:
            performed.append(action)
            if action is Action.LOAD:
                begun.set()
                await asyncio.get_running_loop().create_future()
            else:
                await asyncio.sleep(0)  # undoing may wait, too

        driver = driver_of(perform)
        task = asyncio.create_task(driver.feed(Event.START))
        await begun.wait()
        task.cancel()
        await asyncio.wait({task}, timeout=10)
        return task.cancelled(), driver

    cancelled, driver = asyncio.run(scenario())
    assert cancelled
    assert performed == [Action.LOAD, Action.UNLOAD]
    assert driver.state is State.EMPTY


def test_the_first_of_two_interruptions_is_the_one_that_is_raised() -> None:
    first, second = KeyboardInterrupt("first"), KeyboardInterrupt("second")
    recording = Recording({Action.LOAD: first, Action.UNLOAD: second})
    driver = driver_of(recording.perform)

    async def feed() -> BaseException | None:
        try:
            await driver.feed(Event.START)
        except KeyboardInterrupt as raised:
            return raised
        return None

    assert asyncio.run(feed()) is first
    assert driver.state is State.EMPTY
    assert len(driver.errors) == 2
