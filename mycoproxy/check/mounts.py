"""Which file systems are mounted where (/proc/self/mountinfo, proc_pid_mountinfo(5))."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mount:
    """One mount: where, the file system's type, and its super block's options."""

    point: Path
    kind: str
    options: frozenset[str]


def parse_mounts(mountinfo: str) -> list[Mount]:
    """The mounts in the order they were made; a later one hides an earlier one beneath it."""
    mounts = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _source, options = after.split(" ", 2)
        point = before.split(" ")[4].encode("latin-1").decode("unicode_escape")
        mounts.append(Mount(Path(point), kind, frozenset(options.split(","))))
    return mounts


def read_mounts() -> list[Mount]:
    """The mounts of this process's mount namespace."""
    return parse_mounts(Path("/proc/self/mountinfo").read_text(encoding="latin-1"))


def mount_of(path: Path, mounts: list[Mount]) -> Mount | None:
    """The mount that ``path`` is on: the deepest one above it, the latest if there are several."""
    above = [mount for mount in mounts if mount.point in (path, *path.parents)]
    return max(reversed(above), key=lambda mount: len(mount.point.parts), default=None)
