"""The TCP sockets that a container's tasks hold, each once, taken into this process.

A socket is known by its inode: however many tasks and descriptors refer to it, it is duplicated
once (``pidfd_getfd``) and carries all its names. The tasks should be frozen or stopped by ptrace;
duplicating works on both.

Not found: sockets that no descriptor refers to, such as those in an accept queue (see
``Listener.accept_queue``), in flight in a unix socket's SCM_RIGHTS, or registered with io_uring.
"""

import errno
import os
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.errors import RefusedError
from mycoproxy.kernel import pidfd_getfd
from mycoproxy.sockets.names import DescriptorName
from mycoproxy.sockets.tasks import Task

# Numbers of this module's own, so that sockets and tcp do not depend on each other.
_TCP_INFO = 11  # include/uapi/linux/tcp.h
_UNACKED = slice(24, 28)  # tcpi_unacked: of a listener, the length of its accept queue
_TCP_CLOSE = 7  # include/net/tcp_states.h
_TCP_LISTEN = 10
_MPTCP = 262  # IPPROTO_MPTCP, include/uapi/linux/in.h
_STREAM_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_LINK_PREFIX = "socket:["


@dataclass(frozen=True, slots=True)
class HeldSocket:
    """A TCP socket of the container. ``sock`` is our duplicate; ``state`` is tcpi_state.

    ``connection`` is None for a socket that is closed (all that CRIU restores with ``tcp-close``
    are).
    """

    inode: int
    names: tuple[DescriptorName, ...]
    sock: socket.socket
    state: int
    connection: FourTuple | None


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket. Connections wait in its accept queue, and belong to no task yet."""

    inode: int
    names: tuple[DescriptorName, ...]
    sock: socket.socket
    local: Endpoint

    @property
    def accept_queue(self) -> int:
        """How many connections wait to be accepted, now."""
        return _queue_length(self.sock)


@dataclass(slots=True)
class HeldSockets:
    """What the tasks hold. A context manager: it closes our duplicates.

    ``connections``: in any state but CLOSE and LISTEN. ``closed``: not connected, or what CRIU
    restored of a connection.
    """

    connections: list[HeldSocket] = field(default_factory=list)
    listeners: list[Listener] = field(default_factory=list)
    closed: list[HeldSocket] = field(default_factory=list)

    def close(self) -> None:
        """Close our duplicates; the tasks' descriptors stay."""
        for held in (*self.connections, *self.closed):
            held.sock.close()
        for listener in self.listeners:
            listener.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def take(tasks: Iterable[Task]) -> HeldSockets:
    """Duplicate every TCP socket that ``tasks`` hold.

    Raises ``RefusedError`` for a socket that this project cannot move (MPTCP), by name, and
    ``OSError`` if a descriptor cannot be taken (EPERM: PTRACE_MODE_ATTACH is needed).
    """
    names: dict[int, list[DescriptorName]] = {}
    where: dict[int, tuple[int, int]] = {}
    for task in tasks:
        for fd, inode in socket_descriptors(task.pid):
            names.setdefault(inode, []).append(DescriptorName(task.inner_pid, fd))
            where.setdefault(inode, (task.pid, fd))
    taken = HeldSockets()
    pidfds: dict[int, int] = {}
    try:
        for inode, (pid, fd) in where.items():
            if pid not in pidfds:
                pidfds[pid] = os.pidfd_open(pid)
            duplicate = _duplicate(pidfds[pid], fd, inode)
            if duplicate is not None:
                _sort(taken, duplicate, inode, tuple(sorted(names[inode])))
    except BaseException:
        taken.close()
        raise
    finally:
        for pidfd in pidfds.values():
            os.close(pidfd)
    return taken


def _duplicate(pidfd: int, fd: int, inode: int) -> socket.socket | None:
    """A duplicate of a descriptor, if that still is the socket that was seen.

    The tasks stand, but CRIU's parasite has sockets of its own in them for a moment.
    """
    try:
        sock = socket.socket(fileno=pidfd_getfd(pidfd, fd))
    except OSError as error:
        if error.errno in (errno.EBADF, errno.ENOTSOCK):
            return None
        raise
    if os.fstat(sock.fileno()).st_ino != inode:
        sock.close()
        return None
    return sock


def socket_descriptors(pid: int) -> Iterable[tuple[int, int]]:
    """(descriptor, inode) of each socket a process holds; none if it has ended."""
    directory = f"/proc/{pid}/fd"
    try:
        descriptors = os.listdir(directory)  # noqa: PTH208 - thousands of descriptors
    except (FileNotFoundError, ProcessLookupError):
        return
    for descriptor in descriptors:
        try:
            target = os.readlink(f"{directory}/{descriptor}")  # noqa: PTH115
        except FileNotFoundError:
            continue
        if target.startswith(_LINK_PREFIX):
            yield int(descriptor), int(target[len(_LINK_PREFIX) : -1])


def _sort(
    taken: HeldSockets, sock: socket.socket, inode: int, names: tuple[DescriptorName, ...]
) -> None:
    """Put a duplicate where it belongs, or close it."""
    if sock.family not in _STREAM_FAMILIES or sock.type != socket.SOCK_STREAM:
        sock.close()
        return
    if sock.proto != socket.IPPROTO_TCP:
        kind = "MPTCP" if sock.proto == _MPTCP else f"protocol {sock.proto}"
        sock.close()
        raise RefusedError(f"{names[0]} is a {kind} socket; only plain TCP can be moved")
    state = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)[0]
    if state == _TCP_LISTEN:
        taken.listeners.append(Listener(inode, names, sock, Endpoint(*sock.getsockname()[:2])))
    elif state == _TCP_CLOSE:
        taken.closed.append(HeldSocket(inode, names, sock, state, None))
    else:
        taken.connections.append(HeldSocket(inode, names, sock, state, _connection(sock)))


def _connection(sock: socket.socket) -> FourTuple | None:
    try:
        remote = sock.getpeername()
    except OSError:  # SYN_SENT has none yet, and a reset may have come just now
        return None
    return FourTuple(Endpoint(*sock.getsockname()[:2]), Endpoint(*remote[:2]))


def _queue_length(sock: socket.socket) -> int:
    info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _UNACKED.stop)
    return int.from_bytes(info[_UNACKED], sys.byteorder)
