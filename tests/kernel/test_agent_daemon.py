"""The agent as a real process in a network namespace: questions, reloads, signals, crashes."""

import contextlib
import grp
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from agent_process import COMMAND, WITHIN, AgentProcess, wait_for
from conftest import Network

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.netfilter.nft import Nft
from mycoproxy.netfilter.translate import Move, Translate

pytestmark = pytest.mark.root

NOBODY = 65534
# An agent with one part more: a slow question, a slow start, or an end that never comes.
WITH_A_PART = """
import asyncio, os, sys
from aiohttp import web
from mycoproxy.agent import process
from mycoproxy.agent.part import Part
from mycoproxy.cli import main

class Slow(Part):
    name = "slow"
    async def start(self, agent):
        agent.questions.routes.append(web.get("/v1/slow", self.answer))
        if "start" in os.environ["SLOW"]:
            await asyncio.sleep(60)
        if "die" in os.environ["SLOW"]:
            agent.spawn(self, asyncio.sleep(0.2))
    async def answer(self, request):
        await asyncio.sleep(0.5)
        return web.json_response({"done": True})
    async def stop(self):
        if "stop" in os.environ["SLOW"]:
            await asyncio.sleep(60)

usual = process.parts_of
def parts_of(daemon):
    first, *rest = usual(daemon)
    return [first, Slow(), *rest]
process.parts_of = parts_of
main()
"""


@pytest.fixture
def agent(network: Network) -> Iterator[AgentProcess]:
    """Not started yet. Whatever was started is gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="mycoproxy-agent-"))
    directory.chmod(0o755)
    made = AgentProcess(network.node("alpha"), directory)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(directory)


def test_it_answers_commands_probes_and_prometheus_and_ends_as_told(agent: AgentProcess) -> None:
    process = agent.start()
    status = agent.json("status")
    assert status["node"] == "alpha"
    assert status["pid"] == process.pid
    assert status["ready"] is True
    assert status["config"]["set"]["log.format"]["origin"] == f"{agent.file}:2"
    assert agent.json("moves") == {"moves": [], "total": 0}
    assert agent.json("sessions")["sessions"] == []
    shown = agent.run("status")
    assert shown.returncode == 0
    assert "agent 0.1.0 on alpha: running" in shown.stdout
    assert agent.get("/healthz")[0] == 200
    assert agent.get("/readyz")[0] == 200
    code, text = agent.get("/metrics")
    assert code == 200
    assert 'mycoproxy_control_requests_total{route="/v1/status",status="200"} 2.0' in text
    process.send_signal(signal.SIGTERM)
    assert process.wait(WITHIN) == 0
    assert not agent.socket.exists()
    gone = agent.run("status")
    assert gone.returncode == 1
    assert gone.stderr == (
        f"mycoproxy: no agent answers at {agent.socket}: is it running? "
        f"systemctl status mycoproxy-agent\n"
    )


def test_every_line_of_its_log_is_json_with_the_same_fields(agent: AgentProcess) -> None:
    process = agent.start(MYCOPROXY_LOG_LEVEL="debug")
    agent.json("reload")
    process.send_signal(signal.SIGINT)
    assert process.wait(WITHIN) == 0
    lines = agent.lines()
    for line in lines:
        assert {"time", "level", "node", "logger", "message"} <= line.keys()
        assert line["node"] == "alpha"
    messages = [line["message"] for line in lines]
    assert "running" in messages
    assert "reloaded" in messages
    assert messages[-1] == "ended"


def test_it_lists_the_connections_that_are_translated_in_its_namespaces(
    agent: AgentProcess, network: Network
) -> None:
    pod = network.node("pod")
    connection = FourTuple(Endpoint("10.0.0.1", 6379), Endpoint("10.0.0.9", 40000))

    def translate() -> None:
        with Nft() as nft:
            Translate(nft).add([Move(connection, Endpoint("10.0.1.1", 6379))])

    pod.call(translate)
    agent.start(MYCOPROXY_NAMESPACES_PODS=f"{pod.path},{agent.node.path},/run/netns/none-*")
    answer = agent.json("connections")
    assert answer == {
        "connections": [
            {
                "namespace": str(pod.path),
                "strategy": "translate",
                "move": "",
                "client": "10.0.0.9:40000",
                "dialled": "10.0.0.1:6379",
                "now": "10.0.1.1:6379",
                "through": True,
            }
        ],
        "total": 1,
    }
    assert "10.0.0.9:40000" in agent.run("connections").stdout


def test_a_reload_changes_what_it_can_and_a_broken_file_nothing(agent: AgentProcess) -> None:
    process = agent.start()
    with following(agent) as watcher:
        agent.config('[log]\nformat = "json"\n[limits]\nmoves = 7\n')
        assert agent.json("reload")["applied"] == [{"key": "limits.moves", "old": 4, "new": 7}]
        agent.config("[limits]\nmoves = 0\n")
        refused = agent.run("reload")
        assert refused.returncode == 2
        assert f"{agent.file}:2: limits.moves: at least 1 is wanted, found 0" in refused.stderr
        assert "limits.moves" in agent.json("status")["config"]["set"]
        agent.config("[limits]\nmoves = 8\n")
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: moves_limit(agent) == 8, "the reload by a signal")
        assert process.poll() is None
        assert watcher.poll() is None, "what watched before the reloads must go on"


def moves_limit(agent: AgentProcess) -> Any:
    return agent.json("status")["config"]["set"]["limits.moves"]["value"]


@contextlib.contextmanager
def following(agent: AgentProcess) -> Iterator[subprocess.Popen[str]]:
    """``mycoproxy moves --watch``, once it has said its first line."""
    watcher = subprocess.Popen(
        [*COMMAND, "moves", "--watch", "--json"],
        env=agent.environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        text=True,
    )
    agent.processes.append(watcher)
    assert watcher.stdout is not None
    with watcher.stdout:
        assert json.loads(watcher.stdout.readline()) == {"event": "now", "moves": []}
        yield watcher
        if watcher.poll() is None:
            watcher.kill()


def test_a_watcher_ends_with_the_agent_and_without_an_error(agent: AgentProcess) -> None:
    process = agent.start()
    with following(agent) as watcher:
        process.send_signal(signal.SIGTERM)
        assert process.wait(WITHIN) == 0
        assert watcher.wait(WITHIN) == 0


def test_a_request_under_way_is_answered_before_it_ends(agent: AgentProcess) -> None:
    process = agent.start([sys.executable, "-c", WITH_A_PART], SLOW="answer")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(WITHIN)
        client.connect(str(agent.socket))
        client.sendall(b"GET /v1/slow HTTP/1.1\r\nHost: agent\r\n\r\n")
        # The next answer proves that the agent has taken this request.
        agent.json("status")
        process.send_signal(signal.SIGTERM)
        answer = b""
        while part := client.recv(4096):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b'{"done": true}')
    assert process.wait(WITHIN) == 0


def test_a_second_signal_ends_it_at_once(agent: AgentProcess) -> None:
    process = agent.start(
        [sys.executable, "-c", WITH_A_PART], SLOW="stop", MYCOPROXY_LIMITS_SHUTDOWN_SECONDS="60"
    )
    process.send_signal(signal.SIGTERM)
    agent.told("STOPPING=1")
    process.send_signal(signal.SIGTERM)
    assert process.wait(WITHIN) == 128 + signal.SIGTERM


def test_it_can_be_ended_while_it_starts_and_says_what_is_missing(agent: AgentProcess) -> None:
    process = agent.spawn([sys.executable, "-c", WITH_A_PART], SLOW="start")

    def starting() -> bool:
        with contextlib.suppress(OSError):
            code, text = agent.get("/readyz")
            reasons = json.loads(text)["reasons"]
            return code == 503 and {"part": "slow", "reason": "not started yet"} in reasons
        return False

    wait_for(starting, "the probe while it starts")
    process.send_signal(signal.SIGTERM)
    assert process.wait(WITHIN) == 0


def test_a_part_that_dies_ends_it_with_an_error(agent: AgentProcess) -> None:
    process = agent.start([sys.executable, "-c", WITH_A_PART], SLOW="die")
    assert process.wait(WITHIN) == 1
    assert agent.lines()[-1]["message"] == "ended: part slow ended by itself"


def test_after_a_kill_it_starts_again(agent: AgentProcess) -> None:
    first = agent.start()
    first.kill()
    first.wait(WITHIN)
    assert agent.socket.is_socket()
    second = agent.start()
    assert agent.json("status")["pid"] == second.pid


def test_a_second_agent_is_refused_and_the_first_goes_on(agent: AgentProcess) -> None:
    first = agent.start()
    same_state = agent.spawn()
    assert same_state.wait(WITHIN) == 3
    same_socket = agent.spawn(
        MYCOPROXY_STATE_DIRECTORY=str(agent.directory / "other"),
        MYCOPROXY_METRICS_LISTEN="127.0.0.1:0",
        MYCOPROXY_PEERS_LISTEN="127.0.0.1:0",
    )
    assert same_socket.wait(WITHIN) == 3
    assert agent.json("status")["pid"] == first.pid
    log = agent.log.read_text()
    assert f"another agent is running: process {first.pid} holds" in log
    assert log.count("set control.socket") == 1
    assert log.count("set state.directory") == 1


def test_a_port_that_is_taken_is_named(agent: AgentProcess) -> None:
    with agent.node.call(socket.create_server, ("127.0.0.1", 7421)):
        process = agent.spawn()
        assert process.wait(WITHIN) == 1
    assert agent.lines()[0]["message"].startswith(
        "cannot start: metrics.listen: cannot listen on 127.0.0.1:7421: Address already in use"
    )


def test_a_configuration_that_makes_no_sense_ends_it_before_it_begins(agent: AgentProcess) -> None:
    agent.config("[limits]\nmoves = 0\n")
    assert agent.spawn().wait(WITHIN) == 2
    assert "limits.moves: at least 1 is wanted, found 0" in agent.log.read_text()
    assert not (agent.directory / "run").exists()
    assert agent.run("agent", "--check-config").returncode == 2
    agent.config("")
    checked = agent.run("agent", "--check-config", "--json")
    assert json.loads(checked.stdout) == {"ok": True, "file": str(agent.file)}


def test_readiness_says_that_the_nodes_namespace_is_not_there(agent: AgentProcess) -> None:
    agent.start(MYCOPROXY_NAMESPACES_NODE="/run/netns/mycoproxy-none")
    code, text = agent.get("/readyz")
    assert code == 503
    assert json.loads(text) == {
        "ready": False,
        "reasons": [
            {
                "part": "namespaces",
                "reason": "namespaces.node: there is no /run/netns/mycoproxy-none",
            }
        ],
    }
    shown = agent.run("status")
    assert shown.returncode == 1
    assert "there is no /run/netns/mycoproxy-none" in shown.stdout.replace("\n", "")


def ask_as(path: Path, *, uid: int, groups: Sequence[int]) -> str:
    """The first line of the answer, or the error, that another user gets."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        # Only what needs no lock of another thread.
        try:
            os.setgroups(list(groups))
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(WITHIN)
            client.connect(str(path))
            client.sendall(b"GET /v1/status HTTP/1.1\r\nHost: agent\r\n\r\n")
            os.write(writer, client.recv(4096).split(b"\r\n")[0])
        except OSError as error:
            os.write(writer, (error.strerror or str(error)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:  # noqa: PTH123 - a descriptor
        answer = pipe.read().decode()
    os.waitpid(child, 0)
    return answer


def test_another_user_is_refused_by_the_file_and_by_the_agent(agent: AgentProcess) -> None:
    agent.start()
    assert ask_as(agent.socket, uid=NOBODY, groups=[]) == "Permission denied"
    agent.socket.chmod(0o666)
    assert ask_as(agent.socket, uid=NOBODY, groups=[]) == "HTTP/1.1 403 Forbidden"
    assert ask_as(agent.socket, uid=0, groups=[]) == "HTTP/1.1 200 OK"
    # Lines are written by a thread of their own.
    wait_for(lambda: agent.log.read_text().count("refused user 65534") == 1, "the refusal's line")


def test_a_member_of_the_configured_group_may_ask(agent: AgentProcess) -> None:
    group = grp.getgrnam("daemon")
    agent.start(MYCOPROXY_CONTROL_GROUP=group.gr_name, MYCOPROXY_CONTROL_MODE="0660")
    assert agent.socket.stat().st_gid == group.gr_gid
    assert ask_as(agent.socket, uid=NOBODY, groups=[group.gr_gid]) == "HTTP/1.1 200 OK"
    assert ask_as(agent.socket, uid=NOBODY, groups=[]) == "Permission denied"


def test_without_a_certificate_it_is_not_ready_until_there_is_one(agent: AgentProcess) -> None:
    pki = agent.directory / "pki"
    away = agent.directory / "away"
    pki.rename(away)
    agent.start()
    code, text = agent.get("/readyz")
    assert code == 503
    assert "no certificate" in text
    away.rename(pki)
    deadline = time.monotonic() + WITHIN
    while agent.get("/readyz")[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_another_nodes_certificate_is_refused(agent: AgentProcess) -> None:
    process = agent.spawn(MYCOPROXY_NODE_NAME="beta")
    assert process.wait(WITHIN) == 1
    assert any("they have to be the same" in line["message"] for line in agent.lines())
