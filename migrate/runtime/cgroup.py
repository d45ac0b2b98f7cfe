"""A container's cgroup: freeze it, thaw it, see and kill what is in it. v1 or v2, no child process.

The kernel's own documentation: admin-guide/cgroup-v1/freezer-subsystem.rst and
admin-guide/cgroup-v2.rst (``cgroup.freeze``).
"""

import errno
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mycoproxy.errors import MycoError

_MOUNT = Path("/sys/fs/cgroup")
_POLL = 0.001  # seconds


class CgroupError(MycoError):
    """A cgroup did not do as it was told."""


class Cgroup:
    """The cgroup that task ``pid`` is in now.

    Raises ``CgroupError`` if there is none.
    """

    def __init__(self, pid: int) -> None:
        try:
            v1, path = freezer_path(Path(f"/proc/{pid}/cgroup").read_text())
        except OSError as error:
            raise CgroupError(f"task {pid} has no cgroup: {error.strerror}") from error
        if path == "/":
            raise CgroupError(f"task {pid} is in the root cgroup, which cannot be frozen")
        root = _MOUNT / "freezer" if v1 else _v2_mount()
        self.directory = root / path.lstrip("/")
        self._v1 = v1
        self._control = self.directory / ("freezer.state" if v1 else "cgroup.freeze")
        self._words = ("FROZEN\n", "THAWED\n") if v1 else ("1", "0")
        if not self._control.exists():
            raise CgroupError(f"no freezer at {self._control}")

    def freeze(self, *, timeout: float = 5.0) -> None:
        """Stop every task. Returns when the last one stands; thaws again if one does not.

        A task in an uninterruptible sleep delays it. Raises ``CgroupError`` after ``timeout``
        seconds.
        """
        deadline = time.monotonic() + timeout
        self._control.write_text(self._words[0])
        while not self.frozen():
            if time.monotonic() > deadline:
                self.thaw()
                raise CgroupError(f"{self.directory} did not freeze within {timeout:g} s")
            if self._v1:  # reading updates the v1 state, writing retries what was missed
                self._control.write_text(self._words[0])
            os.sched_yield()

    def thaw(self) -> None:
        """Let the tasks go on. No cgroup any more is fine: then there are no tasks either."""
        with _gone():
            self._control.write_text(self._words[1])

    def frozen(self) -> bool:
        """Whether every task of the cgroup stands."""
        if self._v1:
            return self._control.read_text() == self._words[0]
        return "frozen 1" in (self.directory / "cgroup.events").read_text()

    def pids(self) -> list[int]:
        """The processes in the cgroup and below it, zombies included."""
        found: list[int] = []
        for directory, _, _ in os.walk(self.directory):
            with _gone():
                found += map(int, Path(directory, "cgroup.procs").read_text().split())
        return found

    def kill(self, *, timeout: float = 5.0) -> None:
        """SIGKILL everything in the cgroup; returns once nothing is left in it.

        A frozen task dies when it is thawed, without running an instruction of its own. Raises
        ``CgroupError`` if something is still there after ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while pids := self._alive():
            if time.monotonic() > deadline:
                raise CgroupError(f"tasks {pids} in {self.directory} cannot be killed")
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.thaw()
            time.sleep(_POLL)

    def _alive(self) -> list[int]:
        return [pid for pid in self.pids() if _lives(pid)]


def freezer_path(cgroups: str) -> tuple[bool, str]:
    """From the text of /proc/PID/cgroup: whether it is the v1 freezer, and the path in it."""
    unified = None
    for line in cgroups.splitlines():
        _, controllers, path = line.split(":", 2)
        if "freezer" in controllers.split(","):
            return True, path
        if controllers == "":
            unified = path
    if unified is None:
        raise CgroupError("neither a v1 freezer nor a v2 hierarchy in /proc/PID/cgroup")
    return False, unified


@contextmanager
def _gone() -> Iterator[None]:
    """No cgroup any more is fine. While it is being removed its open files say ENODEV."""
    try:
        yield
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


def _lives(pid: int) -> bool:
    """Whether any thread of the process can still run (proc_pid_stat(5), the state letter)."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return False
    for thread in threads:
        try:
            stat = (thread / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if stat.rpartition(")")[2].split()[0] not in ("Z", "X"):
            return True
    return False


def _v2_mount() -> Path:
    unified = _MOUNT / "unified"
    return unified if (unified / "cgroup.procs").exists() else _MOUNT
