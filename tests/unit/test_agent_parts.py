"""The daemon and its parts: order, reloads that are all or nothing, and parts that fail."""

import asyncio
import socket
from pathlib import Path

import pytest
from agent_lab import Running, Told, agent, run

from mycoproxy.agent.config import Config
from mycoproxy.agent.notify import Notifier
from mycoproxy.agent.part import Agent
from mycoproxy.errors import MycoError, RefusedError


def test_parts_start_in_order_and_stop_in_reverse(tmp_path: Path) -> None:
    async def course() -> list[str]:
        told: list[str] = []
        async with agent(tmp_path, Told("a", told), Told("b", told)) as running:
            assert told == ["start a", "start b"]
            assert await running.end() == 0
        return told

    assert run(course()) == ["start a", "start b", "stop b", "stop a"]


def test_a_part_that_cannot_start_stops_those_before_it(tmp_path: Path) -> None:
    async def course() -> list[str]:
        told: list[str] = []
        bad = Told("b", told)

        def refuse(_agent: Agent) -> None:
            raise RefusedError("no such directory")

        bad.on_start = refuse
        async with agent(tmp_path, Told("a", told), bad, Told("c", told)) as running:
            with pytest.raises(RefusedError, match="no such directory"):
                await running.ended
            assert not (tmp_path / "agent.sock").exists()
        return told

    assert run(course()) == ["start a", "start b", "stop a"]


@pytest.mark.parametrize("error", [None, MycoError("the port is gone"), ValueError("a bug")])
def test_a_part_that_ends_by_itself_ends_the_agent(tmp_path: Path, error: Exception | None) -> None:
    async def course() -> int:
        part, other = Told("a", []), Told("b", [])
        now = asyncio.Event()

        async def work() -> None:
            await now.wait()
            if error is not None:
                raise error

        part.on_start = lambda agent: agent.spawn(part, work())
        async with agent(tmp_path, part, other) as running:
            assert running.daemon.status()["ready"]
            now.set()
            status = await running.ended
            assert other.course == ["start b", "stop b"]
            return status

    assert run(course()) == 1


def test_work_that_goes_on_is_cancelled_after_its_part_has_stopped(tmp_path: Path) -> None:
    async def course() -> list[str]:
        told: list[str] = []
        part = Told("a", told)

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                told.append("cancelled")

        part.on_start = lambda agent: agent.spawn(part, work())
        async with agent(tmp_path, part) as running:
            await asyncio.sleep(0)
            assert await running.end() == 0
        return told

    assert run(course()) == ["start a", "stop a", "cancelled"]


def test_a_part_that_does_not_stop_is_given_up_and_the_others_stop(tmp_path: Path) -> None:
    async def course() -> list[str]:
        told: list[str] = []
        slow = Told("b", told)
        slow.on_stop = asyncio.Event().wait  # type: ignore[assignment]
        config = "[limits]\nshutdown_seconds = 0.1\n"
        async with agent(tmp_path, Told("a", told), slow, config=config) as running:
            assert await running.end() == 1
        return told

    assert run(course())[-2:] == ["stop b", "stop a"]


async def reloaded(running: Running, text: str) -> tuple[int, dict[str, object]]:
    running.file.write_text(text)
    return await running.ask("/v1/reload", "POST")


def test_a_reload_reaches_all_parts_and_says_what_changed(tmp_path: Path) -> None:
    async def course() -> None:
        told: list[str] = []
        part = Told("a", told)
        async with agent(tmp_path, part) as running:
            status, answer = await reloaded(
                running, '[limits]\nmoves = 9\n[pki]\ndirectory = "/other"\n'
            )
            assert status == 200
            assert answer == {
                "applied": [{"key": "limits.moves", "old": 4, "new": 9}],
                "needs_restart": [
                    {"key": "pki.directory", "old": "/etc/mycoproxy/pki", "new": "/other"}
                ],
            }
            assert told == ["start a", "reload a 9"]
            assert running.daemon.config.limits.moves == 9
            assert str(running.daemon.config.pki.directory) == "/etc/mycoproxy/pki"
            assert part.agent is not None
            assert part.agent.config is running.daemon.config

    run(course())


def test_a_reload_of_nonsense_changes_nothing(tmp_path: Path) -> None:
    async def course() -> None:
        told: list[str] = []
        async with agent(tmp_path, Told("a", told)) as running:
            before = running.daemon.config
            status, answer = await reloaded(running, '[limits]\nmoves = 9\n[log]\nlevel = "x"\n')
            assert status == 422
            assert str(answer["error"]).startswith(f"{running.file}:4: log.level: one of")
            assert running.daemon.config is before
            assert told == ["start a"]
            _, text = await running.probe("/metrics")
            assert 'mycoproxy_config_reloads_total{result="refused"} 1.0' in text
            assert 'mycoproxy_config_reloads_total{result="applied"} 0.0' in text

    run(course())


def test_a_part_that_cannot_take_it_makes_all_others_go_back(tmp_path: Path) -> None:
    async def course() -> list[str]:
        told: list[str] = []
        bad = Told("b", told)

        def refuse(config: Config) -> None:
            if config.limits.moves == 9:
                raise MycoError("nine is too many")

        bad.on_reload = refuse
        async with agent(tmp_path, Told("a", told), bad, Told("c", told)) as running:
            status, answer = await reloaded(running, "[limits]\nmoves = 9\n")
            assert status == 500
            assert answer["error"] == "nine is too many"
            assert running.daemon.config.limits.moves == 4
            assert running.daemon.status()["ready"]
        return told

    assert run(course())[3:7] == ["reload a 9", "reload b 9", "reload b 4", "reload a 4"]


def test_a_part_that_cannot_go_back_ends_the_agent(tmp_path: Path) -> None:
    async def course() -> int:
        bad = Told("b", [])

        def refuse(_config: Config) -> None:
            raise MycoError("never")

        bad.on_reload = refuse
        async with agent(tmp_path, bad) as running:
            status, _ = await reloaded(running, "[limits]\nmoves = 9\n")
            assert status == 500
            return await running.ended

    assert run(course()) == 1


def test_readiness_names_what_is_missing(tmp_path: Path) -> None:
    async def course() -> None:
        part = Told("pki", [])
        async with agent(tmp_path, part) as running:
            assert await running.probe("/readyz") == (200, '{"ready": true, "reasons": []}')
            part.reasons = ["no certificate"]
            status, text = await running.probe("/readyz")
            assert status == 503
            assert '{"part": "pki", "reason": "no certificate"}' in text
            assert await running.probe("/healthz") == (200, '{"healthy": true}')
            _, text = await running.probe("/metrics")
            assert 'mycoproxy_agent_part_ready{part="pki"} 0.0' in text
            assert 'mycoproxy_agent_part_ready{part="control"} 1.0' in text

    run(course())


def test_probes_answer_while_a_part_starts(tmp_path: Path) -> None:
    async def course() -> None:
        part = Told("slow", [])
        seen: list[tuple[str, str]] = []
        part.on_start = lambda _agent: seen.extend(running_daemon())
        daemons: list[object] = []

        def running_daemon() -> list[tuple[str, str]]:
            assert part.agent is not None
            daemons.append(part.agent)
            return part.agent.reasons()  # type: ignore[attr-defined, no-any-return]

        async with agent(tmp_path, part):
            assert ("agent", "starting") in seen
            assert ("slow", "not started yet") in seen
            assert ("control", "not started yet") in seen

    run(course())


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told_of_every_step(tmp_path: Path, abstract: bool) -> None:
    name = f"@mycoproxy-test-{tmp_path.name}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name[1:] if abstract else name)
        variables = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "60000", "OTHER": "x"}
        notifier = Notifier.from_environment(variables)
        assert variables == {"OTHER": "x"}

        systemd.setblocking(False)

        async def told(wanted: str) -> list[str]:
            """What came, up to ``wanted``."""
            got: list[str] = []
            while wanted not in got:
                data = await asyncio.get_running_loop().sock_recv(systemd, 1000)
                got.append(data.decode().splitlines()[0])
            return got

        async def course() -> list[str]:
            async with agent(tmp_path, notifier=notifier) as running:
                got = await told("READY=1") + await told("WATCHDOG=1")
                await running.ask("/v1/reload", "POST")
                await running.end()
                return got + await told("STOPPING=1")

        got = run(course())
    assert "WATCHDOG=1" in got
    assert [each for each in got if each != "WATCHDOG=1"] == [
        "READY=1",
        "RELOADING=1",
        "READY=1",
        "STOPPING=1",
    ]


def test_without_systemd_nobody_is_told() -> None:
    assert Notifier.from_environment({}) == Notifier(None, None)
    assert Notifier.from_environment({"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}).watchdog is None
