"""This mount namespace's mounts, from /proc/self/mountinfo (proc_pid_mountinfo(5))."""

import errno
import re
from pathlib import Path
from typing import NamedTuple

from netlab import syscalls


class Mount(NamedTuple):
    """One mount: where it is, the file system's type, its options (the superblock's)."""

    target: Path
    kind: str
    options: frozenset[str]
    root: str


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def parse(mountinfo: str) -> list[Mount]:
    """The mounts of a mountinfo file's text, in its order (a later one may cover an earlier)."""
    mounts = []
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        separator = fields.index("-", 6)
        mounts.append(
            Mount(
                target=Path(_unescaped(fields[4])),
                kind=fields[separator + 1],
                options=frozenset(fields[separator + 3].split(",")),
                root=_unescaped(fields[3]),
            )
        )
    return mounts


def mounted() -> list[Mount]:
    """Every mount there is now."""
    return parse(Path("/proc/self/mountinfo").read_text())


def under(directory: Path) -> list[Path]:
    """Mount points at or below ``directory``, the innermost (last mounted) first."""
    return [mount.target for mount in reversed(mounted()) if mount.target.is_relative_to(directory)]


def detach(target: Path) -> None:
    """Unmount, at once for everyone who looks and in fact when the last user lets go.

    A mount that is not there any more is fine.
    """
    try:
        syscalls.umount(target, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
