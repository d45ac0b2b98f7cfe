"""The copy on the target: up to each stage of a restore, and dead whenever it has to be.

Programs play runc and CRIU (``play_runc_and_criu.py``), in a real cgroup, through the real gate.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from migrate.machine.copies import CopyError, RestoringCopy
from migrate.machine.places import Places
from migrate.machine.plan import MovePlan
from migrate.runtime.cgroup import freezer_path
from migrate.runtime.criu_rpc import Field, Option, RequestType, failure, notify_reply, serialize
from migrate.runtime.gate import GateError
from mycoproxy.check.criu import CriuBinary
from mycoproxy.errors import MycoError

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

T = TypeVar("T")
Step = list[str]

DEADLINE = 10.0
PLAYER = Path(__file__).with_name("play_runc_and_criu.py")

REQUEST = serialize([Field(1, 0, RequestType.RESTORE)])
RESTORED = serialize([Field(1, 0, RequestType.RESTORE), Field(2, 0, 1)])
NOTIFIED = notify_reply(success=True)
OPTIONS = {Option.TCP_CLOSE: 1}


def told(script: str) -> list[Step]:
    """CRIU tells of a stage, and waits for the answer."""
    inner = serialize([Field(1, 2, script.encode()), Field(2, 0, 4711)])
    packet = serialize([Field(1, 0, RequestType.NOTIFY), Field(2, 0, 1), Field(5, 2, inner)])
    return [["send", packet.hex()], ["receive"]]


WHOLE = [
    *told("post-restore"),
    *told("pre-resume"),
    *told("post-resume"),
    ["send", RESTORED.hex()],
]
END: Step = ["await the end"]


class Played:
    """What a copy needs around it: a plan, a runc on PATH, a CRIU, a cgroup."""

    def __init__(self, directory: Path, cgroup: Path, patch: pytest.MonkeyPatch) -> None:
        self.cgroup = cgroup
        self._notes = directory / "notes"
        self._patch = patch
        self.criu = CriuBinary(directory / "playing-criu", (4, 2, 1), None)
        self.criu.path.write_text(f"#!{sys.executable} -ISE\n{PLAYER.read_text()}")
        self.criu.path.chmod(0o700)
        runc = directory / "bin" / "runc"
        runc.parent.mkdir()
        runc.write_text(
            '#!/bin/sh\ncase "$*" in *" delete "*) exit 0;; esac\n'
            f'echo $$ > "{cgroup}/cgroup.procs"\nexec "{sys.executable}" -ISE "{PLAYER}" runc\n'
        )
        runc.chmod(0o700)
        patch.setenv("PATH", f"{runc.parent}:{os.environ['PATH']}")
        patch.setenv("PLAY_NOTES", str(self._notes))
        for side in ("source", "target"):
            (directory / side).mkdir()
        self._directory = directory

    def copy(self, *criu: Step, runc: int = 4) -> RestoringCopy:
        """A copy whose CRIU takes these steps; its runc gets ``runc`` messages, the last an answer.

        A whole restore has four of them. After fewer, runc waits for the end of the connection.
        """
        notified = [["receive"], ["send", NOTIFIED.hex()]] * (runc - 1)
        asking = [["send", REQUEST.hex()], *notified, ["receive"], *([END] if runc < 4 else [])]
        self._patch.setenv("PLAY_RUNC", json.dumps([asking]))
        self._patch.setenv("PLAY_CRIU", json.dumps({str(int(RequestType.RESTORE)): list(criu)}))

        def side(name: str) -> dict[str, str]:
            return {
                "node": name,
                "node_netns": "/proc/self/ns/net",
                "pod_netns": "/proc/self/ns/net",
                "runc_root": str(self._directory / "root"),
                "container_id": "played",
                "bundle": str(self._directory),
                "images": str(self._directory / name),
            }

        plan = MovePlan.model_validate(
            {
                "move_id": "m-1",
                "source": side("source"),
                "target": side("target"),
                "transfer_address": "127.0.0.1",
                "addresses": {},
            }
        )
        places = Places(plan)
        places.make()
        return RestoringCopy(plan.target, places, self.criu)

    def answers(self) -> list[bytes]:
        """What CRIU has received after its request."""
        lines = [json.loads(line) for line in self._notes.read_text().splitlines()]
        received = [
            bytes.fromhex(line["value"])
            for line in lines
            if (line["role"], line["what"]) == ("criu", "received")
        ]
        return received[1:]

    def empty(self) -> bool:
        """Whether no process is left in the cgroup, zombies not counted."""
        for pid in (self.cgroup / "cgroup.procs").read_text().split():
            with suppress(FileNotFoundError, ProcessLookupError):
                if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                    return False
        return True


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    v1, _ = freezer_path(Path("/proc/self/cgroup").read_text())
    roots = [Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")]
    root = Path("/sys/fs/cgroup/freezer") if v1 else next(r for r in roots if r.is_dir())
    cgroup = root / f"mycoproxy-test-copies-{os.getpid()}"
    cgroup.mkdir()
    try:
        yield Played(tmp_path, cgroup, monkeypatch)
    finally:
        until(lambda: removed(cgroup), f"{cgroup} is empty")


def removed(cgroup: Path) -> bool:
    with suppress(OSError):
        for pid in map(int, (cgroup / "cgroup.procs").read_text().split()):
            os.kill(pid, 9)
        cgroup.rmdir()
    return not cgroup.exists()


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE:g} s: {what}"
        time.sleep(0.005)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, 4 * DEADLINE))


def test_a_restore_waits_at_each_stage_until_it_is_told_to_go_on(played: Played) -> None:
    async def scenario() -> None:
        copy = played.copy(*WHOLE)
        await copy.prepare()
        assert set(copy.pids()) and not copy.ran
        assert await copy.restore(OPTIONS) == 4711
        assert played.answers() == []
        await copy.resume()
        assert played.answers() == [NOTIFIED]
        before = time.monotonic()
        copy.let_run()
        assert copy.ran
        await copy.running()
        assert copy.resumed_at >= before
        await copy.close()

    run(scenario())
    assert played.answers() == [NOTIFIED] * 3


def test_a_copy_that_is_killed_before_the_go_is_refused_and_dead(played: Played) -> None:
    async def scenario() -> None:
        copy = played.copy(*told("post-restore"), ["send", failure(2).hex()], END, runc=2)
        await copy.prepare()
        await copy.restore(OPTIONS)
        await copy.kill(timeout=4)
        assert played.answers()[0] == notify_reply(success=False)
        assert played.empty()
        await copy.kill(timeout=4)  # twice is fine
        await copy.close()

    run(scenario())


def test_a_copy_is_killed_before_it_was_asked_for(played: Played) -> None:
    async def scenario() -> None:
        copy = played.copy(END, runc=1)
        await copy.prepare()
        await copy.kill(timeout=4)
        assert played.empty()

    run(scenario())


def test_a_copy_is_killed_between_the_go_and_its_first_instruction(played: Played) -> None:
    async def scenario() -> None:
        copy = played.copy(*told("post-restore"), *told("pre-resume"), END, runc=3)
        await copy.prepare()
        await copy.restore(OPTIONS)
        await copy.resume()
        await copy.kill(timeout=2)
        assert played.answers() == [NOTIFIED], "nothing has let the tasks run"
        assert played.empty()

    run(scenario())


def test_a_criu_that_does_not_react_is_killed(played: Played) -> None:
    async def scenario() -> None:
        copy = played.copy(["ignore everything"], runc=1)
        await copy.prepare()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await copy.restore(OPTIONS)
        await copy.kill(timeout=2)
        assert played.empty()
        await copy.kill(timeout=2)

    run(scenario())


def test_a_restore_that_is_ready_after_its_deadline_is_refused_and_killed(
    played: Played, tmp_path: Path
) -> None:
    late = tmp_path / "late"

    async def scenario() -> None:
        copy = played.copy(
            ["wait for", str(late)], *told("post-restore"), ["send", failure(2).hex()], END, runc=2
        )
        await copy.prepare()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await copy.restore(OPTIONS)
        late.touch()
        await copy.kill(timeout=8)
        assert played.answers()[0] == notify_reply(success=False)
        assert played.empty()

    run(scenario())


@pytest.mark.parametrize("stage", ["restore", "resume"])
def test_criu_s_death_is_an_error_of_the_stage_it_was_in(played: Played, stage: str) -> None:
    steps = {"restore": [["die"]], "resume": [*told("post-restore"), ["die"]]}[stage]

    async def scenario() -> None:
        copy = played.copy(*steps, runc=1 if stage == "restore" else 2)
        await copy.prepare()
        if stage == "resume":
            await copy.restore(OPTIONS)
        with pytest.raises(GateError):
            await (copy.restore(OPTIONS) if stage == "restore" else copy.resume())
        await copy.kill(timeout=2)
        assert played.empty()

    run(scenario())


def test_a_restore_that_ends_without_its_stages_is_an_error(played: Played) -> None:
    async def scenario() -> None:
        copy = played.copy(["send", RESTORED.hex()], END, runc=1)
        await copy.prepare()
        with pytest.raises(CopyError, match="ended before its time"):
            await copy.restore(OPTIONS)
        await copy.kill(timeout=2)
        assert played.empty()

    run(scenario())


def test_a_runc_that_fails_before_it_asks_is_an_error_with_its_reason(
    played: Played, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failing = tmp_path / "failing" / "runc"
    failing.parent.mkdir()
    # runc --root ROOT --log LOG --log-format json restore ...
    failing.write_text(
        '#!/bin/sh\n[ "$3" = --log ] || exit 0\n'
        'echo \'{"level":"error","msg":"container exists"}\' > "$4"\nexit 1\n'
    )
    failing.chmod(0o700)
    monkeypatch.setenv("PATH", f"{failing.parent}:{os.environ['PATH']}")

    async def scenario() -> None:
        copy = played.copy(END)
        with pytest.raises(MycoError, match="restore of played failed: container exists"):
            await copy.prepare()
        await copy.kill(timeout=2)

    run(scenario())


def test_a_preparation_that_is_cancelled_leaves_no_process_behind(played: Played) -> None:
    async def scenario() -> None:
        copy = played.copy(END, runc=1)
        preparing = asyncio.create_task(copy.prepare())
        while played.empty() and not preparing.done():
            await asyncio.sleep(0)
        preparing.cancel()
        await asyncio.wait({preparing})
        await copy.kill(timeout=8)
        until(played.empty, "runc and CRIU have ended")

    run(scenario())
