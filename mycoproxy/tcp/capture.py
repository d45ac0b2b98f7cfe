"""Read a live connection's state, and give it back.

Order, and why: SO_REUSEADDR is read first (repair mode overwrites it); then repair mode, from
which on closing is silent; then everything else. Nothing of the connection is changed, the queues
are only peeked at, so ``resume`` is all it takes to go back.

**Install a hold first, both ways.** A socket in repair mode still acknowledges what arrives:
those bytes would be lost. And its timers go on: what it sends again carries a younger timestamp
than the captured clock, and to the peer everything from the target would be an old duplicate
(PAWS, RFC 7323) until that clock has caught up.
"""

import errno
import socket

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.tcp import abi, repair
from mycoproxy.tcp.abi import TcpConnectionState
from mycoproxy.tcp.errors import TcpError, UnsupportedSocketError, UnsupportedStateError
from mycoproxy.tcp.state import (
    Buffers,
    Negotiated,
    ReceiveQueue,
    SendQueue,
    TcpState,
    Timestamps,
    Window,
    WindowScale,
)

_TCP = socket.IPPROTO_TCP
_SOCKET = socket.SOL_SOCKET
_LONGEST_SEGMENT = 1 << 20


def capture(sock: socket.socket) -> TcpState:
    """Put ``sock`` into repair mode, leave it there, and return its state.

    The caller has installed a hold on the connection, both ways. Raises
    ``UnsupportedSocketError`` (not TCP), ``UnsupportedStateError`` (not ESTABLISHED),
    ``TcpError`` (the kernel refused a step; EPERM is a missing CAP_NET_ADMIN). After an error the
    socket is as it was, and not in repair mode.
    """
    if sock.type != socket.SOCK_STREAM or sock.proto not in (0, _TCP):
        raise UnsupportedSocketError(f"{sock} is not a TCP socket")
    family = sock.family  # an enum conversion each time it is read
    if family not in (socket.AF_INET, socket.AF_INET6):
        raise UnsupportedSocketError(f"{sock} is neither IPv4 nor IPv6")
    reuse_address = bool(sock.getsockopt(_SOCKET, socket.SO_REUSEADDR))
    try:
        repair.enter(sock)
    except OSError as error:
        state = repair.connection_state(sock)
        if state is not TcpConnectionState.ESTABLISHED:
            raise UnsupportedStateError(state, None) from error
        raise TcpError(f"cannot enter repair mode (CAP_NET_ADMIN needed): {error}") from error
    try:
        return _read(sock, family=family, reuse_address=reuse_address)
    except OSError as error:
        _leave(sock, reuse_address=reuse_address)
        raise TcpError(f"cannot capture {_name(sock) or sock}: {error}") from error
    except TcpError:
        _leave(sock, reuse_address=reuse_address)
        raise


def discard(sock: socket.socket) -> None:
    """Make closing ``sock`` silent: no FIN and no reset, whoever closes it. Raises ``OSError``."""
    repair.enter(sock)


def _leave(sock: socket.socket, *, reuse_address: bool) -> None:
    """Back to normal after a failed capture. No probe: the peer need not know."""
    repair.leave(sock, probe=False)
    sock.setsockopt(_SOCKET, socket.SO_REUSEADDR, int(reuse_address))


def _name(sock: socket.socket) -> FourTuple | None:
    try:
        return FourTuple(Endpoint(*sock.getsockname()[:2]), Endpoint(*sock.getpeername()[:2]))
    except OSError:
        return None


def _read(sock: socket.socket, *, family: socket.AddressFamily, reuse_address: bool) -> TcpState:
    info = abi.INFO_HEAD.unpack(sock.getsockopt(_TCP, abi.TCP_INFO, abi.INFO_HEAD.size))
    state = TcpConnectionState(info[0])
    if state is not TcpConnectionState.ESTABLISHED:
        raise UnsupportedStateError(state, _name(sock))
    local, remote = sock.getsockname(), sock.getpeername()
    if len(local) == 4 and (local[3] or remote[3]):
        raise UnsupportedSocketError(
            f"{_name(sock)} uses link-local addresses, which mean nothing on another node"
        )
    negotiated = _negotiated(sock, options=info[5], scales=info[6])
    window = Window(
        *abi.REPAIR_WINDOW.unpack(
            sock.getsockopt(_TCP, abi.TCP_REPAIR_WINDOW, abi.REPAIR_WINDOW.size)
        )
    )
    receive = _receive_queue(sock)
    send = _send_queue(sock)
    # Nothing that the task may do by accident should reach a queue.
    repair.select_queue(sock, abi.TCP_NO_QUEUE)
    return TcpState(
        family=family,
        local=Endpoint(*local[:2]),
        remote=Endpoint(*remote[:2]),
        state=state,
        send=send,
        receive=receive,
        window=window,
        negotiated=negotiated,
        buffers=Buffers(
            send=sock.getsockopt(_SOCKET, socket.SO_SNDBUF),
            receive=sock.getsockopt(_SOCKET, socket.SO_RCVBUF),
            lock=repair.buffer_lock(sock),
            window_clamp=sock.getsockopt(_TCP, abi.TCP_WINDOW_CLAMP),
        ),
        reuse_address=reuse_address,
    )


def _negotiated(sock: socket.socket, *, options: int, scales: int) -> Negotiated:
    timestamps = None
    if options & abi.TCPI_OPT_TIMESTAMPS:
        value = abi.U32.unpack(sock.getsockopt(_TCP, abi.TCP_TIMESTAMP, abi.U32.size))[0]
        # Up to the next even number: an older kernel's lowest bit is part of its clock, and the
        # clock must not go back (PAWS).
        microseconds = bool(options & abi.TCPI_OPT_USEC_TS)
        clock = value & ~1 if microseconds else (value + 1) & 0xFFFFFFFE
        timestamps = Timestamps(clock, microseconds)
    return Negotiated(
        mss_clamp=sock.getsockopt(_TCP, abi.TCP_MAXSEG),
        window_scale=WindowScale(scales & 15, scales >> 4)
        if options & abi.TCPI_OPT_WSCALE
        else None,
        sack=bool(options & abi.TCPI_OPT_SACK),
        timestamps=timestamps,
        ecn=bool(options & abi.TCPI_OPT_ECN),
    )


def _receive_queue(sock: socket.socket) -> ReceiveQueue:
    repair.select_queue(sock, abi.TCP_RECV_QUEUE)
    following = repair.queue_sequence(sock)
    length = repair.queued_bytes(sock, abi.SIOCINQ)
    data = repair.peek_queue(sock, length + 1) if length else b""
    if len(data) != length:
        raise TcpError(
            f"{_name(sock)}: {length} bytes are in the receive queue, {len(data)} could be read "
            "(SO_PEEK_OFF, urgent data, or no hold)"
        )
    return ReceiveQueue(following, data)


def _send_queue(sock: socket.socket) -> SendQueue:
    repair.select_queue(sock, abi.TCP_SEND_QUEUE)
    following = repair.queue_sequence(sock)
    length = repair.queued_bytes(sock, abi.SIOCOUTQ)
    una = (following - length) & 0xFFFFFFFF
    if not length:
        return SendQueue(una, b"", b"")
    unsent = repair.queued_bytes(sock, abi.SIOCOUTQNSD)
    try:
        data = repair.peek_queue(sock, length)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
        # The first segment is acknowledged in part. The kernel keeps it whole, and copies whole
        # segments or fails (tcp_peek_sndq, net/ipv4/tcp.c).
        data = repair.peek_queue(sock, length + _LONGEST_SEGMENT)
    data = data[-length:]
    if len(data) != length:
        raise TcpError(
            f"{_name(sock)}: {length} bytes are in the send queue, {len(data)} could be read"
        )
    border = length - unsent
    return SendQueue(una, data[:border], data[border:])
