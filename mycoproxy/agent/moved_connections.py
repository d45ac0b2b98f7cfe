"""The part that knows which connections are re-homed here.

They outlive the agent, so the kernel is asked each time: for the translations that stand, and for
each conntrack entry that a move has left (``ledger``), whether it is still exactly that. A
namespace is entered by a thread that ends with the question: one that stayed would keep a pod's
namespace alive.
"""

from __future__ import annotations

import asyncio
import glob
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client import Counter as Count

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.agent.config import Config, NamespacesSection
from mycoproxy.agent.ledger import Led, Ledger, Translated
from mycoproxy.agent.part import Agent, Part
from mycoproxy.agent.questions import Row, Rows
from mycoproxy.errors import MycoError
from mycoproxy.handover.peer import Changes
from mycoproxy.moves.entries import Entry
from mycoproxy.namespaces import NamespaceWorker
from mycoproxy.netfilter.abi import TCP_CONNTRACK_TIME_WAIT
from mycoproxy.netfilter.conntrack import Conntrack
from mycoproxy.netfilter.elements import on_the_wire
from mycoproxy.netfilter.entry import Direction
from mycoproxy.netfilter.local_addresses import local_addresses
from mycoproxy.netfilter.nft import Nft
from mycoproxy.netfilter.paths import Path as Way
from mycoproxy.netfilter.translate import Translate

log = logging.getLogger(__name__)

LOOK: Final = 15.0
"""Seconds between two looks at what is still there, as long as anything is."""

LISTED: Final = (Way.REBIND, Way.TRANSLATE, Way.ANCHOR, Way.CARRY)


@dataclass(frozen=True, slots=True)
class _Left:
    """What a move has left here."""

    move: str
    changes: Sequence[tuple[Path, Changes]]
    without: frozenset[FourTuple]


class MovedConnections(Part):
    """Answers ``connections`` with what is re-homed in the node's and its pods' namespaces."""

    name: ClassVar[str] = "namespaces"

    def __init__(self) -> None:
        self.is_quiet: Callable[[], bool] = lambda: True
        """Is nothing being moved? Otherwise an entry may be missing for a moment."""
        self._namespaces: NamespacesSection
        self._ledger: Ledger
        self._count: Count
        self._now: Gauge
        self._asking = asyncio.Lock()
        self._left: asyncio.Queue[_Left] = asyncio.Queue()

    async def start(self, agent: Agent) -> None:
        """Read what is known by name. Nothing else is opened yet."""
        self._namespaces = agent.config.namespaces
        self._ledger = await asyncio.to_thread(
            Ledger, agent.config.state.directory / "rehomed.json"
        )
        registry = agent.metrics.registry
        self._count, self._now = metrics_of(registry)
        agent.questions.connections.append(self.rows)
        agent.spawn(self, self._follow())

    def ended(self, entry: Entry, live: bool) -> None:
        """A move is over here: note what stays. Does not wait."""
        if live and entry.here.changes:
            self._left.put_nowait(
                _Left(entry.name, list(entry.here.changes), frozenset(entry.here.without))
            )

    async def reload(self, config: Config) -> None:
        """Other pods."""
        self._namespaces = config.namespaces

    def ready(self) -> Sequence[str]:
        """The node's own namespace must be there; pods come and go."""
        node = self._namespaces.node
        return () if node.exists() else (f"namespaces.node: there is no {node}",)

    async def rows(self) -> Rows:
        """One row for each connection. One question at a time."""
        async with self._asking:
            return await self._rows()

    async def _rows(self) -> Rows:
        is_quiet = self.is_quiet()
        found = await asyncio.to_thread(_find, self._namespaces, self._ledger)
        if is_quiet and self.is_quiet() and (found.gone or found.within):
            before = len(self._ledger)
            self._ledger.forget(found.gone, found.translated, found.within)
            if len(self._ledger) != before:
                await asyncio.to_thread(self._ledger.save)
        now = Counter(row["strategy"] for row in found.rows)
        for way in LISTED:
            self._now.labels(way.value).set(now[way.value])
        return Rows(found.rows, found.problems)

    async def _follow(self) -> None:
        """Note what moves leave, and look now and then at what is still there."""
        remaining = True
        while True:
            left = None
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK if remaining else None):
                    left = await self._left.get()
            if left is None and not self.is_quiet():
                continue  # a handover has better uses for the time
            try:
                if left is not None:
                    async with self._asking:
                        counts = await asyncio.to_thread(self._note, left)
                    for way, count in counts.items():
                        self._count.labels(way.value).inc(count)
                remaining = bool((await self.rows()).rows) or bool(self._ledger)
            except (MycoError, OSError) as error:
                log.warning("what is re-homed here is not known: %s", error)

    def _note(self, left: _Left) -> Counter[Way]:
        counts: Counter[Way] = Counter()
        for namespace, changes in left.changes:
            counts += self._ledger.note(left.move, namespace, changes, left.without)
        self._ledger.save()
        return counts


def metrics_of(registry: CollectorRegistry) -> tuple[Count, Gauge]:
    """How many connections moves have re-homed here; how many of them there are now."""
    counted = Count(
        "mycoproxy_move_connections",
        "Connections that moves have re-homed on this node, by what was done here.",
        ["strategy"],
        registry=registry,
    )
    now = Gauge(
        "mycoproxy_rehomed_connections",
        "Connections that are re-homed on this node, at the last look.",
        ["strategy"],
        registry=registry,
    )
    for way in (*LISTED, Way.ADMIT):
        counted.labels(way.value)
    for way in LISTED:
        now.labels(way.value)
    return counted, now


@dataclass(slots=True)
class _Found:
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    gone: list[Led] = field(default_factory=list)
    translated: set[Translated] = field(default_factory=set)
    within: set[str] = field(default_factory=set)
    """Namespaces that were looked into, or are gone."""


def _find(namespaces: NamespacesSection, ledger: Ledger) -> _Found:
    found = _Found()
    by_namespace: dict[str, list[Led]] = defaultdict(list)
    for led in ledger.led:
        by_namespace[led.namespace].append(led)
    here: set[str] = set()
    for path, names in _distinct(namespaces):
        known = [led for name in names for led in by_namespace.get(name, ())]
        try:
            with NamespaceWorker(path) as worker:
                rows, gone, addresses = worker.call(_look_here, known)
        except (MycoError, OSError) as error:
            # A pod that ended meanwhile is no problem.
            if path.exists():
                found.problems.append(f"{path}: {error}")
                continue
            rows, gone, addresses = [], known, frozenset()
        for row in rows:
            if row["strategy"] == Way.TRANSLATE.value:
                _name(row, names, ledger, found)
        found.within.update(names)
        found.rows += [{"namespace": str(path), **row} for row in rows]
        found.gone += gone
        here |= addresses
    for row in found.rows:
        ends = row.pop("ends")
        # A connection with neither end here passes through: it lives only as long as this node.
        row["through"] = here.isdisjoint(ends)
    gone_namespaces = {one for one in by_namespace if not Path(one).exists()}
    found.gone += [led for one in gone_namespaces - found.within for led in by_namespace[one]]
    found.within |= gone_namespaces
    return found


def _name(row: Row, names: Collection[str], ledger: Ledger, found: _Found) -> None:
    ends = row.pop("key")
    for name in names:
        key = Translated(name, *ends)
        found.translated.add(key)
        row["move"] = row["move"] or ledger.move_of(key)


def _distinct(namespaces: NamespacesSection) -> Iterator[tuple[Path, list[str]]]:
    """Each namespace once, with all its names."""
    paths = [str(namespaces.node)]
    for pattern in namespaces.pods:
        paths += sorted(glob.glob(pattern))  # noqa: PTH207 - Path.glob takes no absolute one
    names: dict[tuple[int, int], list[str]] = defaultdict(list)
    for path in dict.fromkeys(paths):
        try:
            stat = Path(path).stat()
        except OSError:
            continue
        names[stat.st_dev, stat.st_ino].append(path)
    for each in names.values():
        yield Path(each[0]), each


def _look_here(known: Sequence[Led]) -> tuple[list[Row], list[Led], frozenset[str]]:
    """Rows, what is gone of ``known``, and the addresses here."""
    with Nft() as nft:
        translations = Translate(nft).list()
    rows = []
    for dialled, now in translations.items():
        row = _row(Way.TRANSLATE, "", Direction(dialled.remote, dialled.local), now)
        row["key"] = on_the_wire(dialled.remote), on_the_wire(now)
        rows.append(row)
    gone = []
    with Conntrack() as conntrack:
        for led in known:
            entry = conntrack.get(led.orig, zone=led.zone)
            if entry is None or entry.reply != led.reply:
                gone.append(led)
            elif entry.tcp is None or entry.tcp.state < TCP_CONNTRACK_TIME_WAIT:
                rows.append(_row(led.strategy, led.move, led.outer, led.now))
    return rows, gone, frozenset(local_addresses())


def _row(strategy: Way, move: str, other_end: Direction, now: Endpoint) -> Row:
    """``other_end``: the end that does not move, and what it knows the workload by."""
    return {
        "strategy": strategy.value,
        "move": move,
        "client": str(other_end.source),
        "dialled": str(other_end.destination),
        "now": str(now),
        "ends": (other_end.source.address, now.address),
    }
