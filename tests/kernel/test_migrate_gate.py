"""The gate between runc and CRIU, with its real stub and real sockets.

Two small programs (``play_runc_and_criu.py``) take the places of runc and CRIU, so that every turn
of their talk can be played, the deaths and refusals included.
"""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from conftest import Network

from migrate.runtime.criu_rpc import (
    Field,
    NetworkLock,
    Option,
    OptionValue,
    RequestType,
    failure,
    notify_reply,
    parse,
    response,
    serialize,
    with_options,
)
from migrate.runtime.gate import Gate, GateError
from mycoproxy.check.criu import CriuBinary

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

T = TypeVar("T")
Step = list[str]

DEADLINE = 10.0
PLAYER = Path(__file__).with_name("play_runc_and_criu.py")

VERSION_REQUEST = serialize([Field(1, 0, RequestType.VERSION)])
VERSION_ANSWER = serialize([Field(1, 0, RequestType.VERSION), Field(2, 0, 1), Field(99, 0, 42)])
OPTS = [Field(1, 0, 7), Field(9, 0, 4), Field(1000, 2, b"of a newer runc")]
RESTORE_REQUEST = serialize([Field(1, 0, RequestType.RESTORE), Field(2, 2, serialize(OPTS))])
RESTORED = serialize([Field(1, 0, RequestType.RESTORE), Field(2, 0, 1)])
NOTIFIED = notify_reply(success=True)


def notification(script: str, pid: int = 0) -> bytes:
    inner = [Field(1, 2, script.encode()), *([Field(2, 0, pid)] if pid else [])]
    return serialize(
        [Field(1, 0, RequestType.NOTIFY), Field(2, 0, 1), Field(5, 2, serialize(inner))]
    )


def send(packet: bytes) -> Step:
    return ["send", packet.hex()]


RECEIVE: Step = ["receive"]
DIE: Step = ["die"]
AWAIT_END: Step = ["await the end"]


def descriptors() -> dict[str, str]:
    """This process's own: number -> what it is."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[entry.name] = str(entry.readlink())
        except FileNotFoundError:
            continue  # the listing's own
    return found


def alive(pid: int) -> bool:
    """Whether there is such a process, zombies not counted."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE:g} s: {what}"
        await asyncio.sleep(0.005)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, 2 * DEADLINE))


class Played:
    """One gate, and the programs on either side of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.criu = CriuBinary(directory / "playing-criu", (4, 2, 1), None)
        self.criu.path.write_text(f"#!{sys.executable} -ISE\n{PLAYER.read_text()}")
        self.criu.path.chmod(0o700)
        self._notes = directory / "notes"
        self.runc: subprocess.Popen[bytes]
        self.gate: Gate

    def open(self, *, netns: Path = Path("/proc/self/ns/net")) -> Gate:
        self.gate = Gate(self.directory / "gate", self.criu, netns=netns)
        return self.gate

    def start(self, *, runc: list[list[Step]], criu: dict[RequestType, list[Step]]) -> None:
        """Start runc, which starts CRIU."""
        self.runc = subprocess.Popen(
            [sys.executable, "-ISE", str(PLAYER), "runc"],
            env={
                **self.gate.environment,
                "PLAY_NOTES": str(self._notes),
                "PLAY_RUNC": json.dumps(runc),
                "PLAY_CRIU": json.dumps({str(int(kind)): steps for kind, steps in criu.items()}),
            },
            stdin=subprocess.DEVNULL,
        )

    def notes(self, role: str, what: str) -> list[Any]:
        """What ``role`` has noted so far."""
        if not self._notes.exists():
            return []
        entries = [json.loads(line) for line in self._notes.read_text().splitlines()]
        return [
            entry["value"] for entry in entries if (entry["role"], entry["what"]) == (role, what)
        ]

    def received(self, role: str) -> list[bytes]:
        return [bytes.fromhex(packet) for packet in self.notes(role, "received")]

    def pids(self) -> list[int]:
        """Every CRIU that was started."""
        return [pid for pid, _ in self.notes("criu", "started")]

    async def runc_ends(self) -> int:
        await until(lambda: self.runc.poll() is not None, "runc ends")
        return self.runc.returncode

    async def all_end(self) -> None:
        await self.runc_ends()
        await until(lambda: not any(map(alive, self.pids())), "CRIU ends")

    def kill(self) -> None:
        """Whatever is left after a test that failed."""
        if hasattr(self, "runc"):
            for pid in self.pids():
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)
            self.runc.kill()
            self.runc.wait(DEADLINE)


@pytest.fixture
def played(tmp_path: Path) -> Iterator[Played]:
    made = Played(tmp_path)
    try:
        yield made
    finally:
        if hasattr(made, "gate"):
            made.gate.close()
        made.kill()


def test_questions_pass_through_and_the_request_is_held_until_go(played: Played) -> None:
    async def scenario() -> None:
        gate = played.open()
        played.start(
            runc=[[send(VERSION_REQUEST), RECEIVE], [send(RESTORE_REQUEST), RECEIVE]],
            criu={
                RequestType.VERSION: [send(VERSION_ANSWER), AWAIT_END],
                RequestType.RESTORE: [send(RESTORED), AWAIT_END],
            },
        )
        await gate.wait_for_request(RequestType.RESTORE)
        assert played.received("runc") == [VERSION_ANSWER]
        assert gate.criu_pid is not None and alive(gate.criu_pid)
        await until(lambda: len(played.pids()) == 2, "the stub becomes CRIU, before the go")
        assert played.pids()[1] == gate.criu_pid
        assert RESTORE_REQUEST not in played.received("criu")
        answer = await gate.go({})
        assert answer.success
        gate.close()
        assert await played.runc_ends() == 0
        assert played.received("runc")[-1] == RESTORED

    run(scenario())


def test_criu_gets_the_request_with_the_options_that_were_set(played: Played) -> None:
    options: dict[Option, OptionValue] = {
        Option.IMAGES_DIR_FD: -1,
        Option.IMAGES_DIR: "/run/images",
        Option.NETWORK_LOCK: NetworkLock.SKIP,
    }

    async def scenario() -> None:
        gate = played.open()
        played.start(
            runc=[[send(RESTORE_REQUEST), RECEIVE]],
            criu={RequestType.RESTORE: [send(RESTORED), AWAIT_END]},
        )
        await gate.wait_for_request(RequestType.RESTORE)
        await gate.go(options)
        gate.close()
        await played.all_end()

    run(scenario())
    request = played.received("criu")[0]
    assert request == with_options(RESTORE_REQUEST, options)
    inner = parse(parse(request)[1].value)  # type: ignore[arg-type]
    assert OPTS[2] in inner
    assert Field(1, 0, (1 << 64) - 1) in inner


def test_notifications_go_to_runc_and_then_to_the_hook_and_the_reply_to_criu(
    played: Played,
) -> None:
    calls: list[tuple[str, int | None, int]] = []

    async def hook(script: str, pid: int | None) -> bool:
        calls.append((script, pid, len(played.received("runc"))))
        return True

    async def scenario() -> None:
        gate = played.open()
        played.start(
            runc=[[send(RESTORE_REQUEST), *[RECEIVE, send(NOTIFIED)] * 2, RECEIVE]],
            criu={
                RequestType.RESTORE: [
                    *[send(notification("setup-namespaces")), RECEIVE],
                    *[send(notification("post-restore", 77)), RECEIVE],
                    *[send(RESTORED), AWAIT_END],
                ]
            },
        )
        await gate.wait_for_request(RequestType.RESTORE)
        await gate.go({}, hook)
        gate.close()
        await played.all_end()

    run(scenario())
    assert calls == [("setup-namespaces", None, 1), ("post-restore", 77, 2)]
    assert played.received("criu")[1:3] == [NOTIFIED, NOTIFIED]
    assert played.received("runc") == [
        notification("setup-namespaces"),
        notification("post-restore", 77),
        RESTORED,
    ]


def test_a_refusal_of_the_hook_reaches_criu_and_its_failure_is_raised(played: Played) -> None:
    async def refuse(script: str, pid: int | None) -> bool:
        return False

    failed = failure(RequestType.RESTORE) + serialize([Field(9, 2, b"no network")])

    async def scenario() -> None:
        gate = played.open()
        played.start(
            runc=[[send(RESTORE_REQUEST), RECEIVE, send(NOTIFIED), RECEIVE]],
            criu={
                RequestType.RESTORE: [
                    *[send(notification("post-restore", 5)), RECEIVE, send(failed), AWAIT_END]
                ]
            },
        )
        await gate.wait_for_request(RequestType.RESTORE)
        with pytest.raises(GateError, match="restore failed: no network"):
            await gate.go({}, refuse)
        gate.close()
        await played.all_end()

    run(scenario())
    assert played.received("criu")[1] == notify_reply(success=False)
    assert played.received("runc")[-1] == failed


def test_a_descriptor_that_comes_with_a_notification_reaches_runc_and_is_not_kept(
    played: Played,
) -> None:
    async def scenario() -> None:
        gate = played.open()
        played.start(
            runc=[[send(RESTORE_REQUEST), RECEIVE, send(NOTIFIED), RECEIVE]],
            criu={
                RequestType.RESTORE: [
                    ["send with descriptor", notification("orphan-pts-master").hex(), "a terminal"],
                    *[RECEIVE, send(RESTORED), AWAIT_END],
                ]
            },
        )
        await gate.wait_for_request(RequestType.RESTORE)
        before = descriptors()
        await gate.go({})
        assert descriptors() == before
        gate.close()
        await played.all_end()

    run(scenario())
    assert played.notes("runc", "read") == ["a terminal"]


def test_criu_has_only_standard_streams_the_talk_and_nothing_else(played: Played) -> None:
    async def scenario() -> None:
        gate = played.open()
        played.start(
            runc=[[send(RESTORE_REQUEST), RECEIVE]],
            criu={RequestType.RESTORE: [["descriptors"], send(RESTORED), AWAIT_END]},
        )
        await gate.wait_for_request(RequestType.RESTORE)
        await gate.go({})
        gate.close()
        await played.all_end()

    run(scenario())
    (links,) = played.notes("criu", "descriptors")
    assert sorted(links) == ["0", "1", "2", "3"]


def test_criu_runs_in_the_network_namespace_of_the_workload(
    played: Played, network: Network
) -> None:
    pod = network.node("pod")

    async def scenario() -> None:
        gate = played.open(netns=pod.path)
        played.start(
            runc=[[send(RESTORE_REQUEST), RECEIVE]],
            criu={RequestType.RESTORE: [["network namespace"], send(RESTORED), AWAIT_END]},
        )
        await gate.wait_for_request(RequestType.RESTORE)
        await gate.go({})
        gate.close()
        await played.all_end()

    run(scenario())
    inside = pod.call(lambda: str(Path("/proc/thread-self/ns/net").readlink()))
    assert played.notes("criu", "network namespace") == [inside]


@pytest.mark.parametrize("when", ["before the go", "before its answer", "after a notification"])
def test_criu_s_death_is_an_error(played: Played, when: str) -> None:
    steps = {
        "before the go": [AWAIT_END],
        "before its answer": [DIE],
        "after a notification": [send(notification("post-restore", 5)), DIE],
    }[when]

    async def scenario() -> None:
        gate = played.open()
        played.start(
            runc=[[send(RESTORE_REQUEST), RECEIVE, send(NOTIFIED), AWAIT_END]],
            criu={RequestType.RESTORE: steps},
        )
        await gate.wait_for_request(RequestType.RESTORE)
        assert gate.criu_pid is not None
        if when == "before the go":
            await until(lambda: bool(played.pids()), "CRIU starts")
            os.kill(gate.criu_pid, signal.SIGKILL)
            await until(lambda: not alive(gate.criu_pid or 0), "CRIU dies")
        with pytest.raises(GateError):
            await gate.go({})
        gate.close()
        await played.all_end()

    run(scenario())


def test_runc_s_death_is_an_error_and_criu_ends_with_the_gate(played: Played) -> None:
    async def scenario() -> None:
        gate = played.open()
        played.start(
            runc=[[send(RESTORE_REQUEST), DIE]],
            criu={RequestType.RESTORE: [send(notification("post-restore")), RECEIVE]},
        )
        await gate.wait_for_request(RequestType.RESTORE)
        assert await played.runc_ends() == -signal.SIGKILL
        with pytest.raises(GateError):
            await gate.go({})
        gate.close()
        await played.all_end()

    run(scenario())


def test_criu_s_death_while_it_answers_a_question_is_an_error(played: Played) -> None:
    async def scenario() -> None:
        gate = played.open()
        played.start(runc=[[send(VERSION_REQUEST), AWAIT_END]], criu={RequestType.VERSION: [DIE]})
        with pytest.raises(GateError):
            await gate.wait_for_request(RequestType.RESTORE)
        gate.close()
        await played.all_end()

    run(scenario())


def test_refusing_ends_both_and_tells_runc_that_it_failed(played: Played) -> None:
    async def scenario() -> None:
        gate = played.open()
        played.start(
            runc=[[send(RESTORE_REQUEST), RECEIVE]], criu={RequestType.RESTORE: [AWAIT_END]}
        )
        await gate.wait_for_request(RequestType.RESTORE)
        gate.refuse()
        await played.all_end()

    run(scenario())
    (answer,) = played.received("runc")
    assert (response(answer).type, response(answer).success) == (RequestType.RESTORE, False)
    assert played.received("criu") == [b""], "CRIU never sees the request"


def test_refusing_ends_a_runc_that_has_not_asked_yet(played: Played) -> None:
    async def scenario() -> None:
        gate = played.open()
        gate.refuse()
        played.start(
            runc=[[send(RESTORE_REQUEST), AWAIT_END]], criu={RequestType.RESTORE: [AWAIT_END]}
        )
        await played.all_end()

    run(scenario())


def test_a_stub_whose_gate_closes_before_it_is_let_in_starts_no_criu(played: Played) -> None:
    async def scenario() -> None:
        gate = played.open()
        played.start(
            runc=[[send(RESTORE_REQUEST), AWAIT_END]], criu={RequestType.RESTORE: [AWAIT_END]}
        )
        knocking = [gate._listener]
        await until(lambda: bool(select.select(knocking, [], [], 0)[0]), "the stub connects")
        gate.close()
        await played.all_end()

    run(scenario())
    assert played.pids() == []
    (status,) = played.notes("runc", "criu ended")
    assert status != 0


def test_closing_ends_both_and_leaves_no_descriptor_open(played: Played) -> None:
    async def scenario() -> None:
        before = descriptors()
        gate = played.open()
        played.start(
            runc=[
                [send(VERSION_REQUEST), RECEIVE],
                [send(RESTORE_REQUEST), RECEIVE, send(NOTIFIED), AWAIT_END],
            ],
            criu={
                RequestType.VERSION: [send(VERSION_ANSWER), AWAIT_END],
                RequestType.RESTORE: [send(notification("post-restore", 5)), AWAIT_END],
            },
        )
        await gate.wait_for_request(RequestType.RESTORE)
        hooked = asyncio.Event()

        async def hook(script: str, pid: int | None) -> bool:
            hooked.set()
            await asyncio.get_running_loop().create_future()
            return True

        going = asyncio.create_task(gate.go({}, hook))
        await hooked.wait()
        going.cancel()
        await asyncio.wait({going})
        gate.close()
        gate.close()  # twice is fine
        await played.all_end()
        assert descriptors() == before

    run(scenario())


def test_a_wait_that_is_cancelled_leaves_no_descriptor_open(played: Played) -> None:
    async def scenario() -> None:
        before = descriptors()
        gate = played.open()
        waiting = asyncio.create_task(gate.wait_for_request(RequestType.RESTORE))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        gate.close()
        assert descriptors() == before

    run(scenario())


def test_a_preload_library_is_for_criu_alone(tmp_path: Path) -> None:
    criu = CriuBinary(tmp_path / "criu", (4, 2, 1), tmp_path / "limits.so")
    gate = Gate(tmp_path / "gate", criu, netns=Path("/proc/self/ns/net"))
    try:
        assert gate.environment.get("LD_PRELOAD") == os.environ.get("LD_PRELOAD")
        assert str(criu.preload) in gate.environment.values()
    finally:
        gate.close()
