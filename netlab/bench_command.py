"""``netlab bench``: benchmarks, each a comparison within one run."""

import json

import click
from rich.console import Console

from netlab import bench as benchmarks
from netlab.bringup import require_root


@click.group()
def bench() -> None:
    """Benchmarks. Figures are medians of one run; compare only within a run."""


@bench.command()
@click.option("--count", type=click.IntRange(min=1), default=10, show_default=True, help="Rounds.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def runtime(*, count: int, as_json: bool) -> None:
    """The freeze: runc alone against runc held at the gate until everything is ready."""
    require_root()
    figures = benchmarks.runtime(count, lambda text: click.echo(text, err=True))
    if as_json:
        click.echo(json.dumps(figures))
    else:
        click.echo(
            f"runc alone {figures['runc_ms']} ms, at the gate {figures['gate_ms']} ms "
            f"(ratio {figures['ratio']}, {figures['rounds']} rounds)"
        )


@bench.command()
@click.option("--count", type=click.IntRange(min=1), default=3, show_default=True, help="Rounds.")
@click.option(
    "--connections",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    help="Connections in the largest handover; the fields' names follow.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    help="Gbit/s of the links when throughput is measured; 0: no limit.",
)
@click.option("--twin", is_flag=True, help="Compare a moved connection with one that stayed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def tcp(*, count: int, connections: int, rate: float, twin: bool, as_json: bool) -> None:
    """Moving TCP connections: time, memory, and throughput afterwards.

    \b
    netlab bench tcp                       a minute; a table
    netlab bench tcp --json                the same as one object
    netlab bench tcp --count 5             more rounds of everything (five times as many of
                                           the handovers of up to 1,000)
    netlab bench tcp --connections 1000    a smaller handover, handover_1000_s
    netlab bench tcp --rate 0              throughput as far as the processor goes (which varies
                                           by itself, twofold on a small machine)
    netlab bench tcp --twin                no timing: two connections with one history, one of
                                           them moved; what ss -tino says of both, side by side
                                           (exit status 1 if the moved one is worse)

    Three network namespaces, source and target in processes of their own, the peers in a third.
    A handover is timed from the beginning of the hold to the end of the last release. What the
    owners have set is read before, as in a move (options_us). Afterwards every connection is used,
    and one that does not work is an error (exit status 1).

    \b
    capture_establish_us         microseconds a connection, idle, one thread:
                                 options_us + capture_us + establish_us
    handover_10000_s             seconds; handover_10000_parts is where they go
    per_connection_us            connections: microseconds each, of a whole handover
    bytes_per_connection         highest mark of Python's heap, captured and encoded, idle
    encoded_bytes                of which this is the encoding
    throughput_ratio_after_move  bulk, the second around 2 s after the move by the one before it;
                                 the median of the worse direction
    """
    require_root()
    from netlab import bench_tcp  # noqa: PLC0415
    from netlab.tcp_bench import tables  # noqa: PLC0415

    if twin:
        figures = bench_tcp.compare_twins()
        table = tables.twins(figures)
    else:
        figures = bench_tcp.measure(
            count, lambda text: click.echo(text, err=True), most=connections, rate=rate
        )
        table = tables.figures(figures)
    if as_json:
        click.echo(json.dumps(figures))
    else:
        Console().print(table)
    if figures.get("differences"):
        raise SystemExit(1)


@bench.command()
@click.option(
    "--connections",
    type=click.IntRange(min=1, max=20_000),
    default=1_000,
    show_default=True,
    help="Connections, half of them through a Service; rounded up to a multiple of 20.",
)
@click.option("--count", type=click.IntRange(min=1), default=6, show_default=True, help="Moves.")
@click.option(
    "--delay",
    type=click.FloatRange(min=0, max=1000),
    default=0.0,
    show_default=True,
    help="Milliseconds that every link takes, one way. Between two nodes there are two links.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def handover(*, connections: int, count: int, delay: float, as_json: bool) -> None:
    """How long connections are held in a move by agents, with clients on five other nodes.

    \b
    netlab bench handover                        1,000 connections, six moves; 20 seconds
    netlab bench handover --connections 10000 --count 4
    netlab bench handover --delay 20             nodes that are 40 ms from each other

    Seven nodes and their agents, real containers. The workload moves there and back under idle
    connections; afterwards every one of them is used, and one that does not work is an error (exit
    status 1).

    \b
    hold_to_release_ms   from the first packet that is held until the source has heard that the
                         target has let go; parts_ms is where it goes
    round_trip_ms        between two nodes, by --delay
    led                  how many connections the nodes have led by each strategy, in the last move
    """
    require_root()
    from netlab import bench_handover  # noqa: PLC0415

    figures = bench_handover.measure(
        connections, count, lambda text: click.echo(text, err=True), delay_ms=delay
    )
    if as_json:
        click.echo(json.dumps(figures))
    else:
        click.echo(
            f"{figures['connections']} connections of {figures['peers']} nodes, "
            f"{figures['round_trip_ms']} ms from each other and back: held "
            f"{figures['hold_to_release_ms']} ms (worst {figures['hold_to_release_worst_ms']}), "
            f"frozen {figures['freeze_ms']} ms; {figures['parts_ms']}"
        )


@bench.command()
@click.option("--count", type=click.IntRange(min=1), default=10, show_default=True, help="Moves.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def newcomers(*, count: int, as_json: bool) -> None:
    """Who connects while the workload stands: how long after the resume is everyone answered?

    \b
    netlab bench newcomers           redis, 100 MB; a connection every 5 ms through the Service

    answered_after_resume_ms is of the last one in each move, the median of the moves.
    """
    require_root()
    from netlab import bench_newcomers  # noqa: PLC0415

    figures = bench_newcomers.measure(count, lambda text: click.echo(text, err=True))
    if as_json:
        click.echo(json.dumps(figures))
    else:
        click.echo(
            f"{figures['newcomers']} newcomers in {figures['moves']} moves: the last one was "
            f"answered {figures['answered_after_resume_ms']} ms after the resume "
            f"(worst {figures['answered_after_resume_worst_ms']})"
        )
