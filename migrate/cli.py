"""``mycomigrate``: moves a container, as a plan says."""

import asyncio
import json
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from migrate.machine.mover import Mover
from migrate.machine.plan import MovePlan, load
from migrate.machine.report import MoveReport
from mycoproxy import __version__
from mycoproxy.commands import Commands


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  mycomigrate move move.yaml            move a container as the plan says
  mycomigrate schema                    what a plan can say

\b
Shell completion:
  eval "$(_MYCOMIGRATE_COMPLETE=bash_source mycomigrate)"   (or zsh_source, fish_source)

\b
Exit status: 0 done, 1 failed (the container goes on where it was), 2 usage,
3 refused by the preflight (nothing was changed).""",
)
@click.version_option(__version__, prog_name="mycomigrate")
def main() -> None:
    """Move a running container to another node with every one of its TCP connections."""


@main.command()
@click.argument("plan", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--quiet", is_flag=True, help="No progress on standard error.")
def move(plan: Path, *, as_json: bool, quiet: bool) -> None:
    """Move the container that the file PLAN describes.

    \b
    Examples:
      netlab plan demo redis beta > move.yaml    # a plan for a pod of a lab
      mycomigrate move move.yaml
      mycomigrate move move.yaml --json | jq .phases_ms
    """
    report = run_to_end(Mover(load(plan), progress=_silent if quiet else _tell).run())
    if as_json:
        click.echo(json.dumps(report.as_dict()))
    else:
        print_report(report)


@main.command()
def schema() -> None:
    """Print the JSON schema of a plan."""
    click.echo(json.dumps(MovePlan.model_json_schema(), indent=2))


def run_to_end(moving: Coroutine[Any, Any, MoveReport]) -> MoveReport:
    """Run a move. SIGINT, SIGTERM and SIGHUP undo it, up to its commit, and end the process."""

    async def interruptible() -> MoveReport:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, task.cancel)
        return await moving

    try:
        return asyncio.run(interruptible())
    except asyncio.CancelledError:
        click.echo("interrupted; before the commit that means rolled back", err=True)
        sys.exit(1)


def _tell(step: str) -> None:
    click.echo(f"  {step}", err=True)


def _silent(step: str) -> None:
    del step


def print_report(report: MoveReport) -> None:
    """A move's figures as a table."""
    table = Table(title=f"{report.move_id}: {report.source} -> {report.target}", min_width=40)
    table.add_column("phase")
    table.add_column("ms", justify="right")
    for phase, milliseconds in report.phases_ms().items():
        table.add_row(phase, f"{milliseconds:.1f}")
    table.add_section()
    table.add_row("whole freeze", f"{report.freeze_ms:.1f}")
    console = Console()
    console.print(table)
    console.print(
        f"{report.connections} connections moved, {report.replayed_packets} packets of the "
        f"hold delivered, {report.memory_bytes >> 20} MiB of memory"
    )
    for remark in report.remarks:
        console.print(f"not kept: {remark}")
    for warning in report.warnings:
        console.print(f"warning: {warning}")
