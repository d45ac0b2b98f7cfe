"""Runs a handover: performs what the state machine names, on the sides it is given."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from mycoproxy.addresses import FourTuple
from mycoproxy.errors import MycoError
from mycoproxy.handover.machine import TABLE, Action, Event, State
from mycoproxy.handover.routes import Plan, Routes
from mycoproxy.handover.sides import (
    Connection,
    Known,
    Offer,
    Peer,
    Rehomed,
    Source,
    Target,
    is_inside,
)
from mycoproxy.statetable import Driver, Transition
from mycoproxy.tcp import Segment, beyond

T = TypeVar("T")


class HandoverError(MycoError):
    """A handover did not come about. It has been undone, as far as the message does not say so."""


@dataclass(frozen=True, slots=True)
class Step:
    """When an action began and ended (``CLOCK_MONOTONIC``, seconds)."""

    action: Action
    begin: float
    end: float


class Nodes(NamedTuple):
    """The names of the nodes that the workload leaves, and goes to."""

    source: str
    target: str


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
        self._source, self._target, self._peers = source, target, peers
        self._addresses = dict(addresses)
        self._nodes = nodes
        self._routes = Routes(self._addresses, home=nodes.source, target=nodes.target)
        self._plan = Plan()
        self._newcomers: list[Segment] = []
        self._welcomed: set[FourTuple] = set()
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
        await _all(*(peer.finish() for peer in self._peers))

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
                await self._target.establish(self.connections, self._addresses, self._plan.via)
            case Action.RECORD_COMMIT:
                self._record_commit()
            case Action.GO_LIVE:
                await self._go_live()
            case Action.DISCARD:
                await self._target.discard()
            case Action.UNDO_REHOME:
                await _all(*(peer.undo() for peer in self._peers))
            case Action.RESUME_SOURCE:
                await self._source.resume()
            case Action.RELEASE_HOLD:
                lost = await self._lost_at_peers([])
                await self._source.release_hold([*lost, *self._newcomers])

    async def _go_live(self) -> None:
        failures: list[Exception] = []
        lost = [*await _tried(self._source.lost_segments(), failures)]
        lost += await self._lost_at_peers(failures)
        live = await self._target.go_live(lost)
        self.replayed, self.remarks = live.delivered, live.remarks
        if self._newcomers:
            syns, self._newcomers = self._newcomers, []
            self._welcomed.update(syn.connection for syn in syns)
            await self._target.welcome(syns, self._addresses, {})  # established with all others
        if failures:
            raise failures[0]

    async def _lost_at_peers(self, failures: list[Exception]) -> Sequence[Segment]:
        """What peers have kept that is news to the connections, by their names on the source."""
        kept: list[Segment] = []
        for peer in self._peers:
            kept += await _tried(peer.lost_segments(), failures)
        names = self._plan.wire_names
        named = [one.moved_to(names[one.connection]) for one in kept if one.connection in names]
        return beyond(named, [connection.state for connection in self.connections])

    async def survey(self, names: Sequence[Known]) -> None:
        """Ask every node what it can do for these connections. Raises ``MycoError``.

        Whatever was not asked for is asked for in the handover, and makes it longer.
        """
        new = [
            one for one in self._routes.unknown(names) if not is_inside(one.name, self._addresses)
        ]
        if not new:
            return
        wire = [one.on_the_wire for one in new]
        at_home: list[Offer] = []
        for peer in self._peers:
            if peer.name == self._nodes.source:
                at_home += await peer.survey(wire, self._addresses, home=True)
        outer = self._routes.learn_home(new, at_home)
        inside = set(wire)
        asked = {
            peer: [name for name in outer if name not in inside]
            if peer.name == self._nodes.source
            else outer
            for peer in self._peers
        }
        answers = await _all(
            *(peer.survey(names, self._addresses, home=False) for peer, names in asked.items())
        )
        for peer, offers in zip(asked, answers, strict=True):
            self._routes.learn(peer.name, offers)

    async def _rehome(self) -> None:
        travelling = [one.four_tuple for one in self.connections if one.has_path(self._addresses)]
        self._newcomers += await self._source.newcomers()
        plan = await self._lead([*travelling, *(syn.connection for syn in self._newcomers)])
        # A newcomer that nobody leads will send its SYN again: to wherever it is led by then.
        left = sorted(set(plan.unreached) & set(travelling))
        if left:
            others = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise MycoError(
                f"no peer node leads {left[0]}{others} to its new address: the client's node has "
                "to be among the peers, or the address has to be kept"
            )
        self._plan = plan
        self.rehomed = plan.rehomed

    async def _lead(self, names: Sequence[FourTuple]) -> Plan:
        await self.survey([Known(name) for name in names])
        plan = self._routes.plan(name for name in names if not is_inside(name, self._addresses))
        await _all(
            *(
                peer.rehome(plan.tasks[peer.name])
                for peer in self._peers
                if plan.tasks.get(peer.name)
            )
        )
        return plan

    async def follow(self) -> int:
        """Once live: pass on the connections that have begun at the source since the last call.

        Clients go on coming there until their nodes know better, and what they send there nobody
        answers. Returns how many there were. Raises ``MycoError``.
        """
        newcomers = [*self._newcomers, *await self._source.newcomers()]
        self._newcomers = []
        if not newcomers:
            return 0
        new = [syn.connection for syn in newcomers if syn.connection not in self._welcomed]
        plan = await self._lead(new)
        self._welcomed.update(new)
        await self._target.welcome(newcomers, self._addresses, plan.via)
        return len(newcomers)


async def _tried(
    losses: Awaitable[Sequence[Segment]], failures: list[Exception]
) -> Sequence[Segment]:
    """What was dropped while nobody could answer. Not having it costs the clients their
    retransmission timeout; an exception here, of whatever kind, must not cost more."""
    try:
        return await losses
    except Exception as error:  # noqa: BLE001
        failures.append(error)
        return ()


async def _all(*awaitables: Awaitable[T]) -> list[T]:
    """Wait for every one of them, also if one fails; then raise the first failure."""
    outcomes = await asyncio.gather(*awaitables, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
