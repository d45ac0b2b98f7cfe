"""mount(2), umount2(2) and unshare(2), which Python 3.11 lacks.

Each function raises ``OSError`` with the kernel's errno and the path.
"""

import ctypes
import os
from pathlib import Path

from mycoproxy.kernel import CLONE_NEWNET

_libc = ctypes.CDLL(None, use_errno=True)

MS_NOSUID = 2  # linux/mount.h
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 4096
MS_REC = 16384
MS_SHARED = 1 << 20

MNT_DETACH = 2  # linux/fs.h
UMOUNT_NOFOLLOW = 8


def _check(result: int, path: object = None) -> None:
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), None if path is None else str(path))


def unshare_network() -> None:
    """Move the calling *thread* into a new, empty network namespace."""
    _check(_libc.unshare(CLONE_NEWNET))


def mount(source: str, target: Path, kind: str = "none", flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode(),
        ctypes.c_ulong(flags),
        options.encode() or None,
    )
    _check(result, target)


def umount(target: Path, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), flags), target)
