"""The tasks of a container: those of its PID namespace, and of namespaces below it.

Not by cgroup: CRIU itself, or whatever froze the container, may sit in the same cgroup. Not by
descent either: what was started by ``runc exec`` is no child of the container's init.

A task is a process (thread group). A *thread* that unshared its file table is not seen; such a
table cannot be read through the thread group's pidfd before Linux 6.9 (PIDFD_THREAD).
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path

from mycoproxy.errors import RefusedError

_PROC = Path("/proc")
_NS_GET_PARENT = 0xB702  # include/uapi/linux/nsfs.h


@dataclass(frozen=True, slots=True)
class Task:
    """A process. ``pid`` is the host's view, ``inner_pid`` the container's."""

    pid: int
    inner_pid: int


def tasks_of(init_pid: int, among: Iterable[int] | None = None) -> tuple[Task, ...]:
    """All tasks of the PID namespace of ``init_pid`` (host view), init first.

    A task in a nested PID namespace counts, by its pid in the container's namespace. Processes
    that end meanwhile are left out, zombies too (they hold nothing); stop or freeze the container
    first for an answer that stays true.

    Looking through the whole host takes milliseconds. ``among`` (host pids: those of the
    container's cgroup, say) is where to look instead, if all of its tasks are known to be there.
    Raises ``RefusedError`` if there is no such process.
    """
    try:
        namespace = _namespace(init_pid)
        depth = len(_pids(init_pid))
    except (FileNotFoundError, ProcessLookupError):
        raise RefusedError(f"no process {init_pid} (the container's init) on this host") from None
    found = []
    for pid in _all_processes() if among is None else among:
        try:
            inside = _namespace(pid) == namespace or _is_below(pid, namespace, depth)
            pids = _pids(pid) if inside else ()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has ended; or we may not look into it, so it is nobody's we could move
        if len(pids) >= depth:
            found.append(Task(pid, pids[depth - 1]))
    return tuple(sorted(found, key=lambda task: (task.pid != init_pid, task.inner_pid)))


def _all_processes() -> Iterator[int]:
    for entry in os.scandir(_PROC):
        if entry.name.isdigit():
            yield int(entry.name)


def _namespace(pid: int) -> int:
    """The inode of the PID namespace a process is in."""
    return os.stat(f"/proc/{pid}/ns/pid").st_ino  # noqa: PTH116 - several times faster


def _pids(pid: int) -> tuple[int, ...]:
    """A process's pids from the host's view inwards (``NSpid``, proc_pid_status(5))."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return tuple(int(number) for number in line.split()[1:])
    raise RefusedError("this kernel shows no NSpid in /proc/PID/status (CONFIG_PID_NS needed)")


def _is_below(pid: int, ancestor: int, depth: int) -> bool:
    """Is the process in a PID namespace nested in ``ancestor``?"""
    nesting = len(_pids(pid)) - depth
    if nesting <= 0:
        return False
    descriptor = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for _ in range(nesting):
            parent = ioctl(descriptor, _NS_GET_PARENT)
            os.close(descriptor)
            descriptor = parent
        return os.fstat(descriptor).st_ino == ancestor
    finally:
        os.close(descriptor)
