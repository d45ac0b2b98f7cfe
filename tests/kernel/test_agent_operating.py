"""The commands of a person who takes a node away, or decides for one that is in doubt."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_process import WITHIN, AgentProcess
from conftest import Network

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.netfilter.nft import Nft
from mycoproxy.netfilter.translate import Move, Translate

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


@pytest.fixture
def agent(network: Network) -> Iterator[AgentProcess]:
    """Runs. Whatever was started is gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="mycoproxy-agent-"))
    directory.chmod(0o755)
    made = AgentProcess(network.node("alpha"), directory)
    try:
        made.start()
        yield made
    finally:
        made.close()
        shutil.rmtree(directory)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("status", "parts"),
        ("connections", "connections"),
        ("sessions", "sessions"),
        ("moves", "moves"),
        ("drain", "left"),
        ("reload", "applied"),
    ],
)
def test_every_question_is_answered_in_json_and_for_people(
    agent: AgentProcess, command: str, name: str
) -> None:
    assert name in agent.json(command)
    shown = agent.run(command)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout
    helped = agent.run(command, "--help").stdout
    assert f"mycoproxy {command}" in helped.partition("Examples:")[2]


def test_help_says_how_a_shell_completes_and_it_does(agent: AgentProcess) -> None:
    assert "_MYCOPROXY_COMPLETE=bash_source" in agent.run("--help").stdout
    completed = agent.run(
        environment={
            "_MYCOPROXY_COMPLETE": "bash_complete",
            "COMP_WORDS": "mycoproxy dr",
            "COMP_CWORD": "1",
        }
    )
    assert completed.stdout == "plain,drain\n"


def test_draining_lasts_until_it_is_undone(agent: AgentProcess) -> None:
    assert agent.json("status")["draining"] is False
    assert agent.json("drain") == {
        "draining": True,
        "left": {"moves": 0, "connections": 0},
        "moves": [],
        "connections": [],
    }
    (process,) = agent.processes
    process.kill()
    process.wait(WITHIN)
    agent.start()
    assert agent.json("status")["draining"] is True
    assert "draining: no move may come here" in agent.run("status").stdout
    assert agent.get("/readyz")[0] == 200
    assert "mycoproxy_draining 1.0" in agent.get("/metrics")[1]
    assert agent.json("drain", "--undo")["draining"] is False
    assert agent.json("status")["draining"] is False


def test_a_target_is_refused_while_the_node_drains(agent: AgentProcess, network: Network) -> None:
    pod = network.node("pod")
    agent.run("drain")
    body = {"role": "target", "move": "web", "source": "beta", "netns": str(pod.path)}
    status, answer = agent.post("/v1/moves", body)
    assert status == 409
    assert answer["error"].startswith("web: this node is draining")
    assert "mycoproxy drain --undo" in answer["error"]
    refused = 'mycoproxy_moves_refused_total{reason="draining"} 1.0'
    assert refused in agent.get("/metrics")[1]


def test_waiting_ends_when_nothing_is_left_or_the_time_is_over(agent: AgentProcess) -> None:
    # Neither end of it is here: it passes through.
    connection = FourTuple(Endpoint("10.0.0.1", 6379), Endpoint("10.0.0.9", 40000))

    def translate() -> None:
        with Nft() as nft:
            Translate(nft).add([Move(connection, Endpoint("10.0.1.1", 6379))])

    assert agent.run("drain", "--wait", "0").returncode == 0
    agent.node.call(translate)
    waited = agent.run("drain", "--wait", "0.1", "--json")
    assert waited.returncode == 1
    answer = json.loads(waited.stdout)
    assert answer["left"] == {"moves": 0, "connections": 1}
    assert answer["connections"][0]["client"] == "10.0.0.9:40000"
    assert "10.0.0.9:40000" in agent.run("drain").stdout


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        (("resolve", "web", "live"), "does not run and never will"),
        (("resolve", "web", "undo"), "A copy here is killed"),
        (("gone", "web", "beta"), "with all that ran there"),
    ],
)
def test_a_decision_is_explained_and_refused_without_yes(
    agent: AgentProcess, words: tuple[str, ...], meaning: str
) -> None:
    explained = agent.run(*words)
    assert explained.returncode == 3
    assert meaning in explained.stderr
    assert "say it again with --yes" in explained.stderr
    unknown = agent.run(*words, "--yes")
    assert unknown.returncode == 3
    assert "no move web is open on alpha; these are: none" in unknown.stderr
    assert f"mycoproxy {words[0]} web-1" in agent.run(words[0], "--help").stdout
