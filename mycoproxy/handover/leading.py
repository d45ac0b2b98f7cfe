"""All nodes together: asks them what they can do, has them do it, and collects what they kept."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import NamedTuple, TypeVar

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.errors import MycoError
from mycoproxy.handover.routes import Plan, Routes
from mycoproxy.handover.sides import Connection, Known, Offer, Peer, Source, is_inside
from mycoproxy.tcp import Segment, beyond

T = TypeVar("T")


Welcome = Callable[
    [Sequence[Segment], Mapping[str, str], Mapping[FourTuple, Endpoint]], Awaitable[None]
]
"""See ``Target.welcome``."""


class Nodes(NamedTuple):
    """The names of the nodes that the workload leaves, and goes to."""

    source: str
    target: str


class Leading:
    """The paths of one move. ``survey`` ahead of it; then ``plan``, ``rehome``; ``follow`` when the
    workload runs on the target.

    ``addresses`` maps the workload's old addresses to its new ones.
    """

    def __init__(
        self, peers: Sequence[Peer], *, addresses: Mapping[str, str], nodes: Nodes
    ) -> None:
        self._peers = peers
        self._addresses = dict(addresses)
        self._nodes = nodes
        self._routes = Routes(self._addresses, home=nodes.source, target=nodes.target)
        self._plan = Plan()
        self._staged = Plan()
        self._late = Plan()
        self._newcomers: list[Segment] = []
        self._welcomed: set[FourTuple] = set()

    @property
    def current(self) -> Plan:
        """The plan that was made last."""
        return self._plan

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
        answers = await all_of(
            *(peer.survey(names, self._addresses, home=False) for peer, names in asked.items())
        )
        for peer, offers in zip(asked, answers, strict=True):
            self._routes.learn(peer.name, offers)

    def expect(self) -> set[str]:
        """Plan for what was found so far. Returns the nodes that will have something to do."""
        self._staged = self._routes.plan(self._routes.names)
        return set(self._staged.tasks)

    async def stage(self) -> None:
        """Tell every node what is expected, so that only what is new has to be told in the
        handover. Raises ``MycoError``."""
        await all_of(
            *(
                peer.stage(self._staged.tasks[peer.name])
                for peer in self._peers
                if self._staged.tasks.get(peer.name)
            )
        )

    async def plan(self, connections: Sequence[Connection], newcomers: Sequence[Segment]) -> Plan:
        """What is to be done for all of them. Surveys those that are new.

        Raises ``MycoError`` if a connection cannot be led to its new address. (A newcomer that
        nobody leads will send its SYN again: to wherever it is led by then.)
        """
        travelling = [one.four_tuple for one in connections if one.has_path(self._addresses)]
        self._newcomers += newcomers
        names = [*travelling, *(syn.connection for syn in self._newcomers)]
        await self.survey([Known(name) for name in names])
        plan = self._plan_with(dict.fromkeys(names))
        left = sorted(set(plan.unreached) & set(travelling))
        if left:
            others = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise MycoError(
                f"no peer node leads {left[0]}{others} to its new address: the client's node has "
                "to be among the peers, or the address has to be kept"
            )
        self._plan = plan
        return plan

    def _plan_with(self, names: Collection[FourTuple]) -> Plan:
        """What was staged is most of it, or all."""
        outside = dict.fromkeys(name for name in names if not self._is_inside(name))
        self._late = self._routes.plan(name for name in outside if name not in self._staged.names)
        if outside.keys() == self._staged.names:  # as a rule
            return self._staged
        return self._routes.plan(outside)

    def _is_inside(self, name: FourTuple) -> bool:
        return is_inside(name, self._addresses)

    async def rehome(self, plan: Plan, *, involved: Collection[str] = ()) -> None:
        """Have every node do its part of what ``plan`` returned, and those that are ``involved``
        with nothing to do end theirs. Raises ``MycoError``."""
        gone = self._staged.names - plan.names
        nodes = {*involved, *self._staged.tasks, *plan.tasks}
        await all_of(
            *(
                peer.rehome(
                    self._late.tasks.get(peer.name, ()), self._staged.names_at(peer.name, gone)
                )
                for peer in self._peers
                if peer.name in nodes
            )
        )

    async def lost(
        self, connections: Sequence[Connection], failures: list[Exception]
    ) -> list[Segment]:
        """What peers have kept that is news to the connections, by their names on the source."""
        kept: list[Segment] = []
        for peer in self._peers:
            kept += await tried(peer.lost_segments(), failures)
        names = self._plan.wire_names
        named = [one.moved_to(names[one.connection]) for one in kept if one.connection in names]
        return [*beyond(named, [connection.state for connection in connections])]

    def take_newcomers(self) -> list[Segment]:
        """The SYNs that came meanwhile; whoever takes them delivers them."""
        taken, self._newcomers = self._newcomers, []
        self._welcomed.update(syn.connection for syn in taken)
        return taken

    async def follow(self, source: Source, welcome: Welcome) -> int:
        """Once live: pass on the connections that have begun at the source since the last call,
        with the target's ``welcome``.

        Clients go on coming there until their nodes know better, and what they send there nobody
        answers. Returns how many there were. Raises ``MycoError``.
        """
        newcomers = [*self._newcomers, *await source.newcomers()]
        self._newcomers = []
        if not newcomers:
            return 0
        new = [syn.connection for syn in newcomers if syn.connection not in self._welcomed]
        await self.survey([Known(name) for name in new])
        plan = self._routes.plan(name for name in new if not self._is_inside(name))
        await all_of(
            *(peer.rehome(tasks) for peer in self._peers if (tasks := plan.tasks.get(peer.name)))
        )
        self._welcomed.update(new)
        await welcome(newcomers, self._addresses, plan.via)
        return len(newcomers)

    async def undo(self) -> None:
        """Have every node lead back. All are asked, then the first failure is raised."""
        await all_of(*(peer.undo() for peer in self._peers))

    async def finish(self) -> None:
        """Once the source is gone: have the nodes forget what only its old place needed.

        Raises ``MycoError``: something is left, and will expire.
        """
        await all_of(*(peer.finish() for peer in self._peers))


async def tried(
    losses: Awaitable[Sequence[Segment]], failures: list[Exception]
) -> Sequence[Segment]:
    """What was dropped while nobody could answer. Not having it costs the clients their
    retransmission timeout; an exception here, of whatever kind, must not cost more."""
    try:
        return await losses
    except Exception as error:  # noqa: BLE001
        failures.append(error)
        return ()


async def all_of(*awaitables: Awaitable[T]) -> list[T]:
    """Wait for every one of them, also if one fails; then raise the first failure."""
    outcomes = await asyncio.gather(*awaitables, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
