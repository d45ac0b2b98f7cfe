"""``netlab run handover-faults``: what becomes of moves whose agents are killed or cut off."""

import json
import secrets
from collections.abc import Callable
from dataclasses import asdict

import click

from mycoproxy.errors import MycoError
from netlab.fault_judging import Result
from netlab.fault_plan import EVERY, Part
from netlab.handover_faults import Faults

NAME = "handover-faults"
FAULTS = EVERY


def run_faults(
    *,
    count: int | None,
    seed: int | None,
    as_json: bool,
    progress: Callable[[str], None],
    part: str = "1/1",
    lab: str | None = None,
) -> None:
    """Run it, print what it came to. Raises ``MycoError`` if anything was wrong."""
    chosen = secrets.randbelow(1 << 32) if seed is None else seed
    wanted = count or FAULTS
    faults = Faults(wanted, chosen, progress, part=Part.parse(part), lab=lab or "faults")
    result = faults.run()
    if as_json:
        click.echo(json.dumps(asdict(result)))
    else:
        _print(result)
    if not result.is_good:
        first = result.messages[0] if result.messages else "see the figures"
        raise MycoError(f"faults did harm (again with --count {wanted} --seed {chosen}): {first}")


def _print(result: Result) -> None:
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(result.by_kind.items()))
    click.echo(
        f"{result.injected} faults ({kinds}) in {result.seconds:.0f} s: {result.moved} moved, "
        f"{result.rolled_back} rolled back; {result.wrong_copies} wrong copies, "
        f"{result.bytes_wrong} bytes wrong, {result.needless_resets} resets, "
        f"{result.connections_lost} connections lost, {result.journals_left} journals left, "
        f"{result.agents_died} agents died; {result.journal_refusals} records refused"
    )
    for message in result.messages:
        click.echo(f"  {message}")
