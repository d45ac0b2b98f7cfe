"""The metrics of moves. What others count as plain numbers is read at each scrape (``Seen``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mycoproxy.moves import admission
from mycoproxy.moves.entries import Entry
from mycoproxy.moves.source import SourcePart

ROLES: Final = ("source", "target", "peer")
OUTCOMES: Final = ("moved", "returned")
REASONS: Final = (*admission.REASONS, "agreement")

_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Seen:
    """How things are at one moment. ``under_way`` by role, ``refused`` by reason,
    ``linked`` by direction."""

    under_way: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    translations_ended: int = 0
    journal_bytes: int = 0
    journal_failures: int = 0
    peers_known: int = 0
    linked: Mapping[str, int] = field(default_factory=dict)
    draining: bool = False


class MoveMetrics:
    """Counts moves that end. ``look`` is asked at each scrape, and has to be cheap."""

    def __init__(self, registry: CollectorRegistry, look: Callable[[], Seen]) -> None:
        self._moves = Counter(
            "mycoproxy_moves",
            "Moves that had begun and are over here, by this node's role, and where the workload "
            "is: on the target, or back on the source.",
            ["role", "outcome"],
            registry=registry,
        )
        for role in ROLES:
            for outcome in OUTCOMES:
                self._moves.labels(role, outcome)
        self._stood = Histogram(
            "mycoproxy_move_hold_to_release_seconds",
            "From the hold of the connections here to their release on the target, of moves that "
            "went from here.",
            buckets=_SECONDS,
            registry=registry,
        )
        registry.register(_Seen(look))

    def ended(self, entry: Entry, live: bool) -> None:
        """A move is over on this node. ``live``: it moved."""
        self._moves.labels(entry.role, "moved" if live else "returned").inc()
        if live and isinstance(entry.part, SourcePart):
            marks = entry.part.report.marks
            if "hold" in marks and "live" in marks:  # not after a restart in between
                self._stood.observe(marks["live"] - marks["hold"])


class _Seen(Collector):
    def __init__(self, look: Callable[[], Seen]) -> None:
        self._look = look

    def describe(self) -> Iterator[Metric]:
        """Without asking anybody: parts that are asked are not there yet."""
        yield from _families(Seen())

    def collect(self) -> Iterator[Metric]:
        yield from _families(self._look())


def _families(seen: Seen) -> Iterator[Metric]:
    under_way = GaugeMetricFamily(
        "mycoproxy_moves_under_way", "Moves that this node has a part in now.", labels=["role"]
    )
    for role in ROLES:
        under_way.add_metric([role], seen.under_way.get(role, 0))
    yield under_way
    refused = CounterMetricFamily(
        "mycoproxy_moves_refused",
        "Moves that were refused before anything was done (draining, limits), and messages of the "
        "agreement that were not for their senders to say.",
        labels=["reason"],
    )
    for reason in REASONS:
        refused.add_metric([reason], seen.refused.get(reason, 0))
    yield refused
    linked = GaugeMetricFamily(
        "mycoproxy_peers_linked",
        "Other nodes with a link that is up: they to this one (in), this one to them (out).",
        labels=["direction"],
    )
    for direction in ("in", "out"):
        linked.add_metric([direction], seen.linked.get(direction, 0))
    yield linked
    yield CounterMetricFamily(
        "mycoproxy_translations_ended",
        "Translations that were removed, since their connections had ended.",
        seen.translations_ended,
    )
    yield CounterMetricFamily(
        "mycoproxy_journal_failures",
        "How often the journal of moves did not take something.",
        seen.journal_failures,
    )
    for name, text, value in (
        ("mycoproxy_journal_size_bytes", "The journals of open moves.", seen.journal_bytes),
        ("mycoproxy_peers_known", "Other nodes whose address is known.", seen.peers_known),
        ("mycoproxy_draining", "1 if no move may come here.", seen.draining),
    ):
        yield GaugeMetricFamily(name, text, value)
