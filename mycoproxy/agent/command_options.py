"""What the commands that ask an agent share: options, and how answers are printed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mycoproxy.agent.control_client import Answer

if TYPE_CHECKING:
    from rich.table import Table

socket_option = click.option(
    "--socket",
    type=click.Path(path_type=Path),
    help="The agent's. Default: $MYCOPROXY_CONTROL_SOCKET, else /run/mycoproxy/agent.sock.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
limit_option = click.option(
    "--limit",
    type=click.IntRange(0, 100_000),
    default=1000,
    show_default=True,
    help="Rows at most.",
)


def examples(*lines: str, status: str = "0 done, 1 failed") -> str:
    """What stands at the end of a command's ``--help``."""
    listed = "\n".join(f"  {line}" for line in lines)
    return f"\b\nExamples:\n{listed}\n\n\b\nExit status: {status}, 2 usage, 3 refused."


def print_json(answer: Answer) -> None:
    """For programs."""
    click.echo(json.dumps(answer, indent=2))


def shown(value: Any) -> str:  # noqa: ANN401
    """A value, for people."""
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def print_rows(answer: Answer, name: str, as_json: bool, *, empty: str) -> None:
    """The rows ``name`` of an answer, and what it says about them."""
    if as_json:
        print_json(answer)
        return
    rows: Sequence[dict[str, Any]] = answer[name]
    if rows:
        headings = list(dict.fromkeys(key for row in rows for key in row))
        print_table(headings, [[shown(row.get(key, "")) for key in headings] for row in rows])
    elif not answer["total"]:
        click.echo(empty)
    if len(rows) < answer["total"]:
        click.echo(f"{len(rows)} of {answer['total']} are shown (--limit)")
    for problem in answer.get("problems", ()):
        click.echo(f"not known: {problem}", err=True)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows for people."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    colours: dict[str, Callable[[str], Text]] = {
        "ok": lambda text: Text(text, style="green"),
        "NO": lambda text: Text(text, style="red"),
    }
    table: Table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(colours.get(cell, Text)(cell) for cell in row))
    console = Console()
    # A pipe has no width to fold at.
    (console if console.is_terminal else Console(width=10_000)).print(table)
