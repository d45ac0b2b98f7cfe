"""``netlab run``: a scenario, its report and its picture."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from mycoproxy.errors import MycoError, RefusedError, UsageError
from netlab import faults_command as faults
from netlab import rehome_command as rehome
from netlab import soak_command as soak
from netlab.rehome_matrix import RehomeMatrix
from netlab.report import Report, make_report
from netlab.runner import Outcome, Progress, Runner, elapsed
from netlab.scenario import Scenario, load, shipped

_SPECIAL = (soak.NAME, rehome.NAME, faults.NAME)
_Result = TypeVar("_Result")


@click.command()
@click.argument("scenario", default="demo", shell_complete=lambda *_: [*shipped(), *_SPECIAL])
@click.option(
    "--count", type=click.IntRange(min=1), help="So many moves (default: the scenario's)."
)
@click.option("--name", help="The lab's name; default: the scenario's.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for report.json, the picture and, if something fails, the logs "
    "[default: out/SCENARIO].",
)
@click.option(
    "--seed", type=int, help="tcp-soak, handover-faults: repeat a run's choices [default: random]."
)
@click.option(
    "--moves",
    help="rehome-matrix: the nodes to move to, one after the other, from alpha on "
    f"[default: {rehome.MOVES}].",
)
@click.option(
    "--part",
    default="1/1",
    show_default=True,
    metavar="N/M",
    help="handover-faults: the N-th of M shares of a run, for labs that are up at the same time.",
)
@click.option("--keep", is_flag=True, help="rehome-matrix: leave the lab and its agents up.")
@click.option("--no-plot", is_flag=True, help="Draw no picture.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def run(
    scenario: str,
    *,
    count: int | None,
    name: str | None,
    out: Path | None,
    seed: int | None,
    moves: str | None,
    part: str,
    keep: bool,
    no_plot: bool,
    as_json: bool,
) -> None:
    """Run SCENARIO (a YAML file, or one that comes with netlab) in a lab of its own.

    tcp-soak is one without a lab of containers: TCP connections in every state, random traffic
    both ways, moved over a wire that loses, doubles and reorders.

    rehome-matrix moves one workload, by an agent on each node, under every path there is: clients
    in pods, on hosts and outside, through Services or not, and what the workload itself opened;
    each over IPv4 and IPv6, sending, receiving and idle.

    handover-faults moves it again and again, and in each move kills an agent, stops it for a while,
    cuts it off, or fills its disk, at a moment of its own.

    \b
    netlab run demo                     move redis there and back under 50 connections
    netlab run demo --count 10 --json   ten moves, figures as JSON
    netlab run mine.yaml --out /tmp/x
    netlab run tcp-soak --count 5000    so many connections moved, every byte checked
    netlab run rehome-matrix --moves beta,gamma,alpha
    netlab run handover-faults --count 200 --json

    Progress goes to standard error. Exit status 0: no connection was lost, no byte was wrong, the
    capture has no reset, and nothing was left behind; 1 otherwise.
    """
    if os.geteuid() != 0:
        raise RefusedError("a lab needs root: network namespaces, containers; run this as root")
    if scenario != rehome.NAME and (moves is not None or keep):
        raise UsageError(f"--moves and --keep are for {rehome.NAME}, not for {scenario}")
    if scenario == soak.NAME:
        soak.run_soak(count=count, seed=seed, as_json=as_json)
        return
    progress = elapsed(lambda text: click.echo(text, err=True))
    if scenario == faults.NAME:
        faults.run_faults(
            count=count, seed=seed, as_json=as_json, progress=progress, part=part, lab=name
        )
        return
    if scenario == rehome.NAME:
        matrix = RehomeMatrix(
            (moves or rehome.MOVES).split(","),
            out=out or Path("out") / rehome.NAME,
            lab_name=name,
            keep=keep,
            progress=progress,
        )
        rehome.show(_until_done(matrix.run), as_json=as_json)
        return
    wanted = load(Path(scenario))
    directory = out or Path("out") / wanted.name
    runner = Runner(wanted, lab_name=name, out=directory, progress=progress)
    outcome = _until_done(lambda: runner.run(count))
    report = make_report(
        outcome.moves,
        outcome.clients,
        findings=outcome.findings,
        capture_drops=outcome.capture_drops,
        leftovers=outcome.leftovers,
    )
    directory.mkdir(parents=True, exist_ok=True)
    figures = _figures(wanted, outcome, report)
    (directory / "report.json").write_text(json.dumps(figures, indent=2) + "\n")
    if not no_plot and outcome.moves:
        _draw(directory / "moves.png", wanted, outcome, progress)
    if as_json:
        click.echo(json.dumps(figures))
    else:
        from netlab.report_table import render  # noqa: PLC0415

        Console().print(render(report, title=wanted.description or wanted.name))
    if outcome.error is not None:
        raise outcome.error
    unmet = _unmet(wanted, figures)
    if unmet:
        raise MycoError(f"scenario {wanted.name} did not come out as expected: {'; '.join(unmet)}")
    if not report.ok:
        raise MycoError(f"scenario {wanted.name} failed; see {directory / 'report.json'}")


def _until_done(work: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
    """Run it; the first SIGINT, SIGTERM or SIGHUP takes the lab down, later ones are ignored."""

    async def interruptible() -> _Result:
        task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

        def stop() -> None:
            for number in numbers:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)
            click.echo("interrupted: taking everything down", err=True)
            assert task is not None
            task.cancel()

        for number in numbers:
            loop.add_signal_handler(number, stop)
        return await work()

    try:
        return asyncio.run(interruptible())
    except asyncio.CancelledError:
        click.echo("netlab: interrupted; the lab is gone", err=True)
        sys.exit(1)


def _figures(scenario: Scenario, outcome: Outcome, report: Report) -> dict[str, object]:
    paths: dict[str, int] = {}
    for move in outcome.reports:
        for one in move.rehomed:
            paths[one.path.value] = paths.get(one.path.value, 0) + 1
    return {
        "scenario": scenario.name,
        **report.to_json(),
        "error": None if outcome.error is None else str(outcome.error),
        "rehomed": paths,
        "uploads_in_freezes": [asdict(upload) for upload in outcome.uploads],
        "resets_seen": [
            f"{event.connection}, by the {'client' if event.from_client else 'server'}, "
            f"{_since(event.time, outcome)}"
            for event in (outcome.findings.resets if outcome.findings else ())
        ],
        "replayed_packets": sum(move.replayed_packets for move in outcome.reports),
        "mover": [move.as_dict() for move in outcome.reports],
    }


def _since(moment: float, outcome: Outcome) -> str:
    """When something happened, told from the last freeze before it."""
    before = [move for move in outcome.moves if move.freeze_start <= moment]
    if not before:
        return "before the first move"
    return f"{(moment - before[-1].freeze_start) * 1e3:.0f} ms after freeze {before[-1].index + 1}"


def _unmet(scenario: Scenario, figures: dict[str, object]) -> list[str]:
    """What of the scenario's expectations does not hold."""
    return [
        f"{name} is {figures[name]}, {wanted} expected"
        for name, wanted in scenario.expect.model_dump().items()
        if wanted is not None and figures[name] != wanted
    ]


def _draw(path: Path, scenario: Scenario, outcome: Outcome, progress: Progress) -> None:
    from netlab.plot import plot_moves  # noqa: PLC0415  # matplotlib takes a second to import

    progress(f"drawing {path}")
    plot_moves(path, outcome.moves[:2], outcome.clients, title=scenario.description)
