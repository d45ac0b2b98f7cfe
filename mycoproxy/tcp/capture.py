"""Read a socket's state, and be able to give it back.

Order, and why: SO_REUSEADDR is read first (repair mode overwrites it); then repair mode, from
which on closing is silent; then everything else. Nothing of the connection is changed, the queues
are only peeked at, so ``resume`` is all it takes to go back.

**Install a hold first, both ways.** A socket in repair mode still acknowledges what arrives:
those bytes would be lost. And its timers go on: what it sends again carries a younger timestamp
than the captured clock, and to the peer everything from the target would be an old duplicate
(PAWS, RFC 7323) until that clock has caught up.

A FIN counts as one byte in the kernel's numbers, in either direction; here it is taken out of
them, and follows from the TCP state.
"""

import errno
import select
import socket

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.tcp import abi, connecting, ended, repair
from mycoproxy.tcp.abi import TcpConnectionState
from mycoproxy.tcp.errors import TcpError, UnsupportedSocketError, UnsupportedStateError
from mycoproxy.tcp.segments import SEQUENCE_SPACE
from mycoproxy.tcp.state import (
    FIN_RECEIVED,
    FIN_SENT,
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
_SYNCHRONIZED = FIN_SENT | FIN_RECEIVED | {TcpConnectionState.ESTABLISHED}


def capture(sock: socket.socket, *, peek: bool = False) -> TcpState:
    """Put ``sock`` into repair mode, leave it there, and return its state.

    The caller has installed a hold on the connection, both ways. A socket in CLOSE is not put into
    repair mode (there is nothing to keep silent).

    With ``peek`` the socket is back in normal operation when this returns, and the peer has
    noticed nothing. Without a hold the state is one that the connection has had, as a whole, only
    if nothing arrived meanwhile. No task may use the socket during the call.

    Raises ``UnsupportedSocketError`` (not TCP), ``UnsupportedStateError`` (LISTEN: see
    ``listener``; SYN_RECV), ``TcpError`` (the kernel refused a step; EPERM is a missing
    CAP_NET_ADMIN). After an error the socket is as it was, and not in repair mode.
    """
    family = tcp_family(sock)
    state = repair.connection_state(sock)
    if state is TcpConnectionState.CLOSE:
        captured = ended.capture(sock, family=family)
        if peek:
            ended.restore(sock, captured)
        return captured
    if state not in _SYNCHRONIZED and state is not TcpConnectionState.SYN_SENT:
        raise UnsupportedStateError(state, _name(sock))
    reuse_address = bool(sock.getsockopt(_SOCKET, socket.SO_REUSEADDR))
    try:
        repair.enter(sock)
    except OSError as error:
        raise TcpError(f"cannot enter repair mode (CAP_NET_ADMIN needed): {error}") from error
    try:
        # Read again: a segment may have arrived before.
        info = abi.INFO_HEAD.unpack(sock.getsockopt(_TCP, abi.TCP_INFO, abi.INFO_HEAD.size))
        state = TcpConnectionState(info[0])
        if state is TcpConnectionState.SYN_SENT:
            captured = connecting.capture(sock, family=family, reuse_address=reuse_address)
        elif state in _SYNCHRONIZED:
            captured = _read(sock, info, state, family=family, reuse_address=reuse_address)
        else:
            raise UnsupportedStateError(state, _name(sock))
    except OSError as error:
        _leave(sock, reuse_address=reuse_address)
        raise TcpError(f"cannot capture {_name(sock) or sock}: {error}") from error
    except TcpError:
        _leave(sock, reuse_address=reuse_address)
        raise
    if peek:
        _leave(sock, reuse_address=reuse_address)
    return captured


def discard(sock: socket.socket) -> None:
    """Make closing ``sock`` silent: no FIN and no reset, whoever closes it. Raises ``OSError``."""
    repair.enter(sock)


def tcp_family(sock: socket.socket) -> socket.AddressFamily:
    """AF_INET or AF_INET6. Raises ``UnsupportedSocketError`` for what is not plain TCP."""
    if sock.type != socket.SOCK_STREAM or sock.proto not in (0, _TCP):
        kind = "an MPTCP" if sock.proto == abi.IPPROTO_MPTCP else "not a TCP"
        raise UnsupportedSocketError(f"{sock} is {kind} socket; only plain TCP can be moved")
    family = sock.family  # an enum conversion each time it is read
    if family not in (socket.AF_INET, socket.AF_INET6):
        raise UnsupportedSocketError(f"{sock} is neither IPv4 nor IPv6")
    return family


def _leave(sock: socket.socket, *, reuse_address: bool) -> None:
    """Back to normal. No probe: the peer need not know."""
    repair.leave(sock, probe=False)
    sock.setsockopt(_SOCKET, socket.SO_REUSEADDR, int(reuse_address))


def _name(sock: socket.socket) -> FourTuple | None:
    try:
        return FourTuple(Endpoint(*sock.getsockname()[:2]), Endpoint(*sock.getpeername()[:2]))
    except OSError:
        return None


def _read(
    sock: socket.socket,
    info: tuple[int, ...],
    state: TcpConnectionState,
    *,
    family: socket.AddressFamily,
    reuse_address: bool,
) -> TcpState:
    local, remote = sock.getsockname(), sock.getpeername()
    if len(local) == 4 and (local[3] or remote[3]):
        raise UnsupportedSocketError(
            f"{_name(sock)} uses link-local addresses, which mean nothing on another node"
        )
    events = repair.poll(sock)
    if events & select.POLLPRI:
        raise UnsupportedSocketError(
            f"{_name(sock)} has urgent data that was not read (MSG_OOB); it cannot be moved now"
        )
    negotiated = _negotiated(sock, options=info[5], scales=info[6])
    window = Window(
        *abi.REPAIR_WINDOW.unpack(
            sock.getsockopt(_TCP, abi.TCP_REPAIR_WINDOW, abi.REPAIR_WINDOW.size)
        )
    )
    receive = _receive_queue(sock, fin=state in FIN_RECEIVED)
    send = _send_queue(sock, state)
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
        buffers=repair.buffers(sock),
        reuse_address=reuse_address,
        shut_down=bool(events & select.POLLRDHUP) and state not in FIN_RECEIVED,
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


def _receive_queue(sock: socket.socket, *, fin: bool) -> ReceiveQueue:
    repair.select_queue(sock, abi.TCP_RECV_QUEUE)
    following = (repair.queue_sequence(sock) - fin) % SEQUENCE_SPACE
    length = repair.queued_bytes(sock, abi.SIOCINQ)  # without the FIN (tcp_inq, net/ipv4/tcp.c)
    data = repair.peek_all(sock, length) if length else b""
    if len(data) != length:
        raise TcpError(
            f"{_name(sock)}: {length} bytes are in the receive queue, {len(data)} could be read "
            "(urgent data, or no hold)"
        )
    return ReceiveQueue(following, data)


def _send_queue(sock: socket.socket, state: TcpConnectionState) -> SendQueue:
    repair.select_queue(sock, abi.TCP_SEND_QUEUE)
    following = repair.queue_sequence(sock)
    length = repair.queued_bytes(sock, abi.SIOCOUTQ)
    una = (following - length) % SEQUENCE_SPACE
    if not length:
        return SendQueue(una, b"", b"")
    unsent = repair.queued_bytes(sock, abi.SIOCOUTQNSD)
    if state in FIN_SENT:  # it is the last thing that was queued, and not acknowledged
        length -= 1
        unsent = max(unsent - 1, 0)
        if not length:
            return SendQueue(una, b"", b"")
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
