"""One agent at a time: a lock on a file, which the kernel takes back when the process ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Self

from mycoproxy.errors import RefusedError


class Lock:
    """An flock(2) on ``path``, from ``take`` to ``release`` or the process' end.

    The file stays: to remove it would let two processes lock two files of one name.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    def take(cls, path: Path, *, key: str) -> Self:
        """Lock, or raise ``RefusedError`` that names the holder. ``key``: what to set instead.

        Makes the directory if it is not there, such that others may look into it.
        """
        try:
            make_directory(path.parent)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise RefusedError(f"{key}: cannot lock {path}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise RefusedError(
                f"another agent is running: process {holder} holds {path}; stop it, or set {key}"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return cls(path, fd)

    def release(self) -> None:
        """Let others have it."""
        os.close(self._fd)


def make_directory(path: Path) -> None:
    """Make a directory with mode 0755, whatever the umask, unless there is one. ``OSError``."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return
    path.chmod(0o755)
