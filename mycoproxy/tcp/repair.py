"""Single steps on a socket in repair mode, each one kernel call with its packing.

The order of the steps is in ``capture`` and ``establish``. All of them need CAP_NET_ADMIN in the
user namespace that owns the socket's network namespace (``tcp_can_repair_sock``, net/ipv4/tcp.c).
"""

import ctypes
import errno
import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from typing import Final, NamedTuple

from mycoproxy.tcp import abi
from mycoproxy.tcp.abi import TcpConnectionState
from mycoproxy.tcp.state import Buffers

_libc = ctypes.CDLL(None, use_errno=True)
_UNSPECIFIED_ADDRESS = bytes(16)  # struct sockaddr of family AF_UNSPEC, which is 0

_TCP = socket.IPPROTO_TCP
_INT_SIZE = 4

STATES: Final = {state.value: state for state in TcpConnectionState}
"""Quicker than making the enumeration look for them."""
_SMALLEST_PIECE = 1024

# Socket buffers are accounted with their overhead; a queue's bytes can take more than their number.
_OVERHEAD_FACTOR = 4
_OVERHEAD_BYTES = 256 * 1024
_LARGEST_BUFFER = (1 << 30) - 1


def enter(sock: socket.socket) -> None:
    """Enter repair mode: closing becomes silent, and the queues can be read and written."""
    sock.setsockopt(_TCP, abi.TCP_REPAIR, abi.TCP_REPAIR_ON)


def leave(sock: socket.socket, *, probe: bool = True) -> None:
    """Leave repair mode; with ``probe`` an ESTABLISHED socket sends a window probe.

    The kernel clears SO_REUSEADDR here (``do_tcp_setsockopt``, net/ipv4/tcp.c).
    """
    value = abi.TCP_REPAIR_OFF if probe else abi.TCP_REPAIR_OFF_NO_WP
    sock.setsockopt(_TCP, abi.TCP_REPAIR, value)


def is_in_repair(sock: socket.socket) -> bool:
    """Is a socket in repair mode? Raises ``OSError``."""
    return bool(sock.getsockopt(_TCP, abi.TCP_REPAIR))


def connection_state(sock: socket.socket) -> TcpConnectionState:
    """The TCP state of a socket, in repair mode or not. Raises ``OSError``: it is none of TCP."""
    return STATES[sock.getsockopt(_TCP, abi.TCP_INFO, 1)[0]]


def select_queue(sock: socket.socket, queue: int) -> None:
    """Say which queue ``recv``, ``send`` and TCP_QUEUE_SEQ mean."""
    sock.setsockopt(_TCP, abi.TCP_REPAIR_QUEUE, queue)


def queue_sequence(sock: socket.socket) -> int:
    """The sequence number after the selected queue's last byte."""
    number: int = abi.U32.unpack(sock.getsockopt(_TCP, abi.TCP_QUEUE_SEQ, _INT_SIZE))[0]
    return number


def set_queue_sequence(sock: socket.socket, sequence: int) -> None:
    """Set the selected queue's sequence number; only while the socket is closed."""
    sock.setsockopt(_TCP, abi.TCP_QUEUE_SEQ, abi.U32.pack(sequence))


def queued_bytes(sock: socket.socket, request: int) -> int:
    """How many bytes SIOCINQ, SIOCOUTQ or SIOCOUTQNSD counts."""
    buffer = bytearray(_INT_SIZE)
    ioctl(sock.fileno(), request, buffer)
    count: int = abi.U32.unpack(buffer)[0]
    return count


def disconnect(sock: socket.socket) -> None:
    """connect(2) to AF_UNSPEC: the socket becomes closed and no longer shut down.

    Works through a duplicate of another task's descriptor. On a live socket it is silent in
    repair mode and sends a reset otherwise (``tcp_disconnect``, net/ipv4/tcp.c). The pending
    error that it leaves behind is read away.
    """
    if _libc.connect(sock.fileno(), _UNSPECIFIED_ADDRESS, len(_UNSPECIFIED_ADDRESS)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def force_send_buffer(sock: socket.socket, size: int) -> None:
    """Set the send buffer, in the kernel's bytes, above net.core.wmem_max too.

    The size is locked afterwards: no auto-tuning until ``set_buffer_lock``.
    """
    sock.setsockopt(socket.SOL_SOCKET, abi.SO_SNDBUFFORCE, force_value(size))


def force_value(size: int) -> int:
    """What SO_SNDBUFFORCE and SO_RCVBUFFORCE want for ``size`` of the kernel's bytes.

    They take half of what they give (the kernel doubles it for its own overhead).
    """
    return (size + 1) // 2


def force_receive_buffer(sock: socket.socket, size: int) -> None:
    """The same for the receive buffer."""
    sock.setsockopt(socket.SOL_SOCKET, abi.SO_RCVBUFFORCE, force_value(size))


def buffer_lock(sock: socket.socket) -> int:
    """Which buffers are *not* auto-tuned (SO_BUF_LOCK, Linux 5.14)."""
    return sock.getsockopt(socket.SOL_SOCKET, abi.SO_BUF_LOCK)


def set_buffer_lock(sock: socket.socket, lock: int) -> None:
    """Set which buffers are not auto-tuned."""
    sock.setsockopt(socket.SOL_SOCKET, abi.SO_BUF_LOCK, lock)


class AcceptQueue(NamedTuple):
    """How many connections wait to be accepted, and how many may (``sk_max_ack_backlog``)."""

    waiting: int
    limit: int


def accept_queue(listener: socket.socket) -> AcceptQueue:
    """The accept queue of a listening socket (``tcp_get_info``, net/ipv4/tcp.c)."""
    info = listener.getsockopt(_TCP, abi.TCP_INFO, abi.INFO_UNACKED_OFFSET + abi.INFO_COUNTS.size)
    return AcceptQueue(*abi.INFO_COUNTS.unpack_from(info, abi.INFO_UNACKED_OFFSET))


def buffers(sock: socket.socket) -> Buffers:
    """The buffers' sizes and who chose them."""
    return Buffers(
        send=sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF),
        receive=sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF),
        lock=buffer_lock(sock),
        window_clamp=sock.getsockopt(_TCP, abi.TCP_WINDOW_CLAMP),
    )


def poll(sock: socket.socket) -> int:
    """What poll(2) says of it now: POLLPRI (urgent data), POLLRDHUP, POLLERR, ..."""
    poller = select.poll()
    poller.register(sock, select.POLLPRI | select.POLLRDHUP)
    return next((events for _, events in poller.poll(0)), 0)


def peek_all(sock: socket.socket, length: int) -> bytes:
    """The receive queue, if it holds ``length`` bytes; more or fewer if it does not.

    From its beginning, wherever SO_PEEK_OFF stands (it is left there).
    """
    if sock.getsockopt(socket.SOL_SOCKET, abi.SO_PEEK_OFF) < 0:
        return peek_queue(sock, length + 1)  # one more, to notice that more is there
    return peek_at(sock, -1, length)


def peek_at(sock: socket.socket, offset: int, length: int) -> bytes:
    """The same from ``offset`` on (-1: as if SO_PEEK_OFF were not set).

    Raises ``OSError``: EOPNOTSUPP before Linux 6.9.
    """
    before = sock.getsockopt(socket.SOL_SOCKET, abi.SO_PEEK_OFF)
    sock.setsockopt(socket.SOL_SOCKET, abi.SO_PEEK_OFF, offset)
    try:
        return peek_queue(sock, length + 1)
    finally:
        sock.setsockopt(socket.SOL_SOCKET, abi.SO_PEEK_OFF, before)


def room(size: int, queued: int) -> int:
    """A buffer size, in the kernel's bytes, that surely has room for ``queued`` bytes more."""
    return min(size + queued * _OVERHEAD_FACTOR + _OVERHEAD_BYTES, _LARGEST_BUFFER)


def peek_queue(sock: socket.socket, size: int) -> bytes:
    """Up to ``size`` bytes of the selected queue, which stay there."""
    with _untimed(sock) as plain:
        return plain.recv(size, socket.MSG_PEEK | socket.MSG_DONTWAIT)


def write_queue(sock: socket.socket, data: bytes) -> None:
    """Append ``data`` to the selected queue (or send it, outside repair mode).

    The receive queue takes what fits into one socket buffer at a time (``tcp_send_rcvq``,
    net/ipv4/tcp_input.c), and older kernels refuse with ENOMEM what does not: then the pieces
    are made smaller. Raises ``OSError`` if the kernel takes no piece at all.
    """
    rest = memoryview(data)
    piece = len(rest)
    with _untimed(sock) as plain:
        while rest:
            try:
                rest = rest[plain.send(rest[:piece], socket.MSG_DONTWAIT) :]
            except OSError as error:
                if error.errno != errno.ENOMEM or piece <= _SMALLEST_PIECE:
                    raise
                piece //= 2


@contextmanager
def _untimed(sock: socket.socket) -> Iterator[socket.socket]:
    """The socket without its Python timeout.

    With one, Python waits for readiness before each call, and queues in repair mode are never
    ready. Its own timeout is left alone: changing it changes the task's O_NONBLOCK.
    """
    if not sock.gettimeout():
        yield sock
        return
    with socket.socket(sock.family, sock.type, sock.proto, os.dup(sock.fileno())) as plain:
        yield plain
