"""The table and the loop that drives it, on a small machine: load, fire, and the way back."""

import asyncio
from collections.abc import Callable, Collection, Coroutine
from enum import Enum
from typing import Any

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
    perform: Callable[[Action], Coroutine[Any, Any, None]],
    record: Callable[[State, Event, Transition[State, Action]], None] | None = None,
    *,
    abortable: Collection[Action] = (),
    interruptible: Collection[Action] = (),
) -> Driver[State, Event, Action]:
    return Driver(
        TABLE,
        done=Event.DONE,
        failed=Event.FAILED,
        perform=perform,
        record=record,
        abortable=abortable,
        interruptible=interruptible,
    )


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


class Waiting:
    """Performs actions that last until they are told to end, so that they can be interrupted."""

    def __init__(
        self, *, abortable: Collection[Action] = (), interruptible: Collection[Action] = ()
    ) -> None:
        self.begun: list[Action] = []
        self.cut_short: list[Action] = []
        self.fails: set[Action] = set()
        self._may_end = asyncio.Event()
        self._begins = asyncio.Condition()
        self.driver = driver_of(self._perform, abortable=abortable, interruptible=interruptible)
        self.task = asyncio.create_task(self.driver.feed(Event.START))

    async def _perform(self, action: Action) -> None:
        async with self._begins:
            self.begun.append(action)
            self._begins.notify_all()
        try:
            await self._may_end.wait()
        except asyncio.CancelledError:
            self.cut_short.append(action)
            raise
        if action in self.fails:
            raise RuntimeError(f"cannot {action.value}")

    async def until_begun(self, action: Action) -> None:
        async with self._begins:
            await self._begins.wait_for(lambda: action in self.begun)

    async def cancel(self) -> None:
        """Cancel, and give the cancellation time to do what it does."""
        self.task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)

    async def end(self) -> bool:
        """Let every action end; returns whether the cancellation was passed on."""
        self._may_end.set()
        await asyncio.wait({self.task})
        return self.task.cancelled()


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 10))


def test_an_interruptible_action_is_cut_short_and_undone_and_the_cancellation_passed_on() -> None:
    async def scenario() -> None:
        waiting = Waiting(interruptible=[Action.LOAD])
        await waiting.until_begun(Action.LOAD)
        await waiting.cancel()
        await waiting.until_begun(Action.UNLOAD)
        assert waiting.cut_short == [Action.LOAD]
        assert await waiting.end()
        assert waiting.driver.state is State.EMPTY
        assert isinstance(waiting.driver.errors[0], InterruptedActionError)
        assert "load" in str(waiting.driver.errors[0])

    run(scenario())


def test_an_abortable_action_is_waited_for_and_then_undone() -> None:
    async def scenario() -> None:
        waiting = Waiting(abortable=[Action.LOAD])
        await waiting.until_begun(Action.LOAD)
        await waiting.cancel()
        assert waiting.begun == [Action.LOAD]
        assert await waiting.end()
        assert waiting.begun == [Action.LOAD, Action.UNLOAD]
        assert waiting.cut_short == []
        assert waiting.driver.state is State.EMPTY

    run(scenario())


def test_an_abortable_action_that_fails_after_its_interruption_tells_of_both() -> None:
    async def scenario() -> None:
        waiting = Waiting(abortable=[Action.LOAD])
        waiting.fails = {Action.LOAD}
        await waiting.until_begun(Action.LOAD)
        await waiting.cancel()
        assert await waiting.end()
        errors = waiting.driver.errors
        assert [type(error) for error in errors] == [InterruptedActionError, RuntimeError]

    run(scenario())


def test_any_other_action_goes_on_as_if_nothing_had_happened() -> None:
    async def scenario() -> None:
        waiting = Waiting()
        await waiting.until_begun(Action.LOAD)
        await waiting.cancel()
        assert await waiting.end()
        assert waiting.begun == [Action.LOAD]
        assert waiting.driver.state is State.LOADED
        assert waiting.driver.errors == []

    run(scenario())


def test_undoing_is_not_cut_short_however_often_it_is_cancelled() -> None:
    async def scenario() -> None:
        waiting = Waiting(interruptible=[Action.LOAD])
        await waiting.until_begun(Action.LOAD)
        await waiting.cancel()
        await waiting.until_begun(Action.UNLOAD)
        for _ in range(3):
            await waiting.cancel()
        assert not waiting.task.done()
        assert await waiting.end()
        assert waiting.cut_short == [Action.LOAD]
        assert len(waiting.driver.errors) == 1

    run(scenario())


def test_a_cancellation_that_was_passed_on_does_not_come_back_with_the_next_event() -> None:
    async def scenario() -> None:
        waiting = Waiting()
        await waiting.until_begun(Action.LOAD)
        await waiting.cancel()
        assert await waiting.end()
        assert await waiting.driver.feed(Event.GO) is State.FIRED

    run(scenario())
