"""``netlab bench``: benchmarks, each a comparison within one run."""

import json

import click

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
