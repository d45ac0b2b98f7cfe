"""The control socket: what it answers, and what it refuses, over a real unix socket."""

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from agent_lab import Told, agent, run
from aiohttp import web

from mycoproxy.agent import control, http_server
from mycoproxy.agent.part import Agent
from mycoproxy.agent.questions import Changes, Row, Rows


def test_status_says_who_it_is_what_is_set_and_what_is_ready(tmp_path: Path) -> None:
    async def course() -> None:
        async with agent(tmp_path, config='[log]\nlevel = "error"\n') as running:
            status, answer = await running.ask("/v1/status")
            assert status == 200
            assert answer["node"] == "alpha"
            assert answer["state"] == "running"
            assert answer["ready"] is True
            assert answer["reasons"] == []
            assert [part["name"] for part in answer["parts"]] == ["metrics", "control"]
            assert answer["config"]["file"] == str(running.file)
            assert answer["config"]["set"]["log.level"] == {
                "value": "error",
                "origin": f"{running.file}:2",
                "reload": True,
            }
            assert "limits.moves" not in answer["config"]["set"]
            _, everything = await running.ask("/v1/config")
            assert everything["limits.moves"]["origin"] == "default"

    run(course())


def test_a_part_that_cannot_work_is_named_with_its_reason(tmp_path: Path) -> None:
    async def course() -> None:
        part = Told("pki", [])
        async with agent(tmp_path, part) as running:
            part.reasons = ["the certificate ran out"]
            _, answer = await running.ask("/v1/status")
            assert answer["ready"] is False
            assert answer["reasons"] == [{"part": "pki", "reason": "the certificate ran out"}]
            assert [each["ready"] for each in answer["parts"]] == [True, False, True]

    run(course())


def test_lists_are_cut_at_a_limit_and_say_how_many_there_are(tmp_path: Path) -> None:
    async def rows() -> Rows:
        return Rows([{"client": number} for number in range(1500)], ["one namespace is closed"])

    async def course() -> None:
        async with agent(tmp_path) as running:
            running.daemon.questions.connections += [rows, rows]
            _, answer = await running.ask("/v1/connections")
            assert len(answer["connections"]) == 1000
            assert answer["total"] == 3000
            assert answer["problems"] == ["one namespace is closed"] * 2
            _, answer = await running.ask("/v1/connections?limit=2")
            assert answer["connections"] == [{"client": 0}, {"client": 1}]

    run(course())


def test_what_is_not_there_yet_is_empty_or_refused(tmp_path: Path) -> None:
    async def course() -> None:
        async with agent(tmp_path) as running:
            assert await running.ask("/v1/connections") == (200, {"connections": [], "total": 0})
            assert await running.ask("/v1/moves") == (200, {"moves": [], "total": 0})
            status, answer = await running.ask("/v1/sessions")
            assert answer == {"sessions": [], "total": 0, "note": control.NO_SESSIONS}
            status, _ = await running.ask("/v1/drain", "POST")
            assert status == 404
            assert (await running.ask("/v1/status"))[1]["draining"] is False

    run(course())


@pytest.mark.parametrize(
    ("question", "method", "status", "error"),
    [
        ("/v1/none", "GET", 404, "no such question: GET /v1/none"),
        ("/v2/status", "GET", 404, "no such question: GET /v2/status"),
        ("/v1/status", "POST", 405, "no such question: POST /v1/status"),
        ("/v1/moves?limit=x", "GET", 422, "?limit=: a number from 0 to 100000 is wanted"),
        ("/v1/moves?limit=100001", "GET", 422, "?limit=: a number from 0 to 100000 is wanted"),
        ("/v1/moves?watch=yes", "GET", 422, "?watch=: a number from 0 to 1 is wanted"),
    ],
)
def test_a_refusal_is_json_and_says_what_to_do(
    tmp_path: Path, question: str, method: str, status: int, error: str
) -> None:
    async def course() -> None:
        async with agent(tmp_path) as running:
            found, answer = await running.ask(question, method)
            assert found == status
            assert answer["error"].startswith(error)
            assert answer["to_do"]

    run(course())


class Routes(Told):
    """A part with questions of its own."""

    def __init__(self) -> None:
        super().__init__("routes", [])
        self.entered = asyncio.Event()
        self.on_start = self.add

    def add(self, agent: Agent) -> None:
        agent.questions.routes += [
            web.post("/v1/size", self.size),
            web.get("/v1/slow", self.slow),
            web.get("/v1/wrong", self.wrong),
        ]

    async def size(self, request: web.Request) -> web.Response:
        return web.json_response({"bytes": len(await request.read())})

    async def slow(self, _request: web.Request) -> web.Response:
        self.entered.set()
        await asyncio.sleep(0.3)
        return web.json_response({"done": True})

    async def wrong(self, _request: web.Request) -> web.Response:
        raise ValueError("of no use to a caller")


def test_a_part_can_add_questions_and_their_bodies_are_bounded(tmp_path: Path) -> None:
    async def course() -> None:
        async with agent(tmp_path, Routes()) as running:
            assert await running.ask("/v1/size", "POST", data=b"x" * 60_000) == (
                200,
                {"bytes": 60_000},
            )
            status, answer = await running.ask("/v1/size", "POST", data=b"x" * 70_000)
            assert status == 413
            assert answer == {
                "error": "the request's body is too large",
                "to_do": "send 64 KiB at most",
            }

    run(course())


def test_a_question_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    async def course() -> None:
        config = "[control]\nrequest_seconds = 0.05\n"
        async with agent(tmp_path, Routes(), config=config) as running:
            status, answer = await running.ask("/v1/slow")
            assert status == 504
            assert "control.request_seconds" in answer["error"]

    run(course())


def test_a_fault_in_one_answer_keeps_the_agent_and_its_details(tmp_path: Path) -> None:
    async def course() -> None:
        async with agent(tmp_path, Routes()) as running:
            status, answer = await running.ask("/v1/wrong")
            assert status == 500
            assert answer["error"] == "a fault in the agent: ValueError"
            assert (await running.ask("/v1/status"))[0] == 200

    run(course())


def test_a_request_under_way_is_answered_before_the_agent_ends(tmp_path: Path) -> None:
    async def course() -> None:
        routes = Routes()
        async with agent(tmp_path, routes) as running:
            asking = asyncio.ensure_future(running.ask("/v1/slow"))
            await routes.entered.wait()
            running.daemon.end()
            assert await asking == (200, {"done": True})
            assert await running.ended == 0
            assert not (tmp_path / "agent.sock").exists()

    run(course())


def test_a_watcher_sees_what_is_and_each_change_until_the_agent_ends(tmp_path: Path) -> None:
    async def moves() -> Rows:
        return Rows([{"move": "m-1"}])

    async def course() -> None:
        async with agent(tmp_path) as running:
            questions = running.daemon.questions
            questions.moves.append(moves)
            lines: list[Row] = []
            async with running.control.get("http://agent/v1/moves?watch=1") as response:
                assert response.content_type == "application/x-ndjson"
                lines.append(json.loads(await response.content.readline()))
                for number in range(3):
                    questions.move_changes.publish({"event": "state", "number": number})
                for _ in range(3):
                    lines.append(json.loads(await response.content.readline()))
                running.daemon.end()
                assert await response.content.readline() == b""
            assert lines[0] == {"event": "now", "moves": [{"move": "m-1"}]}
            assert [line["number"] for line in lines[1:]] == [0, 1, 2]
            assert await running.ended == 0

    run(course())


def test_a_watcher_of_silence_is_told_that_all_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "HEARTBEAT", 0.02)

    async def course() -> None:
        async with (
            agent(tmp_path) as running,
            running.control.get("http://agent/v1/moves?watch=1") as response,
        ):
            await response.content.readline()
            assert json.loads(await response.content.readline()) == {"event": "alive"}
            running.daemon.questions.move_changes.publish({"event": "x"})
            found = {"event": "alive"}
            while found == {"event": "alive"}:
                found = json.loads(await response.content.readline())
            assert found == {"event": "x"}

    run(course())


def test_a_watcher_that_reads_too_slowly_is_let_go_and_others_are_not() -> None:
    async def course() -> None:
        changes = Changes()
        with changes.watched() as slow, changes.watched() as fast:
            got: list[Row] = []
            for number in range(1500):
                changes.publish({"number": number})
                got.append(await anext(fast))
            assert len(got) == 1500
            seen = [change async for change in slow]
            assert len(seen) == 1001
            assert seen[-1]["event"] == "lost"

    run(course())


async def connected(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(path)


def test_connections_are_bounded_and_those_that_are_open_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "CONNECTIONS", 3)

    async def course() -> None:
        async with agent(tmp_path) as running:
            assert (await running.ask("/v1/status"))[0] == 200  # a connection, kept
            others = [await connected(tmp_path / "agent.sock") for _ in range(3)]
            assert await others[-1][0].read() == b""
            assert (await running.ask("/v1/status"))[0] == 200
            for _, writer in others:
                writer.close()
                await writer.wait_closed()

    run(course())


@pytest.mark.parametrize("sent", [b"", b"GET /v1/status HT"])
def test_a_connection_that_asks_nothing_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(http_server, "FIRST_REQUEST", 0.05)

    async def course() -> None:
        async with agent(tmp_path) as running:
            reader, writer = await connected(tmp_path / "agent.sock")
            writer.write(sent)
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
            assert (await running.ask("/v1/status"))[0] == 200

    run(course())


def test_garbage_is_refused_and_the_agent_goes_on(tmp_path: Path) -> None:
    async def course() -> None:
        async with agent(tmp_path) as running:
            reader, writer = await connected(tmp_path / "agent.sock")
            writer.write(b"\x16\x03\x01 nonsense\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.0 400 ")
            writer.close()
            await writer.wait_closed()
            assert (await running.ask("/v1/status"))[0] == 200

    run(course())


def test_requests_are_counted_by_route(tmp_path: Path) -> None:
    async def course() -> None:
        async with agent(tmp_path) as running:
            await running.ask("/v1/status")
            await running.ask("/v1/none")
            _, text = await running.probe("/metrics")
            counted = 'mycoproxy_control_requests_total{route="%s",status="%d"} 1.0'
            assert counted % ("/v1/status", 200) in text
            assert counted % ("other", 404) in text

    run(course())


def test_the_socket_is_the_owners_alone(tmp_path: Path) -> None:
    async def course() -> None:
        async with agent(tmp_path):
            assert (tmp_path / "agent.sock").stat().st_mode & 0o777 == 0o600

    run(course())


def test_without_an_agent_a_client_finds_no_socket(tmp_path: Path) -> None:
    async def course() -> Any:
        async with agent(tmp_path) as running:
            await running.end()
            with pytest.raises(aiohttp.ClientConnectorError):
                await running.ask("/v1/status")

    run(course())
