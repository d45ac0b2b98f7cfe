"""Which node leads which flow of UDP datagrams to the workload's new address. Pure.

Much less than ``routes`` has to know of connections: any one node that the flow passes can lead it,
by NAT in conntrack. One does, the nearest to the other end; two would NAT one after the other.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.netfilter.datagram_flows import carried_entry, moved_end, plain_entry
from mycoproxy.netfilter.entry import ConntrackEntry, wire_direction
from mycoproxy.netfilter.paths import Path


@dataclass(frozen=True, slots=True)
class FlowOffer:
    """What a node can do for a flow, which it calls ``flow`` on the workload's side.

    ``path`` as for connections. ``entry``: what conntrack there knows. ``certain``: all packets
    of the other end pass there. ``anchor``: the address to speak to the workload from.
    """

    flow: FourTuple
    path: Path
    entry: ConntrackEntry | None = None
    certain: bool = True
    anchor: str | None = None


@dataclass(frozen=True, slots=True)
class FlowTask:
    """Make ``flow`` be ``after`` on the workload's side. CARRY and ADMIT: insert ``entry``."""

    flow: FourTuple
    path: Path
    after: FourTuple
    entry: ConntrackEntry | None = None


@dataclass(slots=True)
class FlowPlan:
    """``tasks`` by node. ``after``: what each flow is called at the workload from now on.

    ``remarks``: what cannot be kept, in words.
    """

    tasks: dict[str, list[FlowTask]] = field(default_factory=lambda: defaultdict(list))
    after: dict[FourTuple, FourTuple] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


class FlowRoutes:
    """The flows of one move. ``home`` and ``target`` are the nodes it leaves and goes to."""

    def __init__(self, addresses: Mapping[str, str], *, home: str, target: str) -> None:
        self._addresses = addresses
        self._home, self._target = home, target
        self._offers: dict[FourTuple, list[tuple[str, FlowOffer]]] = defaultdict(list)

    @property
    def known(self) -> frozenset[FourTuple]:
        """Those that somebody has offered something for."""
        return frozenset(self._offers)

    def learn(self, node: str, offers: Iterable[FlowOffer]) -> None:
        """What a node offers. The same flow may be offered more than once."""
        for offer in offers:
            if (node, offer) not in self._offers[offer.flow]:
                self._offers[offer.flow].append((node, offer))

    def without_end(self, flows: Iterable[FourTuple]) -> list[FourTuple]:
        """Those for which nobody has said yet that it NATs them, or that the other end is there."""
        sure = (Path.REBIND, Path.TRANSLATE, Path.CARRY)
        return [
            flow
            for flow in flows
            if not any(offer.path in sure for _, offer in self._offers.get(flow, ()))
        ]

    def plan(self, flows: Iterable[FourTuple], fixed: frozenset[FourTuple]) -> FlowPlan:
        """What is to be done. ``fixed``: the other end cannot change, the socket is connected."""
        plan = FlowPlan()
        for flow in flows:
            self._add(plan, flow, flow in fixed)
        return plan

    def _add(self, plan: FlowPlan, flow: FourTuple, fixed: bool) -> None:
        offers = self._offers.get(flow, ())
        after = FourTuple(moved_end(flow.local, self._addresses), flow.remote)
        plan.after[flow] = after
        by_path: dict[Path, list[tuple[str, FlowOffer]]] = defaultdict(list)
        for node, offer in offers:
            by_path[offer.path].append((node, offer))
        leading = (
            by_path[Path.REBIND]
            or by_path[Path.TRANSLATE][:1]
            or [one for one in by_path[Path.ADMIT] if one[1].certain][:1]
            or [one for one in by_path[Path.ADMIT] if one[0] != self._home][:1]
        )
        if after.local == flow.local:
            return
        if by_path[Path.CARRY] and not by_path[Path.REBIND]:
            for _, offer in by_path[Path.CARRY][:1]:
                assert offer.entry is not None
                entry = carried_entry(offer.entry, self._addresses)
                plan.tasks[self._target].append(FlowTask(flow, Path.CARRY, after, entry))
        elif leading:
            for node, offer in leading:
                path = Path.TRANSLATE if offer.path is Path.TRANSLATE else Path.REBIND
                plan.tasks[node].append(FlowTask(flow, path, after))
        else:
            self._anchor(plan, flow, after, offers, fixed=fixed)
        if not by_path[Path.CARRY]:
            self._admit(plan, flow, offers)

    def _admit(
        self, plan: FlowPlan, flow: FourTuple, offers: Sequence[tuple[str, FlowOffer]]
    ) -> None:
        """Tell the target's node, whose masquerading must not take an answer for something new.

        What was asked of the workload in its old place never passed there.
        """
        at_home = [offer.entry for node, offer in offers if node == self._home and offer.entry]
        if at_home:
            entry = plain_entry(at_home[0], flow, plan.after[flow])
            task = FlowTask(flow, Path.ADMIT, plan.after[flow], entry)
            plan.tasks[self._target].insert(0, task)

    def _anchor(
        self,
        plan: FlowPlan,
        flow: FourTuple,
        after: FourTuple,
        offers: Sequence[tuple[str, FlowOffer]],
        *,
        fixed: bool,
    ) -> None:
        """Nobody else can: the node that is left goes on receiving, if that is of use."""
        for node, offer in offers:
            opened_here = offer.entry is not None and offer.entry.orig == wire_direction(*flow)
            if node != self._home or opened_here or offer.anchor is None or fixed:
                continue
            through = FourTuple(after.local, Endpoint(offer.anchor, flow.remote.port))
            plan.tasks[node].append(FlowTask(flow, Path.ANCHOR, through))
            plan.after[flow] = through
            plan.remarks.append(
                f"UDP {flow}: goes on through {node}, and the workload sees {offer.anchor} there"
            )
            return
        plan.remarks.append(
            f"UDP {flow}: nobody leads it: the other end sees datagrams from another address, "
            "and what it sends to the old one is lost"
        )
