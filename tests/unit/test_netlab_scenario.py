"""Scenario files: what they can say, and what is said of those that say something else."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mycoproxy.errors import UsageError
from netlab import topology
from netlab.cli import cli
from netlab.scenario import Move, Wait, load, shipped

GOOD = """
name: mine
topology: demo
pod: redis
service: redis
clients: [{name: one, node: client, kind: checker, to: service}]
timeline: [{wait: 1}, {move_to: beta}, {move_to: alpha}]
"""


def scenario_file(directory: Path, text: str) -> Path:
    path = directory / "mine.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["demo", "streams"])
def test_the_scenarios_that_come_with_netlab_fit_their_topologies(name: str) -> None:
    scenario = load(Path(name))
    assert name in shipped()
    lab = topology.load(Path(scenario.topology))
    lab.pod(scenario.pod)
    lab.service(scenario.service)
    for client in scenario.clients:
        lab.node(client.node)
    for step in scenario.timeline:
        if isinstance(step, Move):
            assert lab.node(step.move_to).pod_bridge


@pytest.mark.parametrize(
    ("moves", "wanted"),
    [
        (None, ["wait", "beta", "alpha"]),
        (1, ["wait", "beta"]),
        (2, ["wait", "beta", "alpha"]),
        (3, ["wait", "beta", "alpha", "wait", "beta"]),
    ],
)
def test_the_time_line_is_repeated_until_there_are_moves_enough(
    tmp_path: Path, moves: int | None, wanted: list[str]
) -> None:
    steps = load(scenario_file(tmp_path, GOOD)).steps(moves)
    assert ["wait" if isinstance(step, Wait) else step.move_to for step in steps] == wanted


def test_moves_cannot_be_asked_of_a_time_line_without_one(tmp_path: Path) -> None:
    text = GOOD.replace(", {move_to: beta}, {move_to: alpha}", "")
    with pytest.raises(UsageError, match="no move in its time line"):
        load(scenario_file(tmp_path, text)).steps(1)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("pod: redis", "pods: redis", "pod"),
        ("kind: checker", "kind: chequer", "clients.0.kind"),
        ("wait: 1", "wait: -1", "timeline.0"),
        ("name: mine", "name: My Own", "name"),
        ("clients: [", "clients: [[", "not YAML"),
    ],
)
def test_an_error_names_the_file_and_the_field(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    path = scenario_file(tmp_path, GOOD.replace(old, new))
    with pytest.raises(UsageError, match=said) as error:
        load(path)
    assert str(path) in str(error.value)


def test_a_scenario_that_does_not_exist_is_told_with_those_that_do() -> None:
    with pytest.raises(UsageError, match="demo, streams"):
        load(Path("no-such"))


@pytest.mark.parametrize("kind", ["topology", "scenario"])
def test_the_schemas_can_be_printed(kind: str) -> None:
    result = CliRunner().invoke(cli, ["schema", kind])
    assert result.exit_code == 0
    assert json.loads(result.output)["additionalProperties"] is False
