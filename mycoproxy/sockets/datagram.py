"""The UDP sockets that a container's tasks hold, and what waits in them.

They are duplicated as TCP sockets are (``held``). What arrives while the tasks stand waits in the
socket's receive queue, and is looked at there without being taken out: if the move is undone, the
tasks find it.
"""

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.kernel import pidfd_getfd
from mycoproxy.sockets.held import socket_descriptors
from mycoproxy.sockets.names import DescriptorName
from mycoproxy.sockets.tasks import Task
from mycoproxy.socktable import datagram_addresses_in_use

_SO_PEEK_OFF = 42  # include/uapi/asm-generic/socket.h
_SO_MEMINFO = 55
_SK_MEMINFO_DROPS = slice(32, 36)  # include/uapi/linux/sock_diag.h: the ninth of its words
_IP_PKTINFO = 8  # include/uapi/linux/in.h
_IPV6_RECVPKTINFO = 49  # include/uapi/linux/in6.h
_IPV6_PKTINFO = 50
_SOL_UDP = 17  # include/linux/socket.h
_UDP_GRO = 104  # include/uapi/linux/udp.h
_IN_PKTINFO = struct.Struct("=i4s4s")  # struct in_pktinfo: interface, local, header's destination
_IN6_PKTINFO = struct.Struct("=16si")
_INT = struct.Struct("=i")

_LARGEST = 1 << 16
_ANCILLARY = 256


@dataclass(frozen=True, slots=True)
class Datagram:
    """What came from ``flow.remote`` to ``flow.local``."""

    flow: FourTuple
    payload: bytes

    def between(self, flow: FourTuple) -> "Datagram":
        """The same of another flow."""
        return Datagram(flow, self.payload)


@dataclass(slots=True)
class HeldDatagramSocket:
    """A UDP socket of the container. ``sock`` is our duplicate; ``remote`` is None unless it is
    connected. ``dropped``: how many datagrams it had no room for, when it was taken."""

    names: tuple[DescriptorName, ...]
    sock: socket.socket
    local: Endpoint
    remote: Endpoint | None
    dropped: int = 0
    _looking: bool = field(default=False, init=False)

    def drops(self) -> int:
        """How many datagrams it had no room for since it was taken."""
        return _drops(self.sock) - self.dropped

    def arrived(self) -> list[Datagram]:
        """What waits in its queue, but for what an earlier call has returned. It stays there.

        The socket's options are as before afterwards, but for SO_PEEK_OFF. Raises ``OSError``.
        """
        if not self._looking:
            self.sock.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
            self._looking = True
        with _told_of_destination(self.sock):
            return list(self._peeked())

    def _peeked(self) -> Iterator[Datagram]:
        flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
        while True:
            try:
                payload, ancillary, _, source = self.sock.recvmsg(_LARGEST, _ANCILLARY, flags)
            except BlockingIOError:
                return
            except ConnectionRefusedError:  # an ICMP error that waited; the queue comes next
                continue
            control = {(level, kind): data for level, kind, data in ancillary}
            local = Endpoint(_destination(control) or self.local.address, self.local.port)
            flow = FourTuple(local, Endpoint(str(source[0]).partition("%")[0], source[1]))
            size = control.get((_SOL_UDP, _UDP_GRO))
            step = _INT.unpack_from(size)[0] if size else len(payload)
            for at in range(0, max(len(payload), 1), max(step, 1)):
                yield Datagram(flow, payload[at : at + step])


def take_datagram_sockets(tasks: Iterable[Task]) -> list[HeldDatagramSocket]:
    """Duplicate every UDP socket that ``tasks`` hold and that is bound. Raises ``OSError``.

    On a thread of their network namespace, whose table tells which of their sockets those are.
    """
    bound = _bound_here()
    if not bound:
        return []
    names: dict[int, list[DescriptorName]] = {}
    where: dict[int, tuple[int, int]] = {}
    for task in tasks:
        for fd, inode in socket_descriptors(task.pid):
            if inode not in bound:
                continue
            names.setdefault(inode, []).append(DescriptorName(task.inner_pid, fd))
            where.setdefault(inode, (task.pid, fd))
    taken: list[HeldDatagramSocket] = []
    pidfds: dict[int, int] = {}
    try:
        for inode, (pid, fd) in where.items():
            if pid not in pidfds:
                pidfds[pid] = os.pidfd_open(pid)
            duplicate = _duplicate(pidfds[pid], fd)
            held = duplicate and _held(duplicate, tuple(sorted(names[inode])))
            if held:
                taken.append(held)
            elif duplicate:
                duplicate.close()
    except BaseException:
        for one in taken:
            one.sock.close()
        raise
    finally:
        for pidfd in pidfds.values():
            os.close(pidfd)
    return taken


def _duplicate(pidfd: int, fd: int) -> socket.socket | None:
    """None if it was closed since it was listed: the tasks may still run."""
    try:
        return socket.socket(fileno=pidfd_getfd(pidfd, fd))
    except OSError as error:
        if error.errno == errno.EBADF:
            return None
        raise


def _bound_here() -> frozenset[int]:
    """The inodes of all bound UDP sockets of the calling thread's namespace."""
    return frozenset(used.inode for used in datagram_addresses_in_use())


def _held(sock: socket.socket, names: tuple[DescriptorName, ...]) -> HeldDatagramSocket | None:
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.proto != socket.IPPROTO_UDP:
        return None
    local = Endpoint(*sock.getsockname()[:2])
    if not local.port:
        return None
    try:
        remote = Endpoint(*sock.getpeername()[:2])
    except OSError:  # ENOTCONN
        remote = None
    return HeldDatagramSocket(names, sock, local, remote, _drops(sock))


def _drops(sock: socket.socket) -> int:
    info = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _SK_MEMINFO_DROPS.stop)
    return int.from_bytes(info[_SK_MEMINFO_DROPS], sys.byteorder)


@contextmanager
def _told_of_destination(sock: socket.socket) -> Iterator[None]:
    """With IP_PKTINFO or IPV6_RECVPKTINFO on: a socket bound to every address does not know."""
    option = (
        (socket.IPPROTO_IP, _IP_PKTINFO)
        if sock.family == socket.AF_INET
        else (socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO)
    )
    before = sock.getsockopt(*option)
    sock.setsockopt(*option, 1)
    try:
        yield
    finally:
        sock.setsockopt(*option, before)


def _destination(control: dict[tuple[int, int], bytes]) -> str | None:
    four = control.get((socket.IPPROTO_IP, _IP_PKTINFO))
    if four is not None:
        return socket.inet_ntop(socket.AF_INET, _IN_PKTINFO.unpack_from(four)[2])
    six = control.get((socket.IPPROTO_IPV6, _IPV6_PKTINFO))
    if six is not None:
        return socket.inet_ntop(socket.AF_INET6, _IN6_PKTINFO.unpack_from(six)[0])
    return None
