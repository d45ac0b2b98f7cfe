"""Commands that change how a node takes part in moves: drain, resolve, gone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Final
from urllib.parse import quote

import click

from mycoproxy.agent.command_options import (
    examples,
    json_option,
    print_json,
    print_rows,
    socket_option,
)
from mycoproxy.agent.control_client import Answer, ControlClient
from mycoproxy.errors import RefusedError

_LOOK: Final = 1.0
"""Seconds between two looks whether anything is left."""

_yes_option = click.option("--yes", is_flag=True, help="I have read that, and it is so.")

_LIVE = """\
{move} is taken for committed on this node. That is right only if

  * what runs of it on its source does not run and never will: the machine is destroyed, or its
    disk and its containers are; and
  * its source had not given the move up and gone on. Its last log line for the move says which:
    "committed", or "aborting".

Otherwise two copies run, or what the source did since is lost. Nobody knows? Then undo.
The same has to be said on every node that is in doubt; see mycoproxy moves."""

_UNDO = """\
{move} is taken for given up on this node. A copy here is killed, and the paths of its connections
are led back to where it was.

  * If its source is gone for ever the workload is lost with it, as without a move.
  * If its target lives, connections that pass through this node break.

The same has to be said on every node that is in doubt; see mycoproxy moves."""

_GONE = """\
{node} is taken for gone for ever in {move}, with all that ran there. That is right only if nothing
that runs on it, or its network, ever comes back: the machine is destroyed, or its disk and its
containers are.

  * If it is the target, and the move is committed, the workload goes on here. What the copy did
    there, if it ran, is lost, and connections that it has spoken on break.
  * If it is another node, nobody waits for it any more; connections whose path leads there are
    lost with it."""


@click.command(
    epilog=examples(
        "mycoproxy drain                   no move may come here; what is left is listed",
        "mycoproxy drain --wait 600        and wait until nothing is left, 10 minutes at most",
        "mycoproxy drain --json | jq .left",
        "mycoproxy drain --undo",
        status="0 done (with --wait: nothing is left), 1 failed, or something is left in the end",
    )
)
@socket_option
@click.option("--undo", is_flag=True, help="Let moves come here again.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Wait so long until nothing is left.",
)
@json_option
@click.pass_context
def drain(
    ctx: click.Context, *, socket: Path | None, undo: bool, wait: float | None, as_json: bool
) -> None:
    """Prepare this node to go away: no move may come here, and say what still hangs on it.

    The agent stays ready: other nodes need it until it is gone, and workloads may leave. Taking
    them away is not its business: move them, or end them. What is left then: moves under way, and
    connections between others that pass through this node (anchored here, or by an old entry
    node); those live only as long as it does. It holds until --undo, whenever the agent restarts.
    """
    if undo and wait is not None:
        raise click.UsageError("--undo and --wait: one of them is wanted")
    client = ControlClient(socket)
    answer = client.post("/v1/drain?undo=1" if undo else "/v1/drain")
    if wait is not None:
        end = time.monotonic() + wait
        while _is_left(answer) and (rest := end - time.monotonic()) > 0:
            time.sleep(min(_LOOK, rest))
            answer = client.get("/v1/drain")
    if as_json:
        print_json(answer)
    else:
        _print_left(answer)
    ctx.exit(1 if wait is not None and _is_left(answer) else 0)


@click.command(
    epilog=examples(
        "mycoproxy moves                     which moves are in doubt (prepared)",
        "mycoproxy resolve web-1 undo        what that means",
        "mycoproxy resolve web-1 undo --yes",
    )
)
@socket_option
@click.argument("move")
@click.argument("outcome", type=click.Choice(["live", "undo"]))
@_yes_option
@json_option
def resolve(*, socket: Path | None, move: str, outcome: str, yes: bool, as_json: bool) -> None:
    """Decide a MOVE that this node is in doubt about, since its source is gone for ever.

    MOVE is its name, or its id. An agent that comes back decides by itself: this is for one that
    never does. Without --yes it says what the decision means, and changes nothing.
    """
    _agreed(yes, (_LIVE if outcome == "live" else _UNDO).format(move=move))
    answer = _post(socket, f"/v1/moves/{quote(move, safe='')}/resolve", {"outcome": outcome})
    _print_done(answer, as_json, f"{move}: {outcome}; mycoproxy moves shows how it goes on")


@click.command(
    epilog=examples(
        "mycoproxy moves                     what is waited for (missing)",
        "mycoproxy gone web-1 node-b         what that means",
        "mycoproxy gone web-1 node-b --yes",
    )
)
@socket_option
@click.argument("move")
@click.argument("node")
@_yes_option
@json_option
def gone(*, socket: Path | None, move: str, node: str, yes: bool, as_json: bool) -> None:
    """Say that a NODE of a MOVE that comes from here is gone for ever, for nobody to wait for it.

    MOVE is its name, or its id. Without --yes it says what that means, and changes nothing.
    """
    _agreed(yes, _GONE.format(move=move, node=node))
    answer = _post(socket, f"/v1/moves/{quote(move, safe='')}/gone", {"node": node})
    _print_done(answer, as_json, f"{move}: {node} is gone; mycoproxy moves shows how it goes on")


def _agreed(yes: bool, meaning: str) -> None:
    if not yes:
        click.echo(meaning, err=True)
        raise RefusedError("nothing was changed; if that is so say it again with --yes")


def _post(socket: Path | None, question: str, body: dict[str, str]) -> Answer:
    return ControlClient(socket).post(question, body)


def _print_done(answer: Answer, as_json: bool, text: str) -> None:
    click.echo(json.dumps(answer, indent=2) if as_json else text)


def _is_left(answer: Answer) -> bool:
    # What could not be looked at is not known to be gone.
    return any(answer["left"].values()) or bool(answer.get("problems"))


def _print_left(answer: Answer) -> None:
    state = "draining: no move may come here" if answer["draining"] else "not draining"
    click.echo(state)
    for name, empty in (
        ("moves", "no moves are under way"),
        ("connections", "no connections of others pass through this node"),
    ):
        click.echo("")
        print_rows({**answer, "total": answer["left"][name]}, name, False, empty=empty)
