"""``netlab run rehome-matrix``: every path, IP version and activity over moves by real agents."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby

import click
from rich import box
from rich.console import Console
from rich.table import Table

from mycoproxy.errors import MycoError
from netlab.rehome_matrix import Matrix
from netlab.rehome_rows import Row

NAME = "rehome-matrix"
MOVES = "beta"
BEYOND_FREEZE_MS = 30.0  # what a gap may be longer than the freeze; coloured, not judged
_FAILURES_SHOWN = 10


def show(matrix: Matrix, *, as_json: bool) -> None:
    """Print what it came to. Raises ``MycoError`` if anything was wrong."""
    if as_json:
        click.echo(json.dumps(figures(matrix)))
    else:
        Console().print(_table(matrix.rows))
    if matrix.ok:
        return
    bad = sum(not row.ok for row in matrix.rows)
    lines = [f"{bad} of {len(matrix.rows)} rows are not ok; logs: {matrix.logs or 'none'}"]
    lines += matrix.failures[:_FAILURES_SHOWN]
    more = len(matrix.failures) - _FAILURES_SHOWN
    if more > 0:
        lines.append(f"and {more} more (--json has all)")
    raise MycoError("\n  ".join(lines))


def figures(matrix: Matrix) -> dict[str, object]:
    """For ``--json``."""
    return {
        "ok": matrix.ok,
        "rows": [asdict(row) for row in matrix.rows],
        "gaps_beyond_freeze": sum(_beyond(row) > BEYOND_FREEZE_MS for row in matrix.rows),
        "failures": matrix.failures,
        "journals_left": matrix.journals_left,
        "leftovers": matrix.leftovers,
        "logs": None if matrix.logs is None else str(matrix.logs),
        "moves": matrix.moves,
    }


def _beyond(row: Row) -> float:
    """Milliseconds by which the gap was longer than the freeze; may be negative."""
    return row.gap_ms - (row.freeze_ms or 0.0)


def _table(rows: Sequence[Row]) -> Table:
    """A line for each path: both IP versions and all activities together."""
    table = Table(title="Every path over a move", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("path", no_wrap=True)
    table.add_column("strategy", no_wrap=True)
    for name in ("gap ms", "freeze", "beyond", "resets", "ok"):
        table.add_column(name, justify="right")
    for path, group in groupby(rows, key=lambda row: row.path):
        members = list(group)
        worst = max(members, key=_beyond)
        beyond, good = _beyond(worst), sum(row.ok for row in members)
        table.add_row(
            path,
            ", ".join(sorted({row.strategy or "none" for row in members})),
            f"{worst.gap_ms:.0f}",
            "" if worst.freeze_ms is None else f"{worst.freeze_ms:.0f}",
            f"[{'yellow' if beyond > BEYOND_FREEZE_MS else 'green'}]{beyond:.0f}[/]",
            str(sum(row.resets for row in members)),
            f"[{'green' if good == len(members) else 'red'}]{good}/{len(members)}[/]",
        )
    return table
