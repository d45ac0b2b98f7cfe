"""How a connection fared, judged from what its two ends saw."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from netlab.paths.end.stream import Report
from netlab.paths.table import Activity


@dataclass(frozen=True, slots=True)
class PathResult:
    """One connection. ``family`` is 4 or 6.

    ``gap_ms`` is the longest wait for a byte at either end, in milliseconds; ``gap_at`` when it
    began, in CLOCK_MONOTONIC seconds. ``bytes`` is what both ends received together, ``wrong`` how
    many of these were other ones than were to come, ``resets`` how many ends were told by a reset.
    ``error`` is "" for a connection that did all it had to. ``ends`` are the ends' own reports, the
    opener's first; one that was never there is left out.
    """

    path: str
    family: int
    activity: Activity
    gap_ms: float
    gap_at: float
    bytes: int
    wrong: int
    resets: int
    error: str
    ends: tuple[Report, ...]

    @property
    def ok(self) -> bool:
        """Every byte arrived, once, and nobody was told that the connection is over."""
        return not (self.error or self.wrong or self.resets)


def judge(path: str, family: int, activity: Activity, reports: Iterable[Report]) -> PathResult:
    """The result of the connection that these are the ends of."""
    ends = tuple(sorted(reports, key=lambda end: not end["opener"]))
    longest = max(ends, key=lambda end: end["gap"], default=None)
    return PathResult(
        path=path,
        family=family,
        activity=activity,
        gap_ms=round(longest["gap"] * 1e3, 3) if longest else 0.0,
        gap_at=longest["gap_at"] if longest else 0.0,
        bytes=sum(end["received"] for end in ends),
        wrong=sum(end["wrong"] for end in ends),
        resets=sum(end["reset"] for end in ends),
        error=_error(ends),
        ends=ends,
    )


def _error(ends: tuple[Report, ...]) -> str:
    for end in ends:
        if end["error"]:
            return f"{_whose(end)}: {end['error']}"
    if len(ends) < 2 or not all(end["open"] for end in ends):
        return "was never open at both ends"
    for end, other in (ends, ends[::-1]):
        missing = other["sent"] - end["received"]
        if missing:
            return f"{_whose(end)}: {missing} bytes of {other['sent']} did not arrive"
        if end["received_sha256"] != other["sent_sha256"]:
            return f"{_whose(end)}: another digest than the one of what was sent"
        if not end["received"]:
            return f"{_whose(end)}: nothing was sent"
    return ""


def begun(ends: Sequence[Report]) -> bool:
    """Whether each end has received something, or it is over."""
    return _over(ends) or (len(ends) == 2 and all(end["received"] for end in ends))


def settled(ends: Sequence[Report]) -> bool:
    """Whether no more is to come: all has arrived, or it is over."""
    return _over(ends) or not _error(tuple(ends))


def _over(ends: Sequence[Report]) -> bool:
    return any(end["error"] for end in ends)


def _whose(end: Report) -> str:
    return "opener" if end["opener"] else "acceptor"
