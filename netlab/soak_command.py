"""``netlab run tcp-soak``: moves of TCP connections alone, thousands of them, over a bad wire."""

import json
import secrets
import time

import click

from mycoproxy.errors import MycoError
from netlab.tcp_soak.soak import Soak

NAME = "tcp-soak"
MOVES = 2000


def run_soak(*, count: int | None, seed: int | None, as_json: bool) -> None:
    """Run it, print what it came to. Raises ``MycoError`` if anything was wrong."""
    chosen = secrets.randbelow(1 << 32) if seed is None else seed
    begin = time.monotonic()
    tally = Soak(seed=chosen, progress=lambda text: click.echo(text, err=True)).run(count or MOVES)
    seconds = time.monotonic() - begin
    figures = {
        "moves": tally.moves,
        "bytes_checked": tally.bytes_checked,
        "bytes_wrong": tally.bytes_wrong,
        "resets": tally.resets,
        "failures": len(tally.failures),
        "failures_seen": tally.failures,
        "connections": tally.connections,
        "handovers": tally.handovers,
        "moves_by_state": dict(tally.by_state.most_common()),
        "seconds": round(seconds, 1),
        "seed": chosen,
    }
    if as_json:
        click.echo(json.dumps(figures))
    else:
        click.echo(
            f"{tally.moves} moves of {tally.connections} connections in {tally.handovers} "
            f"handovers, {seconds:.0f} s: {tally.bytes_checked} bytes checked, "
            f"{tally.bytes_wrong} wrong, {tally.resets} resets, {len(tally.failures)} failures"
        )
        for state, number in tally.by_state.most_common():
            click.echo(f"  {state:<12} {number}")
    if not tally.ok:
        first = tally.failures[0] if tally.failures else "see the figures"
        raise MycoError(f"the soak failed (--seed {chosen}): {first}")
