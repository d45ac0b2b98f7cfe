"""Sockets in CLOSE: the connection has ended, and the owner has not heard of it yet, or not all.

What can be left: bytes that were not read, an error that was not (SO_ERROR), and the end of the
stream. The kernel has no way to set any of them, so the socket goes through the end of a connection
again: connected in repair mode to its own address, its receive queue filled, and then reset by a
segment that is played to it over loopback. Nobody outside notices.

A socket that never was connected has nothing of this; it gets its name and its buffers.
"""

import errno
import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.tcp import abi, repair
from mycoproxy.tcp.errors import TcpError, UnsupportedSocketError
from mycoproxy.tcp.options import Settings
from mycoproxy.tcp.replay import inject
from mycoproxy.tcp.segments import ACK, FIN, RST, segment
from mycoproxy.tcp.state import Negotiated, ReceiveQueue, SendQueue, TcpState, Window

_TCP = socket.IPPROTO_TCP
_SOCKET = socket.SOL_SOCKET
_SEQUENCE = 1  # any would do, but not 0: that stands for "not chosen yet" (tcp_v4_connect)
_TRIES = 16

NOTHING_NEGOTIATED = Negotiated(536, window_scale=None, sack=False, timestamps=None, ecn=False)
"""For states in which nothing is; 536 is TCP_MSS_DEFAULT (include/net/tcp.h)."""

NO_WINDOW = Window(0, 0, 0, 0, 0)

NOWHERE = {socket.AF_INET: Endpoint("0.0.0.0", 0), socket.AF_INET6: Endpoint("::", 0)}


def capture(
    sock: socket.socket, *, family: socket.AddressFamily, settings: Settings, peek: bool
) -> TcpState:
    """The state of a socket in CLOSE.

    Its pending error can only be read by taking it (SO_ERROR): ``restore`` gives it back. With
    ``peek`` it is not looked at. Raises ``TcpError``, ``UnsupportedSocketError``.
    """
    events = repair.poll(sock)
    if events & select.POLLPRI:
        raise UnsupportedSocketError(
            f"{sock} has ended, and urgent data (MSG_OOB) waits to be read; it can be moved once "
            "that is done"
        )
    try:
        length = repair.queued_bytes(sock, abi.SIOCINQ)
        data = repair.peek_all(sock, length) if length else b""
        return TcpState(
            family=family,
            local=Endpoint(*sock.getsockname()[:2]),
            remote=NOWHERE[family],
            state=repair.connection_state(sock),
            send=SendQueue(0, b"", b""),
            receive=ReceiveQueue(len(data), data),
            window=NO_WINDOW,
            negotiated=NOTHING_NEGOTIATED,
            buffers=repair.buffers(sock),
            reuse_address=bool(sock.getsockopt(_SOCKET, socket.SO_REUSEADDR)),
            options=settings,
            shut_down=bool(events & select.POLLRDHUP),
            error=0
            if peek or not events & select.POLLERR
            else sock.getsockopt(_SOCKET, socket.SO_ERROR),
        )
    except OSError as error:
        raise TcpError(f"cannot capture the closed socket {sock}: {error}") from error


def restore(sock: socket.socket, state: TcpState) -> list[str]:
    """Let ``sock``, which is closed, go through the end that ``state`` tells of.

    Returns what could not be kept: an error that only the network can cause (ETIMEDOUT,
    EHOSTUNREACH) becomes ECONNRESET. Raises ``TcpError``.
    """
    try:
        if not state.shut_down:
            with _named(sock, state):
                return []
        repair.disconnect(sock)
        if state.error == errno.ECONNREFUSED and not state.receive.data:
            _be_refused(sock, state)
            return []
        _be_reset(sock, state)
        if not state.error:
            sock.getsockopt(_SOCKET, socket.SO_ERROR)  # which clears it
    except OSError as error:
        raise TcpError(f"cannot restore the end of {state.local}: {error}") from error
    if state.error in (0, errno.ECONNRESET, errno.EPIPE):
        return []
    name = errno.errorcode.get(state.error, state.error)
    return [f"the pending error {name} became ECONNRESET"]


@contextmanager
def _named(sock: socket.socket, state: TcpState) -> Iterator[None]:
    """In repair mode, in which it can be bound to its name whoever else has the port.

    Afterwards it is live, with the buffers that it had.
    """
    repair.enter(sock)
    try:
        if state.local.port:
            with _unless_bound():
                sock.bind(state.local)
        yield
    finally:
        repair.leave(sock, probe=False)
        sock.setsockopt(_SOCKET, socket.SO_REUSEADDR, int(state.reuse_address))
        repair.force_send_buffer(sock, state.buffers.send)
        repair.force_receive_buffer(sock, state.buffers.receive)
        repair.set_buffer_lock(sock, state.buffers.lock)


@contextmanager
def _unless_bound() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def _be_reset(sock: socket.socket, state: TcpState) -> None:
    with _named(sock, state):
        repair.select_queue(sock, abi.TCP_RECV_QUEUE)
        repair.set_queue_sequence(sock, _SEQUENCE)
        repair.select_queue(sock, abi.TCP_SEND_QUEUE)
        repair.set_queue_sequence(sock, _SEQUENCE)
        connection = _connect_to_itself(sock, state)
        if state.receive.data:
            repair.force_receive_buffer(
                sock, repair.room(state.buffers.receive, len(state.receive.data))
            )
            repair.select_queue(sock, abi.TCP_RECV_QUEUE)
            repair.write_queue(sock, state.receive.data)
    following = _SEQUENCE + len(state.receive.data)
    if state.error == errno.EPIPE:  # what a reset becomes after a FIN (tcp_reset)
        inject(
            [segment(connection, flags=FIN | ACK, sequence=following, acknowledgement=_SEQUENCE)]
        )
        following += 1
    inject([segment(connection, flags=RST, sequence=following)])


def _connect_to_itself(sock: socket.socket, state: TcpState) -> FourTuple:
    """In repair mode, so that it takes part in nothing."""
    host = _own_address(state)
    for port in range(1, _TRIES + 1):
        try:
            sock.connect((host, port))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:  # this very 4-tuple exists
                raise
        else:
            return FourTuple(Endpoint(*sock.getsockname()[:2]), Endpoint(host, port))
    raise TcpError(f"no free port to {host} was found in {_TRIES} tries")


def _be_refused(sock: socket.socket, state: TcpState) -> None:
    """Connect where nobody listens: the answer over loopback is there when connect returns."""
    with _named(sock, state):
        pass
    with socket.socket(state.family, socket.SOCK_STREAM) as nobody:
        nobody.bind((_own_address(state), 0))  # bound, but not listening
        with without_blocking(sock), suppress(BlockingIOError):
            sock.connect(nobody.getsockname()[:2])


def _own_address(state: TcpState) -> str:
    if state.local.address != NOWHERE[state.family].address:
        return state.local.address
    return "127.0.0.1" if state.family == socket.AF_INET else "::1"


class without_blocking:  # noqa: N801 - used like a function
    """O_NONBLOCK on a descriptor that is shared with a task that stands, for the block."""

    def __init__(self, sock: socket.socket) -> None:
        self._fd = sock.fileno()
        self._was = os.get_blocking(self._fd)

    def __enter__(self) -> None:
        os.set_blocking(self._fd, False)

    def __exit__(self, *_: object) -> None:
        os.set_blocking(self._fd, self._was)
