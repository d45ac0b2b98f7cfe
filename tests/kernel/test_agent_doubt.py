"""An agent that finds moves in its journal whose other nodes never come back, and a person."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_process import COMMAND, WITHIN, AgentProcess, wait_for
from conftest import Network

from mycoproxy.agreement import Action, Journal, MoveId, Moves, Outcome
from mycoproxy.agreement.effects import Keys
from mycoproxy.agreement.messages import Plan, Prepare, Vote

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

KEYS = Keys(b"c" * 32, b"a" * 32)


@pytest.fixture
def agent(network: Network) -> Iterator[AgentProcess]:
    """Not started yet. Whatever was started is gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="mycoproxy-agent-"))
    made = AgentProcess(network.node("alpha"), directory)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(directory)


def journal_of(agent: AgentProcess) -> Path:
    return agent.directory / "run" / "journal"


def left_in_doubt(agent: AgentProcess) -> MoveId:
    """As a peer of a move of ``beta``, which ended after the vote."""
    journal = Journal(journal_of(agent))
    moves = Moves("alpha", journal)
    move = MoveId("beta", "0" * 16, 1)
    plan = Plan(move, "gamma", ("alpha",), *KEYS.locks())
    moves.receive("beta", Prepare(move, plan, moves.life))
    moves.report(move, Action.PREPARE, Outcome.DONE)
    journal.close()
    return move


def left_committed(agent: AgentProcess) -> MoveId:
    """As the source of a move to ``gamma``, which has not answered."""
    journal = Journal(journal_of(agent))
    moves = Moves("alpha", journal)
    move, _ = moves.begin("gamma", (), {"gamma": 1})
    moves.report(move, Action.PREPARE, Outcome.DONE)
    moves.receive("gamma", Vote(move, yes=True))
    journal.close()
    return move


def open_moves(agent: AgentProcess) -> list[Any]:
    return [row for row in agent.json("moves")["moves"] if row["phase"] != "over"]


def watched(agent: AgentProcess) -> "subprocess.Popen[str]":
    watcher = subprocess.Popen(
        [*COMMAND, "moves", "--watch", "--json"],
        env=agent.environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        text=True,
    )
    agent.processes.append(watcher)
    return watcher


def test_a_person_resolves_what_nobody_else_can(agent: AgentProcess) -> None:
    move = left_in_doubt(agent)
    agent.start()
    (row,) = open_moves(agent)
    assert (row["id"], row["role"], row["phase"]) == (str(move), "peer", "prepared")
    assert "mycoproxy_journal_size_bytes 0.0" not in agent.get("/metrics")[1]
    assert agent.run("gone", str(move), "gamma", "--yes").returncode == 3
    watcher = watched(agent)
    assert watcher.stdout is not None
    with watcher.stdout as lines:
        assert json.loads(lines.readline())["event"] == "now"
        answer = agent.json("resolve", str(move), "undo", "--yes")
        assert answer == {"move": str(move), "outcome": "undo"}
        brief = {"move": str(move), "id": str(move), "role": "peer"}
        assert json.loads(lines.readline()) == {"event": "phase", **brief, "phase": "undoing"}
        assert json.loads(lines.readline()) == {"event": "over", **brief, "outcome": "returned"}
    watcher.terminate()
    watcher.wait(WITHIN)
    assert not open_moves(agent)
    (ended,) = agent.json("moves")["moves"]
    assert (ended["phase"], ended["outcome"]) == ("over", "returned")
    assert not list(journal_of(agent).glob("*.move"))
    assert "mycoproxy_journal_size_bytes 0.0" in agent.get("/metrics")[1]
    again = agent.run("resolve", str(move), "undo", "--yes")
    assert again.returncode == 3
    assert "these are: none" in again.stderr


def test_a_source_goes_on_without_a_target_that_is_gone_for_ever(agent: AgentProcess) -> None:
    move = left_committed(agent)
    agent.start()
    (row,) = open_moves(agent)
    assert (row["role"], row["phase"], row["missing"]) == ("source", "committed", ["gamma"])
    drained = agent.run("drain", "--wait", "0", "--json")
    assert json.loads(drained.stdout)["left"]["moves"] == 1
    assert drained.returncode == 1
    wrong = agent.run("resolve", str(move), "live", "--yes")
    assert wrong.returncode == 3
    assert "it comes from here" in wrong.stderr
    assert agent.json("gone", str(move), "gamma", "--yes") == {"move": str(move), "gone": "gamma"}
    wait_for(lambda: not open_moves(agent), "the end of the move")
    assert not list(journal_of(agent).glob("*.move"))
