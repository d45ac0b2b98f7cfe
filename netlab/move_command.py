"""``netlab move`` and ``netlab plan``: a pod of a lab that is up goes to another node."""

import json

import click

from migrate.cli import print_report, run_to_end
from netlab.lab import Lab
from netlab.moving import move_pod, plan_move


@click.command()
@click.argument("name")
@click.argument("pod")
@click.argument("node")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def move(name: str, pod: str, node: str, *, as_json: bool) -> None:
    """Move POD of lab NAME to NODE, with every one of its TCP connections.

    \b
    netlab up demo
    netlab move demo redis beta
    netlab move demo redis alpha --json
    """
    with Lab.attach(name) as lab:
        report = run_to_end(
            move_pod(lab, pod, node, progress=lambda step: click.echo(f"  {step}", err=True))
        )
    if as_json:
        click.echo(json.dumps(report.as_dict()))
    else:
        print_report(report)


@click.command()
@click.argument("name")
@click.argument("pod")
@click.argument("node")
def plan(name: str, pod: str, node: str) -> None:
    """Make a sandbox for POD of lab NAME on NODE, and print the plan that moves it there.

    \b
    netlab plan demo redis beta > move.yaml
    mycomigrate move move.yaml
    """
    import yaml  # noqa: PLC0415

    with Lab.attach(name) as lab:
        source = lab.pod(pod)
        target = lab.make_sandbox(pod, node)
        wanted = plan_move(lab, source, target)
    click.echo(yaml.safe_dump(wanted.model_dump(mode="json"), sort_keys=False))
