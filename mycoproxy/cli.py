"""The command ``mycoproxy``: the agent of a node, questions to it, and questions to the machine.

What a command needs is imported when it runs, so that ``mycoproxy --help`` and completion are fast.
"""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING, Final

import click

from mycoproxy import __version__
from mycoproxy.commands import Commands

if TYPE_CHECKING:
    from rich.console import Console

    from mycoproxy.check import Report

#: Commands in modules of their own: module, and the line that ``--help`` shows.
_ELSEWHERE: Final = {
    "agent": ("agent_command", "The daemon of this node."),
    "connections": ("query_commands", "List the connections that are re-homed here."),
    "drain": ("operator_commands", "Prepare this node to go away, and say what hangs on it."),
    "gone": ("operator_commands", "Say that a node of a move never comes back."),
    "moves": ("query_commands", "List the moves that this node takes part in."),
    "pki": ("pki_command", "Certificates: the cluster's authority, and one for each node."),
    "reload": ("query_commands", "Make the agent read its configuration again."),
    "resolve": ("operator_commands", "Decide a move whose source never comes back."),
    "sessions": ("query_commands", "List the sessions of proxied mode."),
    "status": ("query_commands", "Say whether this node's agent can do its work."),
}


class _LazyCommands(Commands):
    """Imports a command only to run it, or to show its own help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_ELSEWHERE})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"mycoproxy.agent.{_ELSEWHERE[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        rows = [(name, line) for name, (_, line) in _ELSEWHERE.items()]
        for name, command in self.commands.items():
            rows.append((name, command.get_short_help_str(limit=formatter.width)))
        with formatter.section("Commands"):
            formatter.write_dl(sorted(rows))


@click.group(
    cls=_LazyCommands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  mycoproxy check             what this machine can do, in a table
  mycoproxy check --json      the same for a program
  mycoproxy agent             be the agent of this node, in the foreground
  mycoproxy status            ask the agent that runs

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
    short_help="Say what this machine can and cannot do.",
    epilog="""\b
Examples:
  mycoproxy check
  mycoproxy check --json | jq '.items[] | select(.ok | not)'

\b
Exit status: 0 everything needed is there, 1 something is missing.""",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def check(ctx: click.Context, *, as_json: bool) -> None:
    """Say what this machine can and cannot do, and what to do about it.

    Really tries each thing, in network namespaces of its own, and leaves nothing behind. Items
    called optional make later moves faster; they need not be there.
    """
    from rich.console import Console  # noqa: PLC0415

    report = check_machine()
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2))
    else:
        print_report(report, Console())
    ctx.exit(0 if report.ok else 1)


def check_machine() -> Report:
    """What this machine can do; see ``mycoproxy.check``."""
    from mycoproxy import check as checks  # noqa: PLC0415

    return checks.check_machine()


def print_report(report: Report, console: Console) -> None:
    """The report as a table, and one line that sums it up."""
    from rich.table import Table  # noqa: PLC0415

    from mycoproxy.check.report import OPTIONAL  # noqa: PLC0415

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
