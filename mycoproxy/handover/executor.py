"""Runs a handover: performs what the state machine names, on the sides it is given."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mycoproxy.errors import MycoError
from mycoproxy.handover.leading import Leading, Nodes, tried
from mycoproxy.handover.machine import TABLE, Action, Event, State
from mycoproxy.handover.sides import (
    Connection,
    Known,
    Peer,
    Rehomed,
    Source,
    Target,
)
from mycoproxy.statetable import Driver, Transition

T = TypeVar("T")


class HandoverError(MycoError):
    """A handover did not come about. It has been undone, as far as the message does not say so."""


@dataclass(frozen=True, slots=True)
class Step:
    """When an action began and ended (``CLOCK_MONOTONIC``, seconds)."""

    action: Action
    begin: float
    end: float


class Handover:
    """One handover. ``ready``, then ``commit``, then ``go_live``; ``undo`` until that.

    ``survey`` ahead of it. ``addresses`` maps the workload's old addresses to its new ones.
    ``record_commit`` is called at the commit, and may still prevent it by raising.
    """

    def __init__(
        self,
        source: Source,
        target: Target,
        peers: Sequence[Peer],
        *,
        addresses: Mapping[str, str],
        nodes: Nodes,
        record_commit: Callable[[], None],
        record: Callable[[State, Event, Transition[State, Action]], None] | None = None,
    ) -> None:
        self._source, self._target = source, target
        self._addresses = dict(addresses)
        self._leading = Leading(peers, addresses=addresses, nodes=nodes)
        self._record_commit = record_commit
        self.connections: Sequence[Connection] = ()
        self.rehomed: list[Rehomed] = []
        self.steps: list[Step] = []
        self.replayed = 0
        self.remarks: tuple[str, ...] = ()
        self._driver = Driver(
            TABLE,
            done=Event.DONE,
            failed=Event.FAILED,
            perform=self._perform,
            record=record,
            abortable=(Action.HOLD, Action.CAPTURE, Action.REHOME, Action.ESTABLISH),
        )

    @property
    def state(self) -> State:
        """Where the handover is."""
        return self._driver.state

    @property
    def count(self) -> int:
        """How many connections there are."""
        return len(self.connections)

    @property
    def steps_ms(self) -> dict[str, float]:
        """How long each action took, in milliseconds."""
        return {step.action.value: (step.end - step.begin) * 1e3 for step in self.steps}

    @property
    def welcomed(self) -> int:
        """New connections that were passed on and not counted by ``follow``: none."""
        return 0

    async def ready(self) -> None:
        """Hold, capture, re-home, establish. Raises ``HandoverError``; then all is undone."""
        if await self._driver.feed(Event.START) is not State.READY:
            raise self._failure("the handover failed and was undone")

    async def commit(self) -> None:
        """The point of no return, but for the target's death. Raises ``HandoverError``."""
        if await self._driver.feed(Event.COMMIT) is not State.COMMITTED:
            raise self._failure("the commit failed and the handover was undone")

    async def go_live(self) -> None:
        """Let the target's connections live. Raises ``HandoverError`` with what went wrong."""
        before = len(self._driver.errors)
        await self._driver.feed(Event.LIVE)
        if len(self._driver.errors) > before:
            raise self._failure("connections are on the target, but did not all go live")

    async def undo(self) -> None:
        """Give the connections back to the source, wherever the handover is by now.

        The target's tasks must be dead or not running. Raises ``HandoverError`` if a step of the
        way back failed (the others were done).
        """
        before = len(self._driver.errors)
        if self.state is State.COMMITTED:
            await self._driver.feed(Event.TARGET_DEAD)
        elif self.state in (State.READY, State.IDLE):
            await self._driver.feed(Event.ABORT)
        if len(self._driver.errors) > before:
            raise self._failure("the handover was undone with errors")

    async def finish(self) -> None:
        """Once the source is gone: have the nodes forget what only its old place needed.

        Raises ``MycoError``: something is left, and will expire.
        """
        await self._leading.finish()

    def _failure(self, what: str) -> HandoverError:
        reasons = "; ".join(str(error) or repr(error) for error in self._driver.errors)
        return HandoverError(f"{what}: {reasons}")

    async def _perform(self, action: Action) -> None:
        begin = time.monotonic()
        try:
            await self._act(action)
        finally:
            self.steps.append(Step(action, begin, time.monotonic()))

    async def _act(self, action: Action) -> None:
        match action:
            case Action.HOLD:
                await self._source.hold()
            case Action.CAPTURE:
                self.connections = await self._source.capture()
            case Action.REHOME:
                await self._rehome()
            case Action.ESTABLISH:
                await self._target.establish(
                    self.connections, self._addresses, self._leading.current.via
                )
            case Action.RECORD_COMMIT:
                self._record_commit()
            case Action.GO_LIVE:
                await self._go_live()
            case Action.DISCARD:
                await self._target.discard()
            case Action.UNDO_REHOME:
                await self._leading.undo()
            case Action.RESUME_SOURCE:
                await self._source.resume()
            case Action.RELEASE_HOLD:
                lost = await self._leading.lost(self.connections, [])
                await self._source.release_hold([*lost, *self._leading.take_newcomers()])

    async def _go_live(self) -> None:
        failures: list[Exception] = []
        lost = [*await tried(self._source.lost_segments(), failures)]
        lost += await self._leading.lost(self.connections, failures)
        live = await self._target.go_live(lost)
        self.replayed, self.remarks = live.delivered, live.remarks
        if syns := self._leading.take_newcomers():
            await self._target.welcome(syns, self._addresses, {})  # established with all others
        if failures:
            raise failures[0]

    async def survey(self, names: Sequence[Known]) -> None:
        """See ``Leading.survey``; once the workload stands. What is expected is staged."""
        await self._leading.survey(names)
        self._leading.expect()
        await self._leading.stage()

    async def _rehome(self) -> None:
        plan = await self._leading.plan(self.connections, await self._source.newcomers())
        await self._leading.rehome(plan)
        self.rehomed = plan.rehomed

    async def follow(self) -> int:
        """See ``Leading.follow``."""
        return await self._leading.follow(self._source, self._target.welcome)
