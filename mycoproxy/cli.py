"""The command ``mycoproxy``: questions to the machine and, later, to the agent."""

import json

import click
from rich.console import Console
from rich.table import Table

from mycoproxy import __version__
from mycoproxy.check import Report, check_machine
from mycoproxy.check.report import OPTIONAL
from mycoproxy.commands import Commands


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  mycoproxy check             what this machine can do, in a table
  mycoproxy check --json      the same for a program

\b
Shell completion:
  eval "$(_MYCOPROXY_COMPLETE=bash_source mycoproxy)"     (or zsh_source, fish_source)

\b
Exit status: 0 done, 1 failed, 2 usage, 3 refused.""",
)
@click.version_option(__version__, prog_name="mycoproxy")
def main() -> None:
    """Moves live TCP connections together with the container that holds them."""


@main.command(
    epilog="""\b
Examples:
  mycoproxy check
  mycoproxy check --json | jq '.items[] | select(.ok | not)'

\b
Exit status: 0 everything needed is there, 1 something is missing."""
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def check(ctx: click.Context, *, as_json: bool) -> None:
    """Say what this machine can and cannot do, and what to do about it.

    Really tries each thing, in network namespaces of its own, and leaves nothing behind. Items
    called optional make later moves faster; they need not be there.
    """
    report = check_machine()
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2))
    else:
        print_report(report, Console())
    ctx.exit(0 if report.ok else 1)


def print_report(report: Report, console: Console) -> None:
    """The report as a table, and one line that sums it up."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "what", "found", "needed", "to do"):
        table.add_column(heading, overflow="fold")
    for item in report.items:
        if item.ok:
            mark = "[green]ok[/]"
        elif item.needed == OPTIONAL:
            mark = "[yellow]--[/]"
        else:
            mark = "[red]NO[/]"
        table.add_row(mark, item.name, _plain(item.found), _plain(item.needed), _plain(item.fix))
    console.print(table)
    if report.ok:
        console.print("\nThis machine can move containers with their connections.", style="green")
    else:
        names = ", ".join(item.name for item in report.missing)
        console.print(f"\nMissing: {names}", style="red", markup=False)


def _plain(text: str) -> str:
    """Text from the machine, which rich must not read as markup."""
    return text.replace("[", r"\[")
