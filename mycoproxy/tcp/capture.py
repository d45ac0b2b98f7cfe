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
from collections.abc import Sequence
from typing import Any, Final

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.tcp import abi, batch, connecting, ended, options, repair, sockaddr
from mycoproxy.tcp.abi import TcpConnectionState
from mycoproxy.tcp.errors import TcpError, UnsupportedSocketError, UnsupportedStateError
from mycoproxy.tcp.option_table import TABLE
from mycoproxy.tcp.options import Settings
from mycoproxy.tcp.refusals import refusal
from mycoproxy.tcp.segments import SEQUENCE_SPACE
from mycoproxy.tcp.state import (
    FIN_RECEIVED,
    FIN_SENT,
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
_WANTED = "a connection is wanted (capture_listener is for one that listens)"
_SYNCHRONIZED = FIN_SENT | FIN_RECEIVED | {TcpConnectionState.ESTABLISHED}


def capture(
    sock: socket.socket, *, peek: bool = False, settings: Settings | None = None
) -> TcpState:
    """Put ``sock`` into repair mode, leave it there, and return its state.

    The caller has installed a hold on the connection, both ways. A socket in CLOSE is not put into
    repair mode (there is nothing to keep silent). ``settings`` are what the owner has set, if that
    was read before (``options.read``), by a caller who also has asked for a ``refusal``: both take
    no hold, and together longer than all the rest.

    With ``peek`` the socket is back in normal operation when this returns, and the peer has
    noticed nothing. Without a hold the state is one that the connection has had, as a whole, only
    if nothing arrived meanwhile, and of a socket in CLOSE the pending error is not looked at, as
    that would take it. No task may use the socket during the call.

    Raises ``UnsupportedSocketError`` (not TCP, or one that has what cannot be moved),
    ``UnsupportedStateError`` (LISTEN: see ``listener``; SYN_RECV), ``TcpError`` (the kernel refused
    a step; EPERM is a missing CAP_NET_ADMIN). After an error the socket is as it was, and not in
    repair mode.
    """
    family = tcp_family(sock)
    state = repair.connection_state(sock)
    connected = state is not TcpConnectionState.CLOSE
    if settings is None:
        reason = refusal(sock)
        if reason is not None:
            raise UnsupportedSocketError(f"{_name(sock) or sock} cannot be moved: {reason}")
        settings = options.read(sock, connected=connected)
    if not connected:
        return ended.capture(sock, family=family, settings=settings, peek=peek)
    if state not in _SYNCHRONIZED and state is not TcpConnectionState.SYN_SENT:
        raise UnsupportedStateError(state, _name(sock), _WANTED)
    captured, reuse_address = _capture_live(sock, family=family, settings=settings)
    if peek:
        _leave(sock, reuse_address=reuse_address)
    return captured


def _capture_live(
    sock: socket.socket, *, family: socket.AddressFamily, settings: Settings
) -> tuple[TcpState, int]:
    """The state of a socket that has a connection, and SO_REUSEADDR for ``_leave``."""
    try:
        answer = _READ.run(sock.fileno())
    except batch.OperationError as error:
        if error.index == _ENTER:
            raise TcpError(f"cannot enter repair mode (CAP_NET_ADMIN needed): {error}") from error
        _leave(sock, reuse_address=1)  # the side on which nothing fails, as in ``live.resume``
        raise TcpError(f"cannot capture {_name(sock) or sock}: {error}") from error
    reuse_address, *fields = _ANSWER.unpack_from(answer, _READ.offsets[0])
    try:
        # Read again: a segment may have arrived since.
        state = repair.STATES[fields[0]]
        if state is TcpConnectionState.SYN_SENT:
            captured = connecting.capture(
                sock, family=family, reuse_address=bool(reuse_address), settings=settings
            )
        elif state in _SYNCHRONIZED:
            captured = _state(
                sock,
                fields,
                state,
                family=family,
                reuse_address=bool(reuse_address),
                settings=settings,
            )
        else:
            raise UnsupportedStateError(state, _name(sock), _WANTED)
    except OSError as error:
        _leave(sock, reuse_address=reuse_address)
        raise TcpError(f"cannot capture {_name(sock) or sock}: {error}") from error
    except TcpError:
        _leave(sock, reuse_address=reuse_address)
        raise
    return captured, reuse_address


def discard(sock: socket.socket) -> None:
    """Make closing ``sock`` silent: no FIN and no reset, whoever closes it. Raises ``OSError``."""
    repair.enter(sock)


def tcp_family(sock: socket.socket) -> socket.AddressFamily:
    """AF_INET or AF_INET6. Raises ``UnsupportedSocketError`` for what is not plain TCP."""
    family = sockaddr.tcp_family(sock)
    if family is None:
        kind = "an MPTCP" if sock.proto == abi.IPPROTO_MPTCP else "not a TCP"
        raise UnsupportedSocketError(
            f"{sock} is {kind} socket over IPv4 or IPv6; only plain TCP can be moved"
        )
    return family


def _leave(sock: socket.socket, *, reuse_address: int) -> None:
    """Back to normal. No probe: the peer need not know."""
    repair.leave(sock, probe=False)
    sock.setsockopt(_SOCKET, socket.SO_REUSEADDR, reuse_address)


def _name(sock: socket.socket) -> FourTuple | None:
    try:
        return FourTuple(Endpoint(*sock.getsockname()[:2]), Endpoint(*sock.getpeername()[:2]))
    except OSError:
        return None


# One call for everything that has a fixed size. The order is that of the module's docstring.
_READ: Final = batch.Program(
    [
        batch.getsockopt(_SOCKET, socket.SO_REUSEADDR, must=True),
        batch.setsockopt(_TCP, abi.TCP_REPAIR, abi.U32.pack(abi.TCP_REPAIR_ON), must=True),
        batch.getsockopt(_TCP, abi.TCP_INFO, abi.INFO_ROUND_TRIP.size, must=True),
        batch.getsockname(must=True),
        batch.getpeername(),  # ENOTCONN in SYN_SENT
        batch.getsockopt(_TCP, abi.TCP_MAXSEG, must=True),
        batch.getsockopt(_TCP, abi.TCP_TIMESTAMP, must=True),
        batch.getsockopt(_TCP, abi.TCP_REPAIR_WINDOW, abi.REPAIR_WINDOW.size, must=True),
        batch.setsockopt(_TCP, abi.TCP_REPAIR_QUEUE, abi.U32.pack(abi.TCP_RECV_QUEUE), must=True),
        batch.getsockopt(_TCP, abi.TCP_QUEUE_SEQ, must=True),
        batch.ioctl(abi.SIOCINQ, must=True),
        batch.setsockopt(_TCP, abi.TCP_REPAIR_QUEUE, abi.U32.pack(abi.TCP_SEND_QUEUE), must=True),
        batch.getsockopt(_TCP, abi.TCP_QUEUE_SEQ, must=True),
        batch.ioctl(abi.SIOCOUTQ, must=True),
        batch.ioctl(abi.SIOCOUTQNSD, must=True),
        batch.getsockopt(_SOCKET, abi.SO_MEMINFO, abi.MEMINFO_HEAD.size, must=True),
        batch.getsockopt(_SOCKET, abi.SO_BUF_LOCK, must=True),
        batch.getsockopt(_TCP, abi.TCP_WINDOW_CLAMP, must=True),
        # Nothing that the task may do by accident should reach a queue.
        batch.setsockopt(_TCP, abi.TCP_REPAIR_QUEUE, abi.U32.pack(abi.TCP_NO_QUEUE), must=True),
    ]
)
_ENTER: Final = 1
_INLINE: Final = (next(row.number for row in TABLE if row.name == "SO_OOBINLINE"), 1)
_ANSWER: Final = _READ.unpacker(
    {
        **{0: "i", 2: "B4xBB61xI", 3: "28s", 4: "28s", 5: "I", 6: "I", 7: "5I"},
        **dict.fromkeys((9, 10, 12, 13, 14, 16, 17), "I"),
        15: "II4xI",  # received bytes, with their overhead; SO_RCVBUF; SO_SNDBUF
    }
)


def _state(
    sock: socket.socket,
    fields: Sequence[Any],
    state: TcpConnectionState,
    *,
    family: socket.AddressFamily,
    reuse_address: bool,
    settings: Settings,
) -> TcpState:
    """The state of a connection from the answer of ``_READ``, and its queues."""
    _, info, scales, round_trip, local_name, remote_name, mss_clamp, clock, *numbers = fields
    window = Window._make(numbers[:5])
    received, readable, written, unacknowledged, unsent, *memory = numbers[5:]
    occupied, receive_buffer, send_buffer, lock, window_clamp = memory
    local, local_scope = sockaddr.unpack(local_name)
    remote, remote_scope = sockaddr.unpack(remote_name)
    if local_scope or remote_scope:
        raise UnsupportedSocketError(
            f"{_name(sock)} uses link-local addresses, which mean nothing on another node"
        )
    events = repair.poll(sock)
    fin_received = state in FIN_RECEIVED
    data, urgent = (
        _receive_queue(sock, readable, unread=bool(events & select.POLLPRI), settings=settings)
        if occupied
        else (b"", None)
    )
    captured = TcpState(
        family=family,
        local=local,
        remote=remote,
        state=state,
        send=_send_queue(sock, state, written, unacknowledged, unsent),
        receive=ReceiveQueue((received - fin_received) % SEQUENCE_SPACE, data, urgent),
        window=window.settable(received),
        negotiated=_negotiated(mss_clamp, clock, info=info, scales=scales),
        buffers=Buffers(send_buffer, receive_buffer, lock, window_clamp),
        reuse_address=reuse_address,
        options=settings,
        shut_down=bool(events & select.POLLRDHUP) and not fin_received,
        round_trip=round_trip,
    )
    if data or captured.send.sent or captured.send.unsent:
        repair.select_queue(sock, abi.TCP_NO_QUEUE)
    return captured


def _negotiated(mss_clamp: int, value: int, *, info: int, scales: int) -> Negotiated:
    timestamps = None
    if info & abi.TCPI_OPT_TIMESTAMPS:
        # Up to the next even number: an older kernel's lowest bit is part of its clock, and the
        # clock must not go back (PAWS).
        microseconds = bool(info & abi.TCPI_OPT_USEC_TS)
        clock = value & ~1 if microseconds else (value + 1) & 0xFFFFFFFE
        timestamps = Timestamps(clock, microseconds)
    return Negotiated(
        mss_clamp,
        WindowScale(scales & 15, scales >> 4) if info & abi.TCPI_OPT_WSCALE else None,
        bool(info & abi.TCPI_OPT_SACK),
        timestamps,
        bool(info & abi.TCPI_OPT_ECN),
    )


def _receive_queue(
    sock: socket.socket, to_mark: int, *, unread: bool, settings: Settings
) -> tuple[bytes, int | None]:
    """What is in it, and the offset of urgent data that is ``unread``.

    SIOCINQ and reading stop at the mark of urgent data. With SO_OOBINLINE set the count is that of
    all there is, without a FIN (tcp_inq, net/ipv4/tcp.c), and the urgent byte is read in its place.
    If the owner has read it already, out of band, it is left out.
    """
    inline = _INLINE in settings
    repair.select_queue(sock, abi.TCP_RECV_QUEUE)
    try:
        if inline:
            sock.setsockopt(_SOCKET, socket.SO_OOBINLINE, 0)
            to_mark = repair.queued_bytes(sock, abi.SIOCINQ)
        sock.setsockopt(_SOCKET, socket.SO_OOBINLINE, 1)
        length = repair.queued_bytes(sock, abi.SIOCINQ)
        if length == to_mark:
            return _checked(sock, repair.peek_all(sock, length) if length else b"", length), None
        before = repair.peek_all(sock, to_mark)[:to_mark] if to_mark else b""
        after = _behind_mark(sock, to_mark, length - to_mark)
    finally:
        sock.setsockopt(_SOCKET, socket.SO_OOBINLINE, int(inline))
    if not unread and not inline:
        return _checked(sock, before + after[1:], length - 1), None
    return _checked(sock, before + after, length), to_mark if unread else None


def _behind_mark(sock: socket.socket, to_mark: int, length: int) -> bytes:
    try:
        return repair.peek_at(sock, to_mark, length)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        raise UnsupportedSocketError(
            f"{_name(sock)} has urgent data (MSG_OOB) in its receive queue, behind which a kernel "
            "before 6.9 lets nobody look; it can be moved once what is up to that was read"
        ) from error


def _checked(sock: socket.socket, data: bytes, length: int) -> bytes:
    if len(data) != length:
        raise TcpError(
            f"{_name(sock)}: {length} bytes are in the receive queue, {len(data)} could be read: "
            "no hold?"
        )
    return data


def _send_queue(
    sock: socket.socket, state: TcpConnectionState, following: int, length: int, unsent: int
) -> SendQueue:
    """``following`` is the number after the last byte or FIN, the counts include a FIN."""
    una = (following - length) % SEQUENCE_SPACE
    if length and state in FIN_SENT:  # it is the last thing that was queued
        length -= 1
        unsent = max(unsent - 1, 0)
    if not length:
        return SendQueue(una, b"", b"")
    repair.select_queue(sock, abi.TCP_SEND_QUEUE)
    # A first segment that is acknowledged in part is kept whole, and only whole segments are
    # copied (tcp_peek_sndq, net/ipv4/tcp.c). Where the room ends, the last one may be cut short and
    # counted as whole: more is said to be there than there was room for, and the end is missing.
    try:
        data = repair.peek_queue(sock, length)
        is_whole = len(data) <= length
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
        is_whole = False
    if not is_whole:
        data = repair.peek_queue(sock, length + _LONGEST_SEGMENT)
    data = data[-length:]
    if len(data) != length:
        raise TcpError(
            f"{_name(sock)}: {length} bytes are in the send queue, {len(data)} could be read"
        )
    border = length - unsent
    return SendQueue(una, data[:border], data[border:])
