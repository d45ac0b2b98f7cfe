"""The control socket's file, and who is at the other end of a connection to it."""

from __future__ import annotations

import grp
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mycoproxy.agent.lock import Lock
from mycoproxy.errors import MycoError, RefusedError

SO_PEERGROUPS: Final = 59  # asm-generic/socket.h
_UCRED: Final = struct.Struct("iII")  # struct ucred, linux/socket.h: pid, uid, gid
_MOST_GROUPS: Final = 65536  # NGROUPS_MAX, linux/limits.h


class ControlSocket:
    """A unix socket that is bound and listens, from ``open`` to ``close``."""

    def __init__(self, path: Path, lock: Lock, bound: socket.socket) -> None:
        self.path = path
        self.socket = bound
        self._lock = lock
        self._inode = path.stat().st_ino

    @classmethod
    def open(cls, path: Path, *, mode: int, group: int | None) -> ControlSocket:
        """Make it with these permissions; at no time has it others.

        What a dead agent left is replaced. Raises ``RefusedError`` if a live one has it, or if
        there is something else under this name.
        """
        lock = Lock.take(path.with_name(path.name + ".lock"), key="control.socket")
        # Bound under another name and then renamed: nobody meets a socket that refuses.
        new = path.with_name(f"{path.name}.new")
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            _check_place(path)
            new.unlink(missing_ok=True)
            bound.bind(str(new))
            if group is not None:
                os.chown(new, -1, group)
            new.chmod(mode)
            bound.listen(64)
            new.rename(path)
            return cls(path, lock, bound)
        except BaseException as error:
            bound.close()
            lock.release()
            if isinstance(error, OSError):
                raise MycoError(
                    f"control.socket: cannot make {path}: {error.strerror or error}"
                ) from error
            raise

    def close(self) -> None:
        """Remove the file, unless it is another's by now."""
        self.socket.close()
        try:
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        except FileNotFoundError:
            pass
        self._lock.release()


def _check_place(path: Path) -> None:
    """That nothing stands there but, at most, a socket that nobody listens on."""
    if not path.exists():
        return
    if not path.is_socket():
        raise RefusedError(f"control.socket: {path} is there and no socket; move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return
        except (BlockingIOError, TimeoutError):
            pass  # its backlog is full: somebody has it
    raise RefusedError(
        f"another agent is running: it answers at {path}; stop it, or set control.socket"
    )


def group_id(name: str | None) -> int | None:
    """The number of the group that is configured. ``RefusedError`` if there is none."""
    if name is None:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise RefusedError(
            f"control.group: there is no group {name!r}; make it: groupadd --system {name}"
        ) from None


@dataclass(frozen=True)
class Caller:
    """Who connected, as the kernel says it. Of the moment of connect(2)."""

    pid: int
    uid: int
    groups: frozenset[int]

    @classmethod
    def of(cls, connection: int) -> Caller:
        """The other end of a unix socket, by its descriptor. unix(7), SO_PEERCRED."""
        with socket.socket(fileno=os.dup(connection)) as sock:
            pid, uid, gid = _UCRED.unpack(
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            )
            raw = b""
            for room in (256, _MOST_GROUPS):
                try:
                    raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, room * 4)
                    break
                except OSError:
                    continue  # ERANGE: more groups than room
        return cls(pid, uid, frozenset(struct.unpack(f"={len(raw) // 4}I", raw)) | {gid})

    def may_ask(self, group: int | None) -> bool:
        """Root, the agent's own user, and the group that was configured."""
        return self.uid in (0, os.geteuid()) or (group is not None and group in self.groups)
