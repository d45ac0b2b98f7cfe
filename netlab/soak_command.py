"""``netlab run tcp-soak``: moves of TCP connections alone, thousands of them, over a bad wire."""

import json
import secrets

import click

from mycoproxy.errors import MycoError
from netlab.tcp_soak.soak import Result, Soak

NAME = "tcp-soak"
MOVES = 2000


def run_soak(*, count: int | None, seed: int | None, as_json: bool) -> None:
    """Run it, print what it came to. Raises ``MycoError`` if anything was wrong."""
    chosen = secrets.randbelow(1 << 32) if seed is None else seed
    result = Soak(count or MOVES, chosen, lambda text: click.echo(text, err=True)).run()
    if as_json:
        click.echo(json.dumps(vars(result)))
    else:
        _print(result)
    if not result.is_good:
        first = result.messages[0] if result.messages else "see the figures"
        raise MycoError(f"the soak failed (again with --seed {chosen}): {first}")


def _print(result: Result) -> None:
    click.echo(
        f"{result.moves} moves of {result.connections} connections in {result.seconds:.0f} s: "
        f"{result.bytes_checked} bytes checked, {result.bytes_wrong} wrong, "
        f"{result.resets} resets, {result.failures} failures"
    )
    for state, number in result.moves_by_state.most_common():
        click.echo(f"  {state:<12} {number}")
