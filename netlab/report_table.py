"""The report as a table that a person can read, on a terminal."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from netlab.report import Report

# The goals of the main job, milliseconds. Figures of a benchmark: they colour the table, no more.
FREEZE_GOAL_MS = 250.0
BEYOND_FREEZE_GOAL_MS = 30.0
HANDOVER_GOAL_MS = 20.0

_BAR_CELLS = 44
_PHASE_STYLES = ("cyan", "blue", "magenta", "yellow", "red", "green")


def render(report: Report, *, title: str = "Moves under load") -> RenderableType:
    """One table; below it the warnings, if any."""
    figures = report.to_json()
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column("")
    table.add_column("median", justify="right")
    table.add_column("worst", justify="right")
    table.add_column("goal", justify="right", style="dim")
    table.add_column("")

    def timing(name: str, value: float | None, most: float | None, goal: float | None) -> None:
        within = None if goal is None or value is None else value <= goal
        wanted = "" if goal is None else f"≤ {goal:g} ms"
        table.add_row(name, _ms(value), _ms(most), wanted, _mark(within, hard=False))

    def count(
        name: str, value: int | None, *, must_be_zero: bool = False, hard: bool = True
    ) -> None:
        text = "?" if value is None else f"{value:,}"
        good = (value == 0) if must_be_zero else None
        table.add_row(name, text, "", "0" if must_be_zero else "", _mark(good, hard=hard))

    timing("freeze", figures["freeze_ms"], figures["freeze_ms_max"], FREEZE_GOAL_MS)
    timing("client gap", figures["client_gap_ms"], figures["client_gap_ms_max"], None)
    for group, beyond in figures["gap_minus_freeze_ms_by_group"].items():
        every = [
            each.gap_ms[group] - each.times.freeze_ms
            for each in report.moves
            if group in each.gap_ms
        ]
        timing(f"  beyond the freeze, {group}", beyond, max(every), BEYOND_FREEZE_GOAL_MS)
    timing("handover", figures["handover_ms"], figures["handover_ms_max"], HANDOVER_GOAL_MS)
    table.add_section()
    count("moves", figures["moves"])
    count("connections moved", figures["connections_moved"])
    count("connections lost", figures["connections_lost"], must_be_zero=True)
    count("bytes checked", figures["bytes_checked"])
    count("bytes wrong", figures["bytes_wrong"], must_be_zero=True)
    table.add_section()
    count("packets captured", figures["capture_packets"])
    count("resets", figures["resets"], must_be_zero=True)
    count("retransmissions by clients", figures["retransmissions"])
    late = figures["late_retransmissions"]
    count("  of them after resume + 50 ms", late, must_be_zero=True, hard=False)
    count("leftovers", len(report.leftovers), must_be_zero=True)

    parts: list[RenderableType] = [table]
    if bar := _phases(figures["phases_ms"]):
        parts.append(bar)
    parts += [Text(f"! {warning}", style="yellow") for warning in report.warnings[:20]]
    parts += [Text(f"! left behind: {each}", style="red") for each in report.leftovers]
    verdict = Text("ok: ", style="bold green") if report.ok else Text("FAILED: ", style="bold red")
    verdict.append(_verdict(report), style="not bold default")
    parts.append(verdict)
    return Group(*parts)


def _verdict(report: Report) -> str:
    if report.ok:
        return "no connection lost, no byte wrong, no reset, nothing left behind"
    reasons = []
    if not report.moves:
        reasons.append("nothing was moved")
    if not report.bytes_checked:
        reasons.append("no answer was checked")
    if report.connections_lost:
        reasons.append(f"{report.connections_lost} connections lost")
    if report.bytes_wrong:
        reasons.append(f"{report.bytes_wrong} bytes wrong")
    if report.resets is None:
        reasons.append("no capture shows that there was no reset")
    elif report.resets:
        reasons.append(f"{report.resets} resets")
    if report.leftovers:
        reasons.append(f"{len(report.leftovers)} things left behind")
    return ", ".join(reasons)


def _phases(phases: dict[str, float | None]) -> RenderableType | None:
    """Where the time of the freeze goes: a bar to scale, and the figures (medians) under it."""
    known = {name: value for name, value in phases.items() if value is not None}
    total = sum(known.values())
    if not total:
        return None
    bar, legend = Text("  "), Text("  ")
    for index, (name, value) in enumerate(known.items()):
        style = _PHASE_STYLES[index % len(_PHASE_STYLES)]
        bar.append("█" * max(round(value / total * _BAR_CELLS), 1), style=style)
        legend.append("■ ", style=style).append(f"{name} {value:.1f}  ")
    bar.append("  where the freeze goes, ms", style="dim")
    return Group(bar, legend, Text(""))


def _ms(value: float | None) -> str:
    return "?" if value is None else f"{value:.1f} ms"


def _mark(good: bool | None, *, hard: bool) -> Text:
    if good is None:
        return Text("")
    if good:
        return Text("✓", style="green")
    return Text("✗" if hard else "over", style="bold red" if hard else "yellow")
