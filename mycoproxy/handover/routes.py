"""Which node does what, so that every connection leads to the workload's new place. Pure.

A connection has a name on each part of its way:

* the socket's: workload and client (or what the workload dialled);
* *on the wire* next to the workload, where a translation in its own namespace may have put an
  anchor node's address in the place of the client's (``Known.via``);
* *outside* of the workload's node, where that node's NAT may have changed either end, if the
  workload opened the connection (``outer_name``). This is what other nodes know it by.

``Routes`` collects what each node offers for these names, and says what each has to do.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mycoproxy.addresses import Endpoint, FourTuple, wire_address
from mycoproxy.handover.sides import Known, Offer, Rehomed, Task
from mycoproxy.netfilter.elements import on_the_wire
from mycoproxy.netfilter.entry import wire_direction
from mycoproxy.netfilter.paths import Path
from mycoproxy.netfilter.renamed import moved_entry, plain_entry


@dataclass(slots=True)
class Plan:
    """Who does what for the connections ``names``. ``tasks`` by node; ``via`` by the socket's name
    (see ``Target.establish``).

    ``unreached``: connections that nobody can lead to their new address, by the socket's name.
    """

    names: set[FourTuple] = field(default_factory=set)
    tasks: dict[str, list[Task]] = field(default_factory=lambda: defaultdict(list))
    via: dict[FourTuple, Endpoint] = field(default_factory=dict)
    rehomed: list[Rehomed] = field(default_factory=list)
    unreached: list[FourTuple] = field(default_factory=list)
    wire_names: dict[FourTuple, FourTuple] = field(default_factory=dict)
    """The socket's names by those that the tasks use."""

    def names_at(self, node: str, sockets: Collection[FourTuple]) -> list[FourTuple]:
        """What the tasks of ``node`` for these connections, by the socket's names, call them."""
        return [
            task.connection
            for task in self.tasks.get(node, ())
            if self.wire_names[task.connection] in sockets
        ]


def outer_name(connection: FourTuple, offer: Offer | None) -> FourTuple:
    """The name outside of the workload's node, given what that node says of the one inside."""
    if offer is None or offer.entry is None:
        return connection
    if wire_direction(connection.local, connection.remote) != offer.entry.orig:
        return connection
    return FourTuple(local=offer.entry.reply.destination, remote=offer.entry.reply.source)


def moved_address(address: str, addresses: Mapping[str, str]) -> str:
    """An address after the move, as it is in packets; the same if it is not one that changes."""
    old = wire_address(address)
    return addresses.get(old, old)


class Routes:
    """The routes of one move. ``home`` and ``target`` are the nodes it leaves and goes to."""

    def __init__(self, addresses: Mapping[str, str], *, home: str, target: str) -> None:
        self._addresses = addresses
        self._home, self._target = home, target
        self._known: dict[FourTuple, Known] = {}
        self._at_home: dict[FourTuple, Offer] = {}
        self._elsewhere: dict[FourTuple, list[tuple[str, Offer]]] = defaultdict(list)
        self._ways: dict[FourTuple, _Way] = {}

    def unknown(self, names: Iterable[Known]) -> list[Known]:
        """Those that were not surveyed yet."""
        return [one for one in names if one.name not in self._known]

    @property
    def names(self) -> list[FourTuple]:
        """All that were surveyed."""
        return list(self._known)

    def learn_home(self, names: Sequence[Known], offers: Iterable[Offer]) -> list[FourTuple]:
        """What the workload's node offers for ``names``; returns what other nodes call them."""
        self._known.update((one.name, one) for one in names)
        for offer in offers:
            if offer.path is Path.TRANSLATE:  # for a client that is on this node, too
                self._elsewhere[offer.connection].append((self._home, offer))
                offer = replace(offer, path=Path.NOTHING)  # noqa: PLW2901
            if offer.entry is not None or offer.connection not in self._at_home:
                self._at_home[offer.connection] = offer
        return list(dict.fromkeys(self._outer(one) for one in names))

    def learn(self, node: str, offers: Iterable[Offer]) -> None:
        """What a node offers for the names that ``learn_home`` gave."""
        for offer in offers:
            if offer.path is not Path.NOTHING:
                self._elsewhere[offer.connection].append((node, offer))

    def plan(self, names: Iterable[FourTuple]) -> Plan:
        """What is to be done for those connections. All of them have been learnt of.

        It is decided once for each.
        """
        plan = Plan()
        for name in names:
            if name not in self._ways:
                self._ways[name] = self._decide(self._known[name])
            self._ways[name].add_to(plan)
        return plan

    def _outer(self, known: Known) -> FourTuple:
        return outer_name(known.on_the_wire, self._at_home.get(known.on_the_wire))

    def _decide(self, known: Known) -> "_Way":
        outer = self._outer(known)
        way = _Way(
            known=known,
            home=self._at_home.get(known.on_the_wire),
            outer=outer,
            elsewhere=self._elsewhere.get(outer, ()),
            after=self._moved(known.on_the_wire),
            via=known.via,
        )
        way.leads = self._lead(way)
        if way.leads:
            self._admit(way)
        return way

    def _lead(self, way: "_Way") -> bool:
        """Whether the connection leads to the new address, with what is done for it."""
        at_home = Path.NOTHING if way.home is None else way.home.path
        leading = [one for one in way.elsewhere if one[1].path in (Path.REBIND, Path.TRANSLATE)]
        anchoring = [one for one in way.elsewhere if one[1].path is Path.ANCHOR]
        if at_home is Path.REBIND:
            self._rebind(way, self._home, way.wire)
        elif at_home is Path.CARRY and (leading or self._is_to_itself(way.home)):
            self._carry(way)
            self._lead_elsewhere(way, leading)
        elif at_home in (Path.CARRY, Path.ANCHOR):
            return self._anchor(way, self._home, way.home)
        elif leading:
            self._lead_elsewhere(way, leading)
        elif anchoring:
            return self._anchor(way, *anchoring[0])
        elif way.after.local != way.wire.local:
            return self._anchor(way, self._home, way.home)
        return True

    def _rebind(self, way: "_Way", node: str, name: FourTuple) -> None:
        after = self._moved(name)
        if way.via is not None and node == self._target:
            # The workload comes to the node that it is anchored at: it needs no anchor any more.
            way.via = None
            way.after = after = FourTuple(after.local, on_the_wire(way.known.name.remote))
        way.tasks.append((node, Task(name, Path.REBIND, after)))

    def _lead_elsewhere(self, way: "_Way", offers: Iterable[tuple[str, Offer]]) -> None:
        for node, offer in offers:
            if offer.path is Path.REBIND:
                self._rebind(way, node, way.outer)
            else:
                task = Task(way.outer, Path.TRANSLATE, self._moved(way.outer))
                way.tasks.append((node, task))

    def _carry(self, way: "_Way") -> None:
        assert way.home is not None and way.home.entry is not None
        carried = moved_entry(way.home.entry, self._addresses)
        way.tasks.append((self._target, Task(way.wire, Path.CARRY, way.after, carried)))

    def _anchor(self, way: "_Way", node: str, offer: Offer | None) -> bool:
        if offer is None or offer.anchor is None:
            return False
        way.via = offer.anchor
        way.after = FourTuple(way.after.local, offer.anchor)
        way.tasks.append((node, Task(offer.connection, Path.ANCHOR, way.after)))
        return True

    def _admit(self, way: "_Way") -> None:
        """Tell those that track it, and the target's node, whose NAT must not take it for new."""
        tracking = [node for node, offer in way.elsewhere if offer.path is Path.ADMIT]
        way.tasks += [
            (node, Task(way.outer, Path.ADMIT, way.after))
            for node in tracking
            if node not in (self._home, self._target)
        ]
        if way.home is None or way.home.entry is None:
            return
        if not way.has_entry_at(self._target):
            entry = plain_entry(way.home.entry, way.wire, way.after)
            way.tasks.append((self._target, Task(way.wire, Path.ADMIT, way.after, entry)))
        if not way.has_entry_at(self._home):
            way.tasks.append((self._home, Task(way.wire, Path.NOTHING, way.after)))

    def _is_to_itself(self, offer: Offer | None) -> bool:
        """Is the workload at both ends, with a Service in between?"""
        ends = () if offer is None or offer.entry is None else (offer.entry.orig, offer.entry.reply)
        return bool(ends) and all(one.source.address in self._addresses for one in ends)

    def _moved(self, name: FourTuple) -> FourTuple:
        local = Endpoint(moved_address(name.local.address, self._addresses), name.local.port)
        return FourTuple(local, name.remote)


@dataclass(slots=True)
class _Way:
    """One connection's way, while it is decided. ``after``: its new name on the wire."""

    known: Known
    home: Offer | None
    outer: FourTuple
    elsewhere: Sequence[tuple[str, Offer]]
    after: FourTuple
    via: Endpoint | None
    tasks: list[tuple[str, Task]] = field(default_factory=list)
    leads: bool = False

    def add_to(self, plan: Plan) -> None:
        """It is one of those to be done."""
        name = self.known.name
        plan.names.add(name)
        if not self.leads:
            plan.unreached.append(name)
            return
        if self.via is not None:
            plan.via[name] = self.via
        for node, task in self.tasks:
            plan.tasks[node].append(task)
            plan.wire_names[task.connection] = name
            if task.path is not Path.NOTHING:
                plan.rehomed.append(Rehomed(node, name, task.path))

    @property
    def wire(self) -> FourTuple:
        return self.known.on_the_wire

    def has_entry_at(self, node: str) -> bool:
        """Is anything done there that leaves a conntrack entry in place?"""
        kinds = (Path.REBIND, Path.ANCHOR, Path.CARRY, Path.ADMIT)
        return any(where == node and task.path in kinds for where, task in self.tasks)
