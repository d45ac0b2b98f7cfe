"""State machines as data: a table of (state, event) -> (state, action), and their driver.

Two rules, as in h11: what is not listed is an error, and the table does no I/O. A driver performs
the action that a transition names and feeds back ``DONE`` or ``FAILED``; a transition without an
action stops the driver, which then waits for the next event from outside.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

StateT = TypeVar("StateT", bound=Enum)
EventT = TypeVar("EventT", bound=Enum)
ActionT = TypeVar("ActionT", bound=Enum)


class IllegalEventError(Exception):
    """An event that the table does not list for this state. Always a bug."""


@dataclass(frozen=True, slots=True)
class Transition(Generic[StateT, ActionT]):
    """Where an event leads, and what has to be done there (None: wait for the next event)."""

    state: StateT
    action: ActionT | None = None


class StateTable(Generic[StateT, EventT, ActionT]):
    """A machine. ``rows`` is all there is to it."""

    def __init__(
        self,
        initial: StateT,
        rows: Mapping[tuple[StateT, EventT], Transition[StateT, ActionT]],
    ) -> None:
        self.initial = initial
        self.rows = dict(rows)

    def step(self, state: StateT, event: EventT) -> Transition[StateT, ActionT]:
        """Raises ``IllegalEventError`` for what is not listed."""
        try:
            return self.rows[state, event]
        except KeyError:
            raise IllegalEventError(f"event {event.name} in state {state.name}") from None

    def final_states(self) -> frozenset[StateT]:
        """The states that nothing leads out of."""
        targets = {transition.state for transition in self.rows.values()}
        return frozenset(targets - {state for state, _ in self.rows})

    def reachable(self) -> frozenset[StateT]:
        """The states that some sequence of listed events leads to."""
        seen = {self.initial}
        frontier = [self.initial]
        while frontier:
            state = frontier.pop()
            for (origin, _), transition in self.rows.items():
                if origin == state and transition.state not in seen:
                    seen.add(transition.state)
                    frontier.append(transition.state)
        return frozenset(seen)

    def markdown(self) -> Iterator[str]:
        """The table as lines of Markdown, for the documentation."""
        yield "| state | event | next state | action |"
        yield "|---|---|---|---|"
        for (state, event), transition in self.rows.items():
            action = transition.action.value if transition.action else ""
            yield f"| {state.value} | {event.value} | {transition.state.value} | {action} |"


class Driver(Generic[StateT, EventT, ActionT]):
    """Runs a table: performs actions, feeds their outcome back, keeps what went wrong.

    ``record`` is called with every transition before its action is performed (a journal).
    ``errors`` holds the failures in the order in which they happened; the first is the cause, the
    others happened while it was being undone.

    A cancellation from outside cuts short only actions in ``interruptible``. Any other action is
    waited for; if it is in ``abortable``, the way leads back from there. All others, undoing
    among them, go on as if nothing had happened. In the end the cancellation is passed on.
    """

    def __init__(
        self,
        table: StateTable[StateT, EventT, ActionT],
        *,
        done: EventT,
        failed: EventT,
        perform: Callable[[ActionT], Coroutine[Any, Any, None]],
        record: Callable[[StateT, EventT, Transition[StateT, ActionT]], None] | None = None,
        abortable: Collection[ActionT] = (),
        interruptible: Collection[ActionT] = (),
    ) -> None:
        self._table = table
        self._done, self._failed = done, failed
        self._perform = perform
        self._record = record
        self._abortable = frozenset(abortable) | frozenset(interruptible)
        self._interruptible = frozenset(interruptible)
        self._cancelled: asyncio.CancelledError | None = None
        self.state = table.initial
        self.errors: list[Exception] = []

    async def feed(self, event: EventT) -> StateT:
        """Take ``event`` and everything that follows from it; returns where it stops.

        Raises ``CancelledError`` after that, if it was cancelled meanwhile.
        """
        while True:
            transition = self._table.step(self.state, event)
            try:
                if self._record is not None:
                    self._record(self.state, event, transition)
            except OSError as error:  # a journal that cannot be written must not stop a rollback
                self.errors.append(error)
            self.state = transition.state
            if transition.action is None:
                break
            event = await self._outcome(transition.action)
        cancelled, self._cancelled = self._cancelled, None
        if cancelled is not None:
            raise cancelled
        return self.state

    async def _outcome(self, action: ActionT) -> EventT:
        # A task of its own: a cancellation reaches us and not, unasked, what is under way.
        task = asyncio.create_task(self._perform(action))
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError as stop:
                self._cancelled = self._cancelled or stop
                if action in self._interruptible:
                    task.cancel()
        if self._cancelled is not None and action in self._abortable:
            self.errors.append(InterruptedActionError(action.value))
            if not task.cancelled() and (error := task.exception()) is not None:
                self.errors.append(_as_exception(error))
            return self._failed
        if task.cancelled():
            self.errors.append(InterruptedActionError(action.value))
            return self._failed
        if (error := task.exception()) is not None:
            self.errors.append(_as_exception(error))
            return self._failed
        return self._done


class InterruptedActionError(Exception):
    """An action was cut short from outside (a signal, a deadline)."""

    def __init__(self, action: str) -> None:
        super().__init__(f"interrupted during {action!r}")


def _as_exception(error: BaseException) -> Exception:
    """The error itself; one that means to end the whole process is raised instead."""
    if isinstance(error, Exception):
        return error
    raise error
