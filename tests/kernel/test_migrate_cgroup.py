"""Freezing, thawing and killing real tasks in a cgroup of our own, in the machine's hierarchy."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from migrate.runtime.cgroup import Cgroup, CgroupError, freezer_path

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

DEADLINE = 10.0

#: Counts in shared memory of its own, so that the test sees whether it runs.
COUNTING = """
import mmap, os, sys
with open(sys.argv[1], "r+b") as file:
    counter = mmap.mmap(file.fileno(), 8)
counter[0:1] = b"\\x01"
n = 1
while True:
    n += 1
    counter[0:8] = n.to_bytes(8, "little")
"""

#: The main thread ends; another one goes on. The process then looks like a zombie.
HEADLESS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
ctypes.CDLL(None).pthread_exit(None)
"""


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE:g} s: {what}"
        time.sleep(0.002)


def hierarchy() -> Path:
    """The freezer that tasks of this machine are in: v1 where it is mounted, else v2."""
    v1 = Path("/sys/fs/cgroup/freezer")
    for root in (v1, Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")):
        if (root / "cgroup.procs").exists():
            return root
    pytest.skip("no cgroup hierarchy mounted under /sys/fs/cgroup")


class Made:
    """A cgroup directory of this test's own, and the processes in it."""

    def __init__(self, directory: Path, tmp_path: Path) -> None:
        self.directory = directory
        self._tmp_path = tmp_path
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, program: str, *arguments: str, below: str = "") -> subprocess.Popen[bytes]:
        """Start a Python program in the cgroup, or in one below it."""
        directory = self.directory / below
        directory.mkdir(exist_ok=True)
        process = subprocess.Popen(
            [
                *["/bin/sh", "-c", 'echo $$ > "$1"; shift; exec "$@"', "sh"],
                *[str(directory / "cgroup.procs"), sys.executable, "-ISE", "-c"],
                *[program, *arguments],
            ]
        )
        self.processes.append(process)
        return process

    def start_counting(self, below: str = "") -> tuple[subprocess.Popen[bytes], Callable[[], int]]:
        """A task that runs all the time, and how far it has come."""
        file = self._tmp_path / f"counter-{len(self.processes)}"
        file.write_bytes(bytes(8))
        process = self.start(COUNTING, str(file), below=below)
        until(lambda: any(file.read_bytes()), "the counting task starts")
        return process, lambda: int.from_bytes(file.read_bytes(), "little")

    def remove(self) -> None:
        for process in self.processes:
            process.kill()
        for control, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            for path in self.directory.rglob(control):
                path.write_text(word)
        for process in self.processes:
            process.wait(DEADLINE)
        if self.directory.exists():
            for directory, _, _ in os.walk(self.directory, topdown=False):
                until(lambda path=Path(directory): removed(path), f"{directory} is empty")  # type: ignore[misc]


def removed(directory: Path) -> bool:
    """A cgroup that has just lost its last task can be busy for a moment."""
    with suppress(OSError):
        directory.rmdir()
    return not directory.exists()


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    directory = hierarchy() / f"mycoproxy-test-cgroup-{os.getpid()}"
    directory.mkdir()
    cgroup = Made(directory, tmp_path)
    try:
        yield cgroup
    finally:
        cgroup.remove()
        assert not directory.exists()


def stands(counter: Callable[[], int]) -> bool:
    """Whether nothing is counted while there is time for it."""
    before = counter()
    time.sleep(0.03)
    return counter() == before


def test_a_task_s_cgroup_is_found(made: Made) -> None:
    process, _ = made.start_counting()
    cgroup = Cgroup(process.pid)
    assert cgroup.directory == made.directory
    assert cgroup.pids() == [process.pid]


def test_frozen_tasks_stand_and_go_on_when_thawed(made: Made) -> None:
    process, counter = made.start_counting()
    _, other = made.start_counting(below="inner")
    cgroup = Cgroup(process.pid)
    assert not cgroup.frozen()
    cgroup.freeze(timeout=DEADLINE)
    assert cgroup.frozen()
    assert stands(counter) and stands(other)
    stood = counter()
    cgroup.thaw()
    assert not cgroup.frozen()
    until(lambda: counter() > stood, "the task goes on")


def test_freezing_and_thawing_twice_is_fine(made: Made) -> None:
    process, counter = made.start_counting()
    cgroup = Cgroup(process.pid)
    cgroup.freeze(timeout=DEADLINE)
    cgroup.freeze(timeout=DEADLINE)
    cgroup.thaw()
    cgroup.thaw()
    before = counter()
    until(lambda: counter() > before, "the task goes on")


def test_an_empty_cgroup_freezes(made: Made) -> None:
    process, _ = made.start_counting()
    cgroup = Cgroup(process.pid)
    process.kill()
    process.wait(DEADLINE)
    cgroup.freeze(timeout=DEADLINE)
    cgroup.thaw()


def test_a_frozen_task_s_descriptors_and_memory_can_still_be_reached(made: Made) -> None:
    process, _ = made.start_counting()
    cgroup = Cgroup(process.pid)
    cgroup.freeze(timeout=DEADLINE)
    assert Path(f"/proc/{process.pid}/maps").read_text()
    assert os.readlink(f"/proc/{process.pid}/fd/2")  # noqa: PTH115
    cgroup.thaw()


@pytest.mark.parametrize("frozen", [False, True], ids=["running", "frozen"])
def test_kill_ends_every_task_in_and_below_the_cgroup(made: Made, frozen: bool) -> None:
    processes = [made.start_counting()[0], made.start_counting()[0]]
    processes.append(made.start_counting(below="inner")[0])
    cgroup = Cgroup(processes[0].pid)
    if frozen:
        cgroup.freeze(timeout=DEADLINE)
    cgroup.kill(timeout=DEADLINE)
    assert [process.wait(DEADLINE) for process in processes] == [-signal.SIGKILL] * 3
    assert cgroup.pids() == []


def test_a_frozen_task_that_is_killed_runs_no_instruction_more(made: Made) -> None:
    process, counter = made.start_counting()
    cgroup = Cgroup(process.pid)
    cgroup.freeze(timeout=DEADLINE)
    stood = counter()
    cgroup.kill(timeout=DEADLINE)
    process.wait(DEADLINE)
    assert counter() == stood


def test_a_stopped_task_is_killed_too(made: Made) -> None:
    process, _ = made.start_counting()
    process.send_signal(signal.SIGSTOP)
    Cgroup(process.pid).kill(timeout=DEADLINE)
    assert process.wait(DEADLINE) == -signal.SIGKILL


def test_kill_of_an_empty_cgroup_returns(made: Made) -> None:
    process, _ = made.start_counting()
    cgroup = Cgroup(process.pid)
    cgroup.kill(timeout=DEADLINE)
    cgroup.kill(timeout=DEADLINE)


def test_a_task_whose_first_thread_has_ended_is_alive_and_is_killed(made: Made) -> None:
    cgroup = Cgroup(made.start_counting()[0].pid)
    process = made.start(HEADLESS)
    stat = Path(f"/proc/{process.pid}/stat")
    until(
        lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z", "the first thread has ended"
    )
    assert process.poll() is None, "the other thread goes on"
    cgroup.kill(timeout=DEADLINE)
    assert process.wait(DEADLINE) == -signal.SIGKILL


def test_a_cgroup_that_is_gone_is_thawed_empty_and_killed_already(made: Made) -> None:
    process, _ = made.start_counting()
    cgroup = Cgroup(process.pid)
    process.kill()
    process.wait(DEADLINE)
    until(lambda: removed(made.directory), "the cgroup is removed")
    assert cgroup.pids() == []
    cgroup.thaw()
    cgroup.kill(timeout=DEADLINE)


def test_a_task_that_is_gone_has_no_cgroup() -> None:
    process = subprocess.Popen(["/bin/true"])
    process.wait(DEADLINE)
    with pytest.raises(CgroupError, match=f"task {process.pid} has no cgroup"):
        Cgroup(process.pid)


def test_the_root_cgroup_is_refused() -> None:
    _, path = freezer_path(Path("/proc/self/cgroup").read_text())
    if path != "/":
        pytest.skip(f"this process is in the cgroup {path}, not in the root")
    with pytest.raises(CgroupError, match="root cgroup"):
        Cgroup(os.getpid())
