"""A lab's cgroups, in every hierarchy of the machine (v1, v2, or both).

runc takes an absolute ``cgroupsPath`` from the root of each hierarchy. ``/netlab/LAB`` is made
when the lab is, so that the shared parent ``/netlab`` is not empty, and so is not removed by
another lab's end, while runc is about to make something in it.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from mycoproxy.errors import MycoError
from netlab import layout, mounts

_POLL = 0.002  # seconds; a cgroup that has just lost its last task can be busy for a moment


class Cgroup(NamedTuple):
    """A directory in a hierarchy; ``label`` is what it is called in messages."""

    path: Path
    label: str


def hierarchies() -> list[mounts.Mount]:
    """The machine's cgroup mounts (whole hierarchies, each once)."""
    return [
        mount
        for mount in mounts.mounted()
        if mount.kind in ("cgroup", "cgroup2")
        and mount.root == "/"
        and mount.target.is_relative_to("/sys/fs/cgroup")
    ]


def make(lab: str) -> None:
    """Make the lab's cgroup in every hierarchy that takes one."""
    with shared_directories():
        for hierarchy in hierarchies():
            path = hierarchy.target / layout.CGROUP / lab
            # A hierarchy that nobody may make cgroups in is one that runc does not use either.
            with suppress(PermissionError):
                path.mkdir(parents=True, exist_ok=True)


def of_lab(lab: str) -> list[Cgroup]:
    """The lab's cgroups, children before their parents."""
    found = []
    for hierarchy in hierarchies():
        top = hierarchy.target / layout.CGROUP / lab
        for directory, _, _ in os.walk(top, topdown=False):
            path = Path(directory)
            name = hierarchy.target.name if hierarchy.kind == "cgroup" else "cgroup2"
            found.append(Cgroup(path, f"{name}:/{path.relative_to(hierarchy.target)}"))
    return found


def processes(lab: str) -> set[int]:
    """The processes in the lab's cgroups."""
    pids: set[int] = set()
    for cgroup in of_lab(lab):
        # ENODEV: removed between the walk and here. EOPNOTSUPP: a threaded v2 cgroup; its
        # processes are listed by the cgroup above it.
        with suppress(OSError):
            pids.update(map(int, (cgroup.path / "cgroup.procs").read_text().split()))
    return pids


def thaw(lab: str) -> None:
    """Let frozen tasks go on: a task in a frozen v1 cgroup does not die, whatever it is sent."""
    for cgroup in reversed(of_lab(lab)):
        for control, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            with suppress(OSError):
                if (cgroup.path / control).exists():
                    (cgroup.path / control).write_text(word)


def remove(lab: str, *, deadline: float) -> None:
    """Remove the lab's cgroups. ``deadline`` is in ``time.monotonic`` seconds.

    Raises ``MycoError`` if one is still busy then.
    """
    for cgroup in of_lab(lab):
        remove_one(cgroup.path, deadline=deadline)
    with exclusive_directories() as alone:
        if alone:
            for hierarchy in hierarchies():
                with suppress(OSError):
                    (hierarchy.target / layout.CGROUP).rmdir()


def remove_pod(cgroup: str, *, deadline: float) -> None:
    """Remove what is left of a pod's cgroup (a path from the root of each hierarchy).

    runc removes the cgroups that it made; CRIU may have made one in a hierarchy that runc does not
    use. Raises ``MycoError`` if one is still busy at ``deadline``.
    """
    for hierarchy in hierarchies():
        top = hierarchy.target / cgroup.lstrip("/")
        for directory, _, _ in os.walk(top, topdown=False):
            remove_one(Path(directory), deadline=deadline)


def remove_one(path: Path, *, deadline: float) -> None:
    """Remove one empty cgroup; none is fine."""
    while True:
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise MycoError(f"cannot remove cgroup {path}: {error}") from error
            time.sleep(_POLL)
        else:
            return


@contextmanager
def shared_directories() -> Iterator[None]:
    """While something is made in a directory that labs share: nobody removes that directory."""
    layout.RUN.mkdir(mode=0o755, exist_ok=True)
    with layout.SHARED_LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


@contextmanager
def exclusive_directories() -> Iterator[bool]:
    """Whether nobody makes anything in the shared directories, and nobody will meanwhile."""
    layout.RUN.mkdir(mode=0o755, exist_ok=True)
    with layout.SHARED_LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
