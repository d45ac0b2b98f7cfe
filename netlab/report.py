"""A run's figures: from what the mover, the clients and the capture measured to one JSON object and
one table.

Plain data in, numbers out; no I/O. All times that go in are monotonic seconds, all that come out
are milliseconds. Medians are over moves.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import numpy as np

from netlab.capture.findings import Findings
from netlab.load.series import Records, Samples, as_waits
from netlab.load.summary import ClientSummary

PHASES = ("freeze", "dump", "send", "restore", "handover", "resume")


@dataclass(frozen=True)
class MoveTimes:
    """One move. Moments are monotonic seconds; ``phases_ms`` has milliseconds for `PHASES`."""

    index: int
    source: str
    target: str
    freeze_start: float
    handover_start: float
    handover_end: float
    resume: float
    phases_ms: Mapping[str, float]
    connections_moved: int

    @property
    def freeze_ms(self) -> float:
        """From the last instruction on the source to the first on the target."""
        return (self.resume - self.freeze_start) * 1e3

    @property
    def handover_ms(self) -> float:
        """The time in which a connection is nowhere."""
        return (self.handover_end - self.handover_start) * 1e3


@dataclass(frozen=True)
class ClientRun:
    """A client's summary and its samples; samples may be missing (redis-benchmark takes none)."""

    summary: ClientSummary
    samples: Samples | None = None


@dataclass(frozen=True)
class MoveReport:
    """One move as the clients saw it. A gap is the longest wait that touches the freeze, in
    milliseconds. ``gap_ms``: per group of clients. ``stream_gap_ms``: per download or upload, the
    longest time without a byte."""

    times: MoveTimes
    client_gap_ms: float | None
    gap_ms: Mapping[str, float]
    stream_gap_ms: Mapping[str, float]

    @property
    def gap_minus_freeze_ms(self) -> float | None:
        """What the move cost the clients beyond the freeze."""
        return None if self.client_gap_ms is None else self.client_gap_ms - self.times.freeze_ms


@dataclass(frozen=True)
class Report:
    """The whole run."""

    moves: tuple[MoveReport, ...]
    clients: tuple[ClientSummary, ...]
    findings: Findings | None
    capture_drops: int
    leftovers: tuple[str, ...]
    warnings: tuple[str, ...] = field(default=())

    @property
    def connections_lost(self) -> int:
        """Connections that a client or the capture saw end, open again or hang."""
        return sum(len({lost.connection for lost in each.lost}) for each in self.clients)

    @property
    def bytes_checked(self) -> int:
        """Bytes of answers that were compared with what they must be."""
        return sum(each.bytes_checked for each in self.clients)

    @property
    def bytes_wrong(self) -> int:
        """Those that differ; a wrong answer counts as one byte at least."""
        return sum(max(each.bytes_wrong, len(each.wrong)) for each in self.clients)

    @property
    def resets(self) -> int | None:
        """RSTs in the capture; None if there is no capture."""
        return None if self.findings is None else len(self.findings.resets)

    @property
    def opened_during_moves(self) -> int | None:
        """Connections opened between the first freeze and the last resume; None without a capture.

        The load clients open all of theirs before: what is counted here came from elsewhere, or
        is a client that reconnected in silence.
        """
        if self.findings is None or not self.moves:
            return None
        begin = min(each.times.freeze_start for each in self.moves)
        end = max(each.times.resume for each in self.moves)
        return sum(begin <= event.time <= end for event in self.findings.opened)

    @property
    def ok(self) -> bool:
        """Something was moved and checked; no connection lost, no byte wrong, nothing left behind;
        and there is a capture, and no RST in it."""
        worked = bool(self.moves) and self.bytes_checked > 0 and self.resets == 0
        harm = self.connections_lost or self.bytes_wrong or self.leftovers
        return worked and not harm

    def to_json(self) -> dict[str, Any]:
        """The JSON object of ``netlab run``. Milliseconds are rounded to the microsecond."""
        freezes = [each.times.freeze_ms for each in self.moves]
        handovers = [each.times.handover_ms for each in self.moves]
        gaps = [each.client_gap_ms for each in self.moves]
        groups = sorted({group for each in self.moves for group in each.gap_ms})
        found = self.findings
        return {
            "ok": self.ok,
            "moves": len(self.moves),
            "freeze_ms": middle(freezes),
            "freeze_ms_max": worst(freezes),
            "client_gap_ms": middle(gaps),
            "client_gap_ms_max": worst(gaps),
            "gap_minus_freeze_ms": middle([each.gap_minus_freeze_ms for each in self.moves]),
            "gap_minus_freeze_ms_by_group": {
                group: middle(self._beyond_freeze(group)) for group in groups
            },
            "handover_ms": middle(handovers),
            "handover_ms_max": worst(handovers),
            "phases_ms": {
                phase: middle([each.times.phases_ms.get(phase) for each in self.moves])
                for phase in self.phases()
            },
            "connections_moved": sum(each.times.connections_moved for each in self.moves),
            "connections_lost": self.connections_lost,
            "bytes_checked": self.bytes_checked,
            "bytes_wrong": self.bytes_wrong,
            "resets": self.resets,
            "retransmissions": None if found is None else len(found.retransmissions),
            "late_retransmissions": None if found is None else len(found.late_retransmissions),
            "server_fins": None if found is None else len(found.server_fins),
            "capture_packets": None if found is None else found.packets,
            "capture_drops": self.capture_drops,
            "connections_opened_during_moves": self.opened_during_moves,
            "leftovers": list(self.leftovers),
            "warnings": list(self.warnings),
            "clients": [_client(each) for each in self.clients],
            "each_move": [_move(each) for each in self.moves],
        }

    def phases(self) -> list[str]:
        """The phases in the order in which they happen; unknown ones behind."""
        named = {phase for each in self.moves for phase in each.times.phases_ms}
        return [phase for phase in PHASES if phase in named] + sorted(named - set(PHASES))

    def _beyond_freeze(self, group: str) -> list[float]:
        return [
            each.gap_ms[group] - each.times.freeze_ms for each in self.moves if group in each.gap_ms
        ]


def make_report(
    moves: Sequence[MoveTimes],
    clients: Sequence[ClientRun],
    *,
    findings: Findings | None,
    capture_drops: int = 0,
    leftovers: Sequence[str] = (),
) -> Report:
    """Bring everything together. Whatever weakens the figures becomes a warning."""
    reports = tuple(_report_move(move, clients) for move in moves)
    warnings = [
        f"no client was waiting during move {each.times.index}: its client gap is unknown"
        for each in reports
        if each.client_gap_ms is None
    ]
    if capture_drops:
        warnings.append(f"the capture missed {capture_drops} packets: its counts are lower bounds")
    if findings is None:
        warnings.append("no packet capture: resets and retransmissions are unknown")
    warnings += [f"{each.summary.name}: {text}" for each in clients for text in each.summary.wrong]
    warnings += [
        f"{each.summary.name}, connection {lost.connection}: {lost.reason}"
        for each in clients
        for lost in each.summary.lost
    ]
    return Report(
        moves=reports,
        clients=tuple(each.summary for each in clients),
        findings=findings,
        capture_drops=capture_drops,
        leftovers=tuple(leftovers),
        warnings=tuple(warnings),
    )


def _report_move(move: MoveTimes, clients: Sequence[ClientRun]) -> MoveReport:
    gaps: dict[str, float] = {}
    streams: dict[str, float] = {}
    for client in clients:
        if client.samples is None:
            continue
        gap = longest_wait_ms(as_waits(client.samples), move.freeze_start, move.resume)
        if gap is None:
            continue
        by_name = client.samples.kind == "progress"
        into, key = (streams, client.samples.name) if by_name else (gaps, client.samples.group)
        into[key] = max(into.get(key, 0.0), gap)
    return MoveReport(
        times=move,
        client_gap_ms=max(gaps.values()) if gaps else None,
        gap_ms=gaps,
        stream_gap_ms=streams,
    )


def longest_wait_ms(waits: Records, begin: float, end: float) -> float | None:
    """The longest wait, from question to answer, among those that overlap [begin, end]; None if
    nobody waited then. An unanswered request has waited until its client's end."""
    touching = waits[(waits["sent"] <= end) & (waits["answered"] >= begin)]
    if not len(touching):
        return None
    return float(np.max(touching["answered"] - touching["sent"])) * 1e3


def middle(values: Sequence[float | None]) -> float | None:
    """The median of the known values, rounded to a thousandth; None if there are none."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return round(median(known), 3) if known else None


def worst(values: Sequence[float | None]) -> float | None:
    """The greatest of the known values, rounded to a thousandth; None if there are none."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return round(max(known), 3) if known else None


def _client(summary: ClientSummary) -> dict[str, Any]:
    found = asdict(summary)
    # A big answer's details stay out of the way: they are in the client's own summary.
    for long in ("local_ports", "longest_wait_s", "details", "started", "ended"):
        found.pop(long)
    longest = max(summary.longest_wait_s, default=None)
    return {**found, "longest_wait_ms": None if longest is None else round(longest * 1e3, 3)}


def _move(move: MoveReport) -> dict[str, Any]:
    beyond = move.gap_minus_freeze_ms
    return {
        "index": move.times.index,
        "source": move.times.source,
        "target": move.times.target,
        "freeze_ms": round(move.times.freeze_ms, 3),
        "handover_ms": round(move.times.handover_ms, 3),
        "client_gap_ms": None if move.client_gap_ms is None else round(move.client_gap_ms, 3),
        "gap_minus_freeze_ms": None if beyond is None else round(beyond, 3),
        "gap_ms": {group: round(gap, 3) for group, gap in move.gap_ms.items()},
        "stream_gap_ms": {name: round(gap, 3) for name, gap in move.stream_gap_ms.items()},
        "phases_ms": {name: round(value, 3) for name, value in move.times.phases_ms.items()},
        "connections_moved": move.times.connections_moved,
    }
