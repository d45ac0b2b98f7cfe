"""Is there a socket of exactly this 4-tuple in this network namespace, and which have gone?
Asked of sock_diag(7).

An exact lookup takes the kernel microseconds. Listing all sockets (``socktable``, or a dump) makes
it walk its whole hash table, which takes milliseconds however few sockets there are.

The kernel tells whoever listens of each socket that it frees (net/core/sock_diag.c,
sock_diag_broadcast_destroy). That is not the end of the connection: what remains of it may be in
TIME_WAIT, which ends without a word.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import NamedTuple, Self

from mycoproxy.addresses import Endpoint, FourTuple, wire_address

_NETLINK_SOCK_DIAG = 4  # include/uapi/linux/netlink.h
_SOCK_DIAG_BY_FAMILY = 20  # include/uapi/linux/sock_diag.h
_NLMSG_ERROR = 2
_NLM_F_REQUEST = 1
_NO_COOKIE = 0xFFFFFFFF  # INET_DIAG_NOCOOKIE, include/uapi/linux/inet_diag.h

# include/net/tcp_states.h
TCP_SYN_SENT = 2
_TCP_LISTEN = 10

_HEADER = struct.Struct("=IHHII")
# struct inet_diag_req_v2: family, protocol, extensions, pad, states; then struct inet_diag_sockid:
# source port, destination port, source, destination, interface, cookie
_REQUEST = struct.Struct("=BBBxIHH16s16sI2I")
_ANSWER = 8192
_WINDOW = 64  # lookups at once: their answers wait in the socket's buffer
# struct inet_diag_msg: four bytes, inet_diag_sockid, then expires, rqueue, wqueue, uid, inode
_QUEUES = struct.Struct("=IIIII")
_QUEUES_OFFSET = 4 + 48

_TIMER_TIME_WAIT = 3  # idiag_timer (net/ipv4/inet_diag.c, inet_twsk_diag_fill)

# include/uapi/linux/sock_diag.h: sknetlink_groups, as bits of sockaddr_nl.nl_groups
_TCP_DESTROYED = 1 << (1 - 1) | 1 << (3 - 1)  # SKNLGRP_INET_TCP_DESTROY, _INET6_TCP_DESTROY
# struct inet_diag_msg: family, three bytes, ports and addresses of inet_diag_sockid
_NAME = struct.Struct(">BxxxHH16s16s")
_SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h
_EVENTS_BUFFER = 1 << 22  # an event takes some 700 bytes of it


@dataclass(frozen=True, slots=True)
class FoundSocket:
    """What sock_diag says of one socket: its TCP state (include/net/tcp_states.h; 3 is a
    handshake under way), its inode (0 if no descriptor refers to it yet), and how many bytes wait
    to be read and to be acknowledged. ``expires``: in how many milliseconds it goes by itself, if
    it is only a remainder (TIME_WAIT, or a FIN_WAIT2 that has no owner), else None."""

    state: int
    inode: int
    receive_queue: int
    send_queue: int
    expires: int | None = None


class SocketLookup:
    """A connection to sock_diag of the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._netlink = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
        )
        _give_room(self._netlink, _WINDOW * _ANSWER)
        self._netlink.bind((0, 0))

    def connected(self, names: Iterable[FourTuple]) -> frozenset[FourTuple]:
        """Those of ``names`` (``local`` is this namespace's end) that have a socket here.

        Sockets in any state but LISTEN count; IPv4-mapped names are looked up as IPv4. Raises
        ``OSError``.
        """
        return frozenset(self.find_all(names))

    def find(self, name: FourTuple) -> FoundSocket | None:
        """The socket of that name here, in any state but LISTEN. Raises ``OSError``."""
        return self.find_all([name]).get(name)

    def find_all(self, names: Iterable[FourTuple]) -> dict[FourTuple, FoundSocket]:
        """What ``find`` finds, of many. Raises ``OSError``."""
        asked = list(names)
        found: dict[FourTuple, FoundSocket] = {}
        for start in range(0, len(asked), _WINDOW):
            window = asked[start : start + _WINDOW]
            answers = zip(window, self._ask(window), strict=True)
            found.update((name, one) for name, one in answers if one is not None)
        return found

    def close(self) -> None:
        """Close the connection to the kernel."""
        self._netlink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, names: Sequence[FourTuple]) -> list[FoundSocket | None]:
        self._netlink.send(b"".join(map(_request, names, range(len(names)))))
        found: list[FoundSocket | None] = [None] * len(names)
        refused: OSError | None = None
        for _ in names:
            answer = self._netlink.recv(_ANSWER)
            _, kind, _, number, _ = _HEADER.unpack_from(answer)
            if kind != _NLMSG_ERROR:
                found[number] = _read(answer[_HEADER.size :])
                continue
            reason = -struct.unpack_from("=i", answer, _HEADER.size)[0]
            if reason != errno.ENOENT:
                refused = OSError(reason, f"sock_diag of {names[number]}: {os.strerror(reason)}")
        if refused is not None:
            raise refused
        return found


def _give_room(netlink: socket.socket, size: int) -> None:
    try:
        netlink.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
    except PermissionError:  # root of a user namespace only
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def _request(name: FourTuple, number: int) -> bytes:
    family, local = _packed(name.local.address)
    _, remote = _packed(name.remote.address)
    return _HEADER.pack(
        _HEADER.size + _REQUEST.size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, number, 0
    ) + _REQUEST.pack(
        family,
        socket.IPPROTO_TCP,
        0,
        0xFFFFFFFF,
        socket.htons(name.local.port),
        socket.htons(name.remote.port),
        local,
        remote,
        0,
        _NO_COOKIE,
        _NO_COOKIE,
    )


def _read(answer: bytes) -> FoundSocket | None:
    # struct inet_diag_msg: family, state, timer. Without a connection the kernel finds a listener.
    _, state, timer = answer[:3]
    if state == _TCP_LISTEN:
        return None
    expires, receive, send, _, inode = _QUEUES.unpack_from(answer, _QUEUES_OFFSET)
    remainder = timer == _TIMER_TIME_WAIT
    return FoundSocket(state, inode, receive, send, expires if remainder else None)


class Destroyed(NamedTuple):
    """Sockets that were freed. ``missed``: others were, too, and nobody knows which."""

    names: list[FourTuple]
    ports: list[int]
    """Local ports of those that had lost the rest of their name before: a reset by the program
    itself (SO_LINGER of 0) clears it (tcp_disconnect)."""
    missed: bool


class DestroyedSockets:
    """Tells of TCP sockets of the thread's namespace that are freed after this object is made.

    Any event costs the kernel and the reader some microseconds, so it is for namespaces where
    there is something to learn.
    """

    def __init__(self) -> None:
        self._netlink = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            _NETLINK_SOCK_DIAG,
        )
        _give_room(self._netlink, _EVENTS_BUFFER)
        self._netlink.bind((0, _TCP_DESTROYED))

    def fileno(self) -> int:
        """Readable when there is something to ``read``."""
        return self._netlink.fileno()

    def read(self) -> Destroyed:
        """What has happened since the last time; does not wait. IPv4-mapped names are IPv4."""
        found = Destroyed([], [], missed=False)
        while True:
            try:
                message = self._netlink.recv(_ANSWER)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found = found._replace(missed=True)
                continue
            family, port, remote_port, local, remote = _NAME.unpack_from(message, _HEADER.size)
            if remote_port:
                size = 4 if family == socket.AF_INET else 16
                ends = (_read_address(one[:size]) for one in (local, remote))
                addresses = map(wire_address, ends)
                found.names.append(FourTuple(*map(Endpoint, addresses, (port, remote_port))))
            elif port:
                found.ports.append(port)

    def close(self) -> None:
        """Listen no more."""
        self._netlink.close()


@lru_cache(maxsize=4096)
def _read_address(value: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(value) == 4 else socket.AF_INET6, value)


@lru_cache(maxsize=4096)
def _packed(address: str) -> tuple[int, bytes]:
    wire = wire_address(address)
    family = socket.AF_INET6 if ":" in wire else socket.AF_INET
    return family, socket.inet_pton(family, wire).ljust(16, b"\0")
