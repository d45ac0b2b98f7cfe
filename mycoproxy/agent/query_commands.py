"""Questions to the agent that runs: status, connections, sessions, moves, reload."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mycoproxy.agent.command_options import (
    examples,
    json_option,
    limit_option,
    print_json,
    print_rows,
    print_table,
    shown,
    socket_option,
)
from mycoproxy.agent.control_client import Answer, ControlClient

if TYPE_CHECKING:
    pass


@click.command(
    epilog=examples(
        "mycoproxy status", "mycoproxy status --json | jq .reasons", "mycoproxy status && deploy"
    )
)
@socket_option
@json_option
@click.pass_context
def status(ctx: click.Context, *, socket: Path | None, as_json: bool) -> None:
    """Say whether this node's agent can do its work, and if not why.

    Exit status 1 if it is not ready.
    """
    answer = ControlClient(socket).get("/v1/status")
    if as_json:
        print_json(answer)
    else:
        _print_status(answer)
    ctx.exit(0 if answer["ready"] else 1)


@click.command(
    epilog=examples(
        "mycoproxy connections", "mycoproxy connections --json | jq '.connections[].client'"
    )
)
@socket_option
@limit_option
@json_option
def connections(*, socket: Path | None, limit: int, as_json: bool) -> None:
    """List the connections that are re-homed on this node, and how."""
    answer = ControlClient(socket).get(f"/v1/connections?limit={limit}")
    print_rows(answer, "connections", as_json, empty="no connection is re-homed here")


@click.command(epilog=examples("mycoproxy sessions --json"))
@socket_option
@limit_option
@json_option
def sessions(*, socket: Path | None, limit: int, as_json: bool) -> None:
    """List the sessions of proxied mode."""
    answer = ControlClient(socket).get(f"/v1/sessions?limit={limit}")
    print_rows(answer, "sessions", as_json, empty=answer.get("note", "no sessions"))


@click.command(
    epilog=examples("mycoproxy moves", "mycoproxy moves --watch", "mycoproxy moves --watch --json")
)
@socket_option
@limit_option
@click.option("--watch", is_flag=True, help="Go on and print each change, until the agent stops.")
@json_option
def moves(*, socket: Path | None, limit: int, watch: bool, as_json: bool) -> None:
    """List the moves that this node takes part in."""
    client = ControlClient(socket)
    if not watch:
        print_rows(client.get(f"/v1/moves?limit={limit}"), "moves", as_json, empty="no moves")
        return
    for change in client.lines("/v1/moves?watch=1"):
        if as_json:
            click.echo(json.dumps(change))
        elif change.get("event") == "now":
            print_rows({"total": len(change["moves"]), **change}, "moves", False, empty="no moves")
        elif change.get("event") != "alive":
            click.echo("  ".join(f"{name}={value}" for name, value in change.items()))


@click.command(epilog=examples("mycoproxy reload", "mycoproxy reload --json"))
@socket_option
@json_option
def reload(*, socket: Path | None, as_json: bool) -> None:
    """Make the agent read its configuration again; nothing is lost.

    Either all that a running agent can change is changed, or nothing is and the answer says why.
    """
    answer = ControlClient(socket).post("/v1/reload")
    if as_json:
        print_json(answer)
        return
    for change in answer["applied"]:
        click.echo(f"{change['key']}: {shown(change['new'])} (was {shown(change['old'])})")
    for change in answer["needs_restart"]:
        click.echo(f"{change['key']}: {shown(change['new'])} takes effect at the next start")
    if not answer["applied"] and not answer["needs_restart"]:
        click.echo("nothing has changed")


def _print_status(answer: Answer) -> None:
    name = f"agent {answer['version']} on {answer['node']}"
    uptime = _duration(answer["uptime_seconds"])
    click.echo(f"{name}: {answer['state']} for {uptime}, process {answer['pid']}")
    file = answer["config"]["file"] or "none (defaults and environment)"
    if answer["draining"]:
        click.echo("draining: no move may come here (mycoproxy drain --undo)")
    click.echo(f"configuration: {file}\n")
    reasons: dict[str, list[str]] = {}
    for each in answer["reasons"]:
        reasons.setdefault(each["part"], []).append(each["reason"])
    rows = []
    for part in answer["parts"]:
        about = [f"{key} {shown(part[key])}" for key in part if key not in ("name", "ready")]
        about = reasons.pop(part["name"], []) + about
        rows.append(["ok" if part["ready"] else "NO", part["name"], ", ".join(about)])
    rows += [["NO", part, ", ".join(why)] for part, why in reasons.items()]
    print_table(["", "part", ""], rows)


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
