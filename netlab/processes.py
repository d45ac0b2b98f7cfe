"""The processes of a lab, found from the outside, and their end.

A process is a lab's if it lives in one of the lab's network namespaces or cgroups, or if it is a
runc or CRIU at work in the lab's runtime directory (those run in the machine's own namespace).
A process that only has *threads* in a lab's namespaces is whoever operates the lab, and is left
alone; so are the calling process and its ancestors, which may be a shell inside the lab.
"""

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

from mycoproxy.errors import MycoError
from netlab import cgroups, netns
from netlab.layout import Layout

_TOOLS = ("criu", "runc")


def of_lab(layout: Layout) -> dict[int, str]:
    """Process id and name of every process of the lab."""
    spaces = _namespace_numbers(layout.lab)
    controlled = cgroups.processes(layout.lab)
    spared = _self_and_ancestors()
    found = {}
    for pid in _all():
        if pid in spared:
            continue
        if pid in controlled or _in_namespace(pid, spaces) or _is_tool_of(pid, layout.run):
            name = _name(pid)
            if name is not None:
                found[pid] = name
    return found


def kill(layout: Layout, *, deadline: float) -> None:
    """Kill all of them and wait for their end. ``deadline`` is in ``time.monotonic`` seconds.

    Raises ``MycoError`` naming those that are left.
    """
    while left := of_lab(layout):
        with ExitStack() as handles:
            waiting = {}
            for pid in left:
                with suppress(ProcessLookupError):
                    handle = os.pidfd_open(pid)
                    handles.callback(os.close, handle)
                    waiting[handle] = pid
            # Now that the numbers cannot be anybody else's: are they still the lab's?
            confirmed = of_lab(layout)
            for handle, pid in list(waiting.items()):
                if pid not in confirmed:
                    del waiting[handle]
                    continue
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            cgroups.thaw(layout.lab)
            _wait(list(waiting), deadline)
        if time.monotonic() > deadline and (left := of_lab(layout)):
            names = ", ".join(f"{pid} {name}" for pid, name in left.items())
            raise MycoError(f"processes of lab {layout.lab} do not die: {names}")


def _wait(handles: list[int], deadline: float) -> None:
    """Until every process behind a pidfd has ended (a zombie has), or the deadline."""
    with closing(select.epoll()) as ends:
        for handle in handles:
            ends.register(handle, select.EPOLLIN)
        left = len(handles)
        while left and (rest := deadline - time.monotonic()) > 0:
            for handle, _ in ends.poll(rest):
                ends.unregister(handle)
                left -= 1


def _all() -> Iterator[int]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            yield int(entry.name)


def _namespace_numbers(lab: str) -> set[tuple[int, int]]:
    """(device, inode) of the lab's namespaces; a name that nothing is mounted on has none."""
    device = Path("/proc/self/ns/net").stat().st_dev
    numbers = set()
    for path in netns.of_lab(lab):
        with suppress(FileNotFoundError):
            status = path.stat()
            if status.st_dev == device:
                numbers.add((status.st_dev, status.st_ino))
    return numbers


def _in_namespace(pid: int, numbers: set[tuple[int, int]]) -> bool:
    if not numbers:
        return False
    try:
        status = Path(f"/proc/{pid}/ns/net").stat()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    return (status.st_dev, status.st_ino) in numbers


def _is_tool_of(pid: int, directory: Path) -> bool:
    name = _name(pid)
    if name is None or not name.startswith(_TOOLS):
        return False
    prefix = os.fsencode(directory) + b"/"
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        links = [Path(f"/proc/{pid}/cwd"), *Path(f"/proc/{pid}/fd").iterdir()]
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    if any(prefix in word + b"/" for word in command.split(b"\0")):
        return True
    for link in links:
        with suppress(OSError):
            if link.readlink().is_relative_to(directory):
                return True
    return False


def _name(pid: int) -> str | None:
    """The command's name; ``None`` for a zombie or no process."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    before, _, after = status.rpartition(")")
    return None if after.split()[0] in "ZX" else before.partition("(")[2]


def _self_and_ancestors() -> set[int]:
    line = set()
    pid = os.getpid()
    while pid > 0:
        line.add(pid)
        try:
            status = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            break
        pid = int(status.rpartition(")")[2].split()[1])
    return line
