"""The ``netlab`` command.

What a command needs is imported when it runs, so that ``netlab --help`` and completion are fast.
``run`` lives in ``netlab/run_command.py`` and is imported only when it is asked for.
"""

import importlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import click
from click.shell_completion import CompletionItem

from mycoproxy.errors import MycoError, UsageError

if TYPE_CHECKING:
    from netlab.graph import Place
    from netlab.topology import Topology

#: Commands in modules of their own: module, attribute, the line that ``--help`` shows.
_ELSEWHERE = {
    "run": ("netlab.run_command", "run", "Run a scenario (the demo) and report on it."),
    "move": ("netlab.move_command", "move", "Move a pod to another node, connections and all."),
    "bench": ("netlab.bench_command", "bench", "Benchmarks against the usual way."),
    "plan": ("netlab.move_command", "plan", "Print the plan of a move, for mycomigrate."),
}


class _Commands(click.Group):
    """A group that imports some of its commands only to run them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_ELSEWHERE})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module, attribute, _ = _ELSEWHERE[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        rows = [(name, line) for name, (_, _, line) in _ELSEWHERE.items()]
        for name, command in self.commands.items():
            rows.append((name, command.get_short_help_str(limit=formatter.width)))
        with formatter.section("Commands"):
            formatter.write_dl(sorted(rows))


def _lab_names(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    from netlab import inventory  # noqa: PLC0415

    return [CompletionItem(name) for name in inventory.labs() if name.startswith(incomplete)]


_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON value on stdout.")
_name_argument = click.argument("name", shell_complete=_lab_names)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mycoproxy")
def cli() -> None:
    """Nodes, links, pods and Services on this machine; scenarios that move pods under load.

    \b
    netlab up demo                           a lab with everything in it
    netlab ps                                what is up, and where
    netlab exec demo client -- redis-cli -h 10.96.0.10 ping
    netlab check demo                        try every link, route, pod and Service
    netlab up my.yaml --name second          another one beside it
    netlab down --all
    netlab move demo redis beta              move a pod of a lab that is up
    netlab run demo                          the main job: moves under load

    Exit status: 0 done, 1 failed, 2 usage, 3 refused.

    Completion: put  eval "$(_NETLAB_COMPLETE=bash_source netlab)"  into ~/.bashrc
    (zsh: zsh_source and ~/.zshrc; fish: fish_source).
    """


@cli.command(short_help="Bring a lab up.")
@click.argument("topology", default="demo")
@click.option("--name", help="The lab's name; default: the topology's.")
@click.option(
    "--delay",
    "delay_ms",
    type=click.FloatRange(0, 1000, min_open=True),
    metavar="MS",
    help="One-way delay of every link, in milliseconds; default: the topology's.",
)
@click.option("--no-pods", is_flag=True, help="Make no pods, only nodes, links and Services.")
@_json_option
def up(
    topology: str, name: str | None, delay_ms: float | None, no_pods: bool, as_json: bool
) -> None:
    """Bring a lab up: TOPOLOGY is a YAML file, or one that comes with netlab (demo).

    \b
    netlab up
    netlab up my.yaml --name second
    netlab up peers --delay 20

    If it fails or is interrupted, nothing is left behind.
    """
    from netlab import listing  # noqa: PLC0415
    from netlab.lab import Lab  # noqa: PLC0415
    from netlab.topology import delayed, load  # noqa: PLC0415

    wanted = load(Path(topology))
    if delay_ms is not None:
        wanted = delayed(wanted, delay_ms)
    with _signals_as_exceptions():
        lab = Lab.up(wanted, name)
        try:
            for pod in () if no_pods else wanted.pods:
                lab.start_pod(pod.name)
        except BaseException:
            lab.down()
            raise
        lab.close()
    entry = listing.entry(lab.name)
    if as_json:
        _print_json(entry)
    else:
        click.echo(
            f"lab {lab.name} is up (nodes: {len(wanted.nodes)}, links: {len(wanted.links)}, "
            f"pods: {len(entry['pods'])}, Services: {len(wanted.services)})"
        )


@cli.command(short_help="Remove a lab, or all of them, also after a crash.")
@click.argument("name", required=False, shell_complete=_lab_names)
@click.option("--all", "every", is_flag=True, help="Every lab of this machine.")
@_json_option
def down(name: str | None, every: bool, as_json: bool) -> None:
    """Remove a lab, whatever state it is in: also one that a crash left behind.

    Everything is found by the lab's name. A lab that is not there is fine.
    """
    from netlab import inventory  # noqa: PLC0415
    from netlab.bringup import require_root  # noqa: PLC0415

    if every == (name is not None):
        raise UsageError("the name of a lab, or --all, is wanted (netlab ps lists the labs)")
    require_root()
    names = inventory.labs() if name is None else [name]
    removed = {each: inventory.remove(each) for each in names}
    if as_json:
        _print_json({each: {"removed": found} for each, found in removed.items()})
        return
    for each, found in removed.items():
        click.echo(f"lab {each} is removed" if found else f"nothing of a lab {each} was there")


@cli.command(short_help="List labs, nodes and pods.")
@_json_option
def ps(as_json: bool) -> None:
    """List labs, their nodes, and their pods: where, process id, addresses."""
    from netlab import listing  # noqa: PLC0415

    labs = listing.everything()
    if as_json:
        _print_json(labs)
    else:
        click.echo(listing.as_text(labs) if labs else "no labs")


@cli.command(
    name="exec",
    short_help="Run a command in a node's network.",
    context_settings={"ignore_unknown_options": True},
)
@_name_argument
@click.argument("node")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def execute(name: str, node: str, command: tuple[str, ...]) -> NoReturn:
    """Run a command in the network of NODE (a node, or a pod) of lab NAME; a shell by default.

    \b
    netlab exec demo client -- redis-cli -h 10.96.0.10 ping
    netlab exec demo router -- nft list ruleset
    netlab exec demo alpha
    """
    from mycoproxy.kernel import CLONE_NEWNET, setns  # noqa: PLC0415
    from netlab.bringup import require_root  # noqa: PLC0415
    from netlab.lab import Lab  # noqa: PLC0415

    require_root()
    lab = Lab.attach(name)
    is_pod = any(node == pod.name for pod in lab.topology.pods)
    netns = lab.pod(node).netns if is_pod else lab.node(node).netns
    argv = list(command) or [os.environ.get("SHELL", "/bin/sh")]
    # This process becomes the command: no other thread is there that could need its namespace.
    try:
        with netns.open("rb") as handle:
            setns(handle.fileno(), CLONE_NEWNET)
    except OSError as error:
        raise MycoError(f"cannot enter {netns}: {error.strerror}") from error
    try:
        os.execvp(argv[0], argv)  # noqa: S606
    except OSError as error:
        raise UsageError(f"cannot run {argv[0]}: {error.strerror}") from error


@cli.command(short_help="Draw a lab or a topology.")
@click.argument("name", metavar="NAME|TOPOLOGY", shell_complete=_lab_names)
@click.option("--dot", "as_dot", is_flag=True, help="In Graphviz' language: ... | dot -Tsvg")
def graph(name: str, as_dot: bool) -> None:
    """Draw a lab that is up (with the pods where they are now), or a topology."""
    from netlab import graph as drawing  # noqa: PLC0415

    topology, places = _lab_or_topology(name)
    click.echo((drawing.dot if as_dot else drawing.text)(topology, places))


def _lab_or_topology(name: str) -> tuple["Topology", list["Place"]]:
    from netlab import inventory  # noqa: PLC0415
    from netlab.graph import Place, planned  # noqa: PLC0415
    from netlab.lab import Lab  # noqa: PLC0415
    from netlab.topology import load  # noqa: PLC0415

    if name in inventory.labs():
        lab = Lab.attach(name)
        return lab.topology, [Place(p.name, p.node, p.addresses) for p in lab.sandboxes()]
    topology = load(Path(name))
    return topology, planned(topology)


@cli.command(short_help="Try every link, route, pod and Service of a lab.")
@_name_argument
@_json_option
def check(name: str, as_json: bool) -> None:
    """Try every link, route, pod and Service of a lab, from its nodes.

    Exit status 1 if one fails.
    """
    from netlab import check as checks  # noqa: PLC0415
    from netlab.bringup import require_root  # noqa: PLC0415
    from netlab.lab import Lab  # noqa: PLC0415

    require_root()
    items = []
    with Lab.attach(name) as lab:
        for item in checks.check(lab):
            items.append(item)
            if not as_json:
                click.echo(f"{'ok    ' if item.ok else 'FAILED'}  {item.name}: {item.found}")
    failed = [item for item in items if not item.ok]
    if as_json:
        rows = [{"name": item.name, "ok": item.ok, "found": item.found} for item in items]
        _print_json({"ok": not failed, "items": rows})
    if failed:
        raise MycoError(f"{len(failed)} of {len(items)} checks of lab {name} failed")


@cli.command(short_help="Print the JSON Schema of topology or scenario files.")
@click.argument("kind", type=click.Choice(["topology", "scenario"]), default="topology")
def schema(kind: str) -> None:
    """Print the JSON Schema of topology files, or of scenario files.

    \b
    netlab schema
    netlab schema scenario
    """
    from netlab.scenario import Scenario  # noqa: PLC0415
    from netlab.topology import schema as topology_schema  # noqa: PLC0415

    if kind == "topology":
        click.echo(topology_schema())
    else:
        _print_json(Scenario.model_json_schema())


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


@contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP end what is done by an exception, and only the first of them."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = [signal.signal(each, end) for each in signals]
    try:
        yield
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)


def main() -> NoReturn:
    """The entry point: every error a person can cause is one line, and an exit status."""
    try:
        cli.main(prog_name="netlab", standalone_mode=False)
    except MycoError as error:
        for line in str(error).splitlines():
            click.echo(f"netlab: {line}", err=True)
        sys.exit(error.exit_status)
    except click.ClickException as error:
        click.echo(f"netlab: {error.format_message()}", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("netlab: interrupted", err=True)
        sys.exit(130)
    sys.exit(0)
