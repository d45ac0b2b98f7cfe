"""UDP over a move, on a best-effort basis: docs/udp.md says what is kept.

Beside the handover of connections and not part of it: there is no state to hand over, nothing that
could be reset, and nothing in here makes a move fail. Order:

* ``survey`` while the workload runs: it walks conntrack tables, which takes too long for a freeze;
* ``collect`` while it stands: the sockets that there are in the end;
* ``restore`` when the copy is there: options of the sockets that CRIU does not know;
* ``deliver`` when the target is live and before its tasks run: flows are led to the new address,
  what waits at the old one is passed on;
* ``survey`` again when they run, for flows that began since the first;
* ``deliver`` again and again until the source is gone.

Nothing is undone, because nothing happens before the move can no longer be undone.
"""

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mycoproxy.addresses import Endpoint, FourTuple, wire_address
from mycoproxy.handover.datagram_routes import FlowOffer, FlowPlan, FlowRoutes, FlowTask
from mycoproxy.handover.leading import Nodes, all_of
from mycoproxy.handover.sides import is_inside
from mycoproxy.netfilter.datagram_flows import moved_end
from mycoproxy.netfilter.elements import on_the_wire
from mycoproxy.sockets import DescriptorName
from mycoproxy.sockets.datagram import Datagram
from mycoproxy.sockets.datagram_options import Options


@dataclass(frozen=True, slots=True)
class DatagramEnd:
    """A UDP socket of the workload; ``remote`` if it is connected.

    ``names`` and ``options`` are what the same socket of the copy is found by, and gets.
    """

    local: Endpoint
    remote: Endpoint | None = None
    names: tuple[DescriptorName, ...] = ()
    options: Options = field(default_factory=dict, hash=False)


class DatagramSource(Protocol):
    """The sockets where the workload was."""

    async def collect(self) -> Sequence[DatagramEnd]:
        """All of them, as of now. What ``arrived`` has returned is forgotten by that."""

    async def arrived(self) -> Sequence[Datagram]:
        """What waits in them, but for what was returned before. It stays there."""

    async def drops(self) -> Mapping[Endpoint, int]:
        """How many datagrams there was no room for since the first ``collect``, where there were
        any."""


class DatagramPeer(Protocol):
    """A node that other ends are on, or that flows pass."""

    name: str

    async def survey(
        self, addresses: Mapping[str, str], ports: Sequence[int], *, home: bool
    ) -> Sequence[FlowOffer]:
        """The flows of the workload's old addresses (the keys) at these ports of it."""

    async def ask(
        self, flows: Sequence[FourTuple], addresses: Mapping[str, str], *, home: bool
    ) -> Sequence[FlowOffer]:
        """The same of flows that are known by name."""

    async def lead(self, tasks: Sequence[FlowTask]) -> None:
        """Do this node's part."""


class DatagramTarget(Protocol):
    """The sockets where the workload is."""

    async def restore(self, ends: Sequence[DatagramEnd]) -> Sequence[str]:
        """Give the copy's sockets the options that CRIU leaves out. The copy is there and stands.

        Returns what could not be done, in words.
        """

    async def deliver(self, datagrams: Sequence[Datagram]) -> None:
        """Put datagrams into the queues of whatever sockets they are for."""


class Datagrams:
    """The UDP flows of one move. ``addresses`` maps the workload's old addresses to new ones."""

    def __init__(
        self,
        source: DatagramSource,
        target: DatagramTarget,
        peers: Sequence[DatagramPeer],
        *,
        addresses: Mapping[str, str],
        nodes: Nodes,
    ) -> None:
        self._source, self._target, self._peers = source, target, peers
        self._addresses = dict(addresses)
        self._nodes = nodes
        self._routes = FlowRoutes(self._addresses, home=nodes.source, target=nodes.target)
        self._ends: Sequence[DatagramEnd] = ()
        self._after: dict[FourTuple, FourTuple] = {}
        self._surveyed: set[FourTuple] = set()
        self._live = False
        self._remarks: dict[str, None] = {}
        self.flows = 0
        self.delivered = 0

    @property
    def remarks(self) -> tuple[str, ...]:
        """What could not be kept, in words."""
        return tuple(self._remarks)

    @property
    def has_sockets(self) -> bool:
        """Had the workload any when they were looked at last?"""
        return bool(self._ends)

    async def survey(self) -> None:
        """Find out what flows there are, and who can do what for them. Raises ``MycoError``,
        ``OSError``."""
        if not self._live:
            self._ends = await self._source.collect()
        if not self._ends:
            return
        ports = sorted({end.local.port for end in self._ends})
        found = await all_of(
            *(
                peer.survey(self._addresses, ports, home=peer.name == self._nodes.source)
                for peer in self._peers
            )
        )
        for peer, offers in zip(self._peers, found, strict=True):
            self._routes.learn(peer.name, offers)
        await self._look_at([*self._routes.known, *self._connected()])

    async def collect(self) -> None:
        """Take the sockets as they are now that the tasks stand. Raises as ``survey``."""
        self._ends = await self._source.collect()
        await self._look_at(self._connected())

    async def restore(self) -> None:
        """The copy is there: make its sockets what the source's are. Raises as ``survey``."""
        if self._ends:
            for remark in await self._target.restore(self._ends):
                self._remark(remark)

    async def _look_at(self, flows: Iterable[FourTuple]) -> None:
        """Ask every node about those that are new, unless it is known who leads them."""
        new = [flow for flow in dict.fromkeys(flows) if flow not in self._surveyed]
        await self._ask(self._routes.without_end(new))
        self._surveyed.update(new)

    async def deliver(self) -> int:
        """Lead the flows that were not led yet, and pass on what has come to the old place.

        Returns how many datagrams that were. Raises ``MycoError``, ``OSError``; what could be done
        was done.
        """
        if not self._ends:
            return 0
        self._live = True
        named = [(_wired(one.flow), one) for one in await self._source.arrived()]
        for group in {flow.local for flow, _ in named if _is_group(flow.local)}:
            # It would go out to the whole group again.
            self._remark(f"UDP {group}: what came to this multicast group is not passed on")
        named = [(flow, one) for flow, one in named if not _is_group(flow.local)]
        await self._look_at(flow for flow, _ in named)
        try:
            await self._lead(flow for flow in self._surveyed if flow not in self._after)
        finally:
            await self._target.deliver([one.between(self._moved(flow)) for flow, one in named])
        self.delivered += len(named)
        return len(named)

    async def count_drops(self) -> None:
        """Say in the remarks what was lost because a queue was full. Raises ``OSError``."""
        for local, count in (await self._source.drops()).items():
            self._remark(f"UDP {local}: its queue was full, {count} datagrams were dropped")

    async def _ask(self, flows: Sequence[FourTuple]) -> None:
        outside = [flow for flow in flows if not is_inside(flow, self._addresses)]
        if not outside:
            return
        answers = await all_of(
            *(
                peer.ask(outside, self._addresses, home=peer.name == self._nodes.source)
                for peer in self._peers
            )
        )
        for peer, offers in zip(self._peers, answers, strict=True):
            self._routes.learn(peer.name, offers)

    async def _lead(self, flows: Iterable[FourTuple]) -> None:
        new = list(flows)
        if not new:
            return
        outside = [flow for flow in new if not is_inside(flow, self._addresses)]
        plan = self._routes.plan(outside, frozenset(self._connected()))
        self._after |= {flow: flow for flow in new} | plan.after
        self.flows += len(outside)
        for remark in plan.remarks:
            self._remark(remark)
        await all_of(
            *(peer.lead(plan.tasks[peer.name]) for peer in self._peers if plan.tasks.get(peer.name))
        )

    def _moved(self, flow: FourTuple) -> FourTuple:
        """Where a datagram of that flow belongs now."""
        after = self._after.get(flow, flow)
        ends = (moved_end(end, self._addresses) for end in (after.local, after.remote))
        return FourTuple(*ends)

    def _connected(self) -> list[FourTuple]:
        return [
            _wired(FourTuple(end.local, end.remote))
            for end in self._ends
            if end.remote is not None and wire_address(end.local.address) in self._addresses
        ]

    def _remark(self, remark: str) -> None:
        self._remarks[remark] = None


def _is_group(end: Endpoint) -> bool:
    return ipaddress.ip_address(end.address).is_multicast


def _wired(flow: FourTuple) -> FourTuple:
    return FourTuple(on_the_wire(flow.local), on_the_wire(flow.remote))


__all__ = [
    "DatagramEnd",
    "DatagramPeer",
    "DatagramSource",
    "DatagramTarget",
    "Datagrams",
    "FlowPlan",
]
