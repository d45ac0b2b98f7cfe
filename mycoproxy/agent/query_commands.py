"""Questions to the agent that runs: status, connections, sessions, moves, reload."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mycoproxy.agent.control_client import Answer, ControlClient

if TYPE_CHECKING:
    from rich.table import Table

_socket_option = click.option(
    "--socket",
    type=click.Path(path_type=Path),
    help="The agent's. Default: $MYCOPROXY_CONTROL_SOCKET, else /run/mycoproxy/agent.sock.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
_limit_option = click.option(
    "--limit",
    type=click.IntRange(0, 100_000),
    default=1000,
    show_default=True,
    help="Rows at most.",
)


def _examples(*lines: str) -> str:
    shown = "\n".join(f"  {line}" for line in lines)
    return f"\b\nExamples:\n{shown}\n\n\b\nExit status: 0 done, 1 failed, 2 usage, 3 refused."


@click.command(
    epilog=_examples(
        "mycoproxy status", "mycoproxy status --json | jq .reasons", "mycoproxy status && deploy"
    )
)
@_socket_option
@_json_option
@click.pass_context
def status(ctx: click.Context, *, socket: Path | None, as_json: bool) -> None:
    """Say whether this node's agent can do its work, and if not why.

    Exit status 1 if it is not ready.
    """
    answer = ControlClient(socket).get("/v1/status")
    if as_json:
        _print_json(answer)
    else:
        _print_status(answer)
    ctx.exit(0 if answer["ready"] else 1)


@click.command(
    epilog=_examples(
        "mycoproxy connections", "mycoproxy connections --json | jq '.connections[].client'"
    )
)
@_socket_option
@_limit_option
@_json_option
def connections(*, socket: Path | None, limit: int, as_json: bool) -> None:
    """List the connections that are re-homed on this node, and how."""
    answer = ControlClient(socket).get(f"/v1/connections?limit={limit}")
    _print_rows(answer, "connections", as_json, empty="no connection is re-homed here")


@click.command(epilog=_examples("mycoproxy sessions --json"))
@_socket_option
@_limit_option
@_json_option
def sessions(*, socket: Path | None, limit: int, as_json: bool) -> None:
    """List the sessions of proxied mode."""
    answer = ControlClient(socket).get(f"/v1/sessions?limit={limit}")
    _print_rows(answer, "sessions", as_json, empty=answer.get("note", "no sessions"))


@click.command(
    epilog=_examples("mycoproxy moves", "mycoproxy moves --watch", "mycoproxy moves --watch --json")
)
@_socket_option
@_limit_option
@click.option("--watch", is_flag=True, help="Go on and print each change, until the agent stops.")
@_json_option
def moves(*, socket: Path | None, limit: int, watch: bool, as_json: bool) -> None:
    """List the moves that this node takes part in."""
    client = ControlClient(socket)
    if not watch:
        _print_rows(client.get(f"/v1/moves?limit={limit}"), "moves", as_json, empty="no moves")
        return
    for change in client.lines("/v1/moves?watch=1"):
        if as_json:
            click.echo(json.dumps(change))
        elif change.get("event") == "now":
            _print_rows({"total": len(change["moves"]), **change}, "moves", False, empty="no moves")
        elif change.get("event") != "alive":
            click.echo("  ".join(f"{name}={value}" for name, value in change.items()))


@click.command(epilog=_examples("mycoproxy reload", "mycoproxy reload --json"))
@_socket_option
@_json_option
def reload(*, socket: Path | None, as_json: bool) -> None:
    """Make the agent read its configuration again; nothing is lost.

    Either all that a running agent can change is changed, or nothing is and the answer says why.
    """
    answer = ControlClient(socket).post("/v1/reload")
    if as_json:
        _print_json(answer)
        return
    for change in answer["applied"]:
        click.echo(f"{change['key']}: {_shown(change['new'])} (was {_shown(change['old'])})")
    for change in answer["needs_restart"]:
        click.echo(f"{change['key']}: {_shown(change['new'])} takes effect at the next start")
    if not answer["applied"] and not answer["needs_restart"]:
        click.echo("nothing has changed")


def _print_json(answer: Answer) -> None:
    click.echo(json.dumps(answer, indent=2))


def _shown(value: Any) -> str:  # noqa: ANN401
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def _print_rows(answer: Answer, name: str, as_json: bool, *, empty: str) -> None:
    if as_json:
        _print_json(answer)
        return
    rows: Sequence[dict[str, Any]] = answer[name]
    if rows:
        headings = list(dict.fromkeys(key for row in rows for key in row))
        _print_table(headings, [[_shown(row.get(key, "")) for key in headings] for row in rows])
    elif not answer["total"]:
        click.echo(empty)
    if len(rows) < answer["total"]:
        click.echo(f"{len(rows)} of {answer['total']} are shown (--limit)")
    for problem in answer.get("problems", ()):
        click.echo(f"not known: {problem}", err=True)


def _print_status(answer: Answer) -> None:
    name = f"agent {answer['version']} on {answer['node']}"
    uptime = _duration(answer["uptime_seconds"])
    click.echo(f"{name}: {answer['state']} for {uptime}, process {answer['pid']}")
    file = answer["config"]["file"] or "none (defaults and environment)"
    click.echo(f"configuration: {file}\n")
    reasons: dict[str, list[str]] = {}
    for each in answer["reasons"]:
        reasons.setdefault(each["part"], []).append(each["reason"])
    rows = []
    for part in answer["parts"]:
        about = [f"{key} {_shown(part[key])}" for key in part if key not in ("name", "ready")]
        about = reasons.pop(part["name"], []) + about
        rows.append(["ok" if part["ready"] else "NO", part["name"], ", ".join(about)])
    rows += [["NO", part, ", ".join(why)] for part, why in reasons.items()]
    _print_table(["", "part", ""], rows)


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
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
    Console().print(table)
