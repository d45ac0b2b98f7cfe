"""Put a captured connection into a closed socket.

Order, and why (compare CRIU's ``soccr/soccr.c``):

1. clear the socket (CRIU restores it closed *and shut down*), enter repair mode;
2. bind; sequence numbers, which the kernel takes only now; TCP_MAXSEG, because the segment size is
   computed in connect (with TCP_REPAIR_OPTIONS alone it starts at 524 bytes);
3. connect, which in repair mode sends nothing;
4. negotiated options, our timestamp clock;
5. buffers large enough for the queues; the receive queue; what was sent and not acknowledged; the
   receive buffer's own size again, lest a window be announced that it does not have;
6. the window, last: writing the queues changes it; its clamp after it, which thereby learns that
   such a window was announced already (``tcp_set_window_clamp``, net/ipv4/tcp.c).

Nothing was sent so far, and closing the socket is still silent. ``release`` (in ``live``) is the
point of going live: only there the bytes follow that were never sent, because in repair mode
everything that is written counts as sent; and only there a FIN, which comes after them. So the
socket is ESTABLISHED here whatever half-closed state it will be in.
"""

import errno
import socket

from mycoproxy.addresses import Endpoint
from mycoproxy.tcp import abi, closing, repair
from mycoproxy.tcp.abi import TcpConnectionState
from mycoproxy.tcp.errors import TcpError, UnsupportedSocketError, UnsupportedStateError
from mycoproxy.tcp.segments import SEQUENCE_SPACE
from mycoproxy.tcp.state import FIN_RECEIVED, FIN_SENT, Negotiated, TcpState, WindowScale

_TCP = socket.IPPROTO_TCP
_SOCKET = socket.SOL_SOCKET
# tcp_sock_set_maxseg, net/ipv4/tcp.c: TCP_MIN_MSS and MAX_TCP_WINDOW
_SMALLEST_MAXSEG = 88
_LARGEST_MAXSEG = 32767

_KNOWN = (FIN_SENT | FIN_RECEIVED) | {
    TcpConnectionState.ESTABLISHED,
    TcpConnectionState.SYN_SENT,
    TcpConnectionState.CLOSE,
}


def establish(
    sock: socket.socket,
    state: TcpState,
    *,
    local: Endpoint | None = None,
    remote: Endpoint | None = None,
) -> None:
    """Put ``state`` into ``sock``, with another local or remote endpoint if one is given.

    ``sock`` is fresh, or what CRIU restored of a connection with ``tcp-close``; a duplicate of
    another task's descriptor will do, and that task's epoll registrations stay valid. It needs a
    route to the peer and the local address in its network namespace. A shield keeps the peer's
    packets away until this is done.

    The socket is left **in repair mode**: nothing was sent, and closing it is silent. Raises
    ``TcpError`` (naming the step the kernel refused), ``UnsupportedStateError`` (``sock`` is in
    use, or ``state`` is none that a connection can be moved in), ``UnsupportedSocketError``
    (another family). After an error the socket is closed, silent, and not in repair mode.

    A ``state`` in SYN_SENT is only bound here, and one in CLOSE not touched: ``release`` does it.
    """
    wanted = state.moved_to(local=local, remote=remote)
    if wanted.state not in _KNOWN:
        raise UnsupportedStateError(wanted.state, wanted.connection)
    if sock.family != wanted.family:
        raise UnsupportedSocketError(
            f"{wanted.connection} needs a socket of {wanted.family.name}, "
            f"this one is {socket.AddressFamily(sock.family).name}"
        )
    if wanted.state is TcpConnectionState.CLOSE:
        return  # see ``ended``: there is nothing that would have to be silent
    found = repair.connection_state(sock)
    if found is not TcpConnectionState.CLOSE:
        raise TcpError(
            f"cannot establish {wanted.connection}: the socket is {found.name}, not closed"
        )
    step = "clear the socket"
    try:
        repair.disconnect(sock)
        step = "enter repair mode (CAP_NET_ADMIN needed)"
        repair.enter(sock)
        step = f"bind to {wanted.local} (the address must exist in the namespace)"
        _bind(sock, wanted.local)
        if wanted.state is TcpConnectionState.SYN_SENT:
            return
        step = "set the sequence numbers"
        repair.select_queue(sock, abi.TCP_RECV_QUEUE)
        repair.set_queue_sequence(
            sock, (wanted.receive.next - len(wanted.receive.data)) % SEQUENCE_SPACE
        )
        repair.select_queue(sock, abi.TCP_SEND_QUEUE)
        # An acknowledged FIN is sent once more, to the kernel itself only.
        fin = wanted.state is TcpConnectionState.FIN_WAIT2
        repair.set_queue_sequence(sock, (wanted.send.una - fin) % SEQUENCE_SPACE)
        step = f"set the segment size {wanted.negotiated.mss_clamp}"
        # Loopback negotiates more than may be asked for; TCP_REPAIR_OPTIONS takes it.
        segment_size = max(_SMALLEST_MAXSEG, min(wanted.negotiated.mss_clamp, _LARGEST_MAXSEG))
        sock.setsockopt(_TCP, abi.TCP_MAXSEG, segment_size)
        step = f"connect to {wanted.remote} (a route must exist)"
        sock.connect(wanted.remote)
        step = "set the negotiated options"
        _set_negotiated(sock, wanted.negotiated)
        step = "fill the queues"
        _fill_queues(sock, wanted)
        step = f"set the window {wanted.window}"
        window = closing.window_before_fin(wanted)
        sock.setsockopt(_TCP, abi.TCP_REPAIR_WINDOW, abi.REPAIR_WINDOW.pack(*window))
        sock.setsockopt(_TCP, abi.TCP_WINDOW_CLAMP, wanted.buffers.window_clamp)
        repair.select_queue(sock, abi.TCP_NO_QUEUE)
    except OSError as error:
        abort(sock)
        raise TcpError(f"cannot establish {wanted.connection}: cannot {step}: {error}") from error


def abort(sock: socket.socket) -> None:
    """Take back ``establish``: ``sock`` is closed, nothing is sent, no error is pending.

    The socket stays bound. For a socket that ``establish`` left in repair mode.
    """
    repair.enter(sock)
    repair.disconnect(sock)
    repair.leave(sock, probe=False)


def _bind(sock: socket.socket, local: Endpoint) -> None:
    try:
        sock.bind(local)
    except OSError as error:
        # A socket stays bound when it is disconnected, and cannot be bound again.
        if error.errno != errno.EINVAL or sock.getsockname()[:2] != local:
            raise


def _set_negotiated(sock: socket.socket, negotiated: Negotiated) -> None:
    options = abi.REPAIR_OPT.pack(abi.TCPOPT_MSS, negotiated.mss_clamp)
    if negotiated.sack:
        options += abi.REPAIR_OPT.pack(abi.TCPOPT_SACK_PERM, 0)
    # Also without scaling: connect has chosen a shift by this namespace's sysctl, and only an
    # answer to a SYN would take it back. The peer would see windows a hundred times too small.
    scale = negotiated.window_scale or WindowScale(0, 0)
    options += abi.REPAIR_OPT.pack(abi.TCPOPT_WINDOW, scale.send | scale.receive << 16)
    if negotiated.timestamps is not None:
        options += abi.REPAIR_OPT.pack(abi.TCPOPT_TIMESTAMP, 0)
    sock.setsockopt(_TCP, abi.TCP_REPAIR_OPTIONS, options)
    if negotiated.timestamps is not None:
        value = negotiated.timestamps.clock | negotiated.timestamps.microseconds
        sock.setsockopt(_TCP, abi.TCP_TIMESTAMP, abi.U32.pack(value))


def _fill_queues(sock: socket.socket, state: TcpState) -> None:
    queued = len(state.send.sent) + len(state.send.unsent)
    repair.force_send_buffer(sock, repair.room(state.buffers.send, queued))
    if state.receive.data:
        repair.force_receive_buffer(
            sock, repair.room(state.buffers.receive, len(state.receive.data))
        )
        repair.select_queue(sock, abi.TCP_RECV_QUEUE)
        repair.write_queue(sock, state.receive.data)
    repair.force_receive_buffer(sock, state.buffers.receive)
    if state.send.sent:
        repair.select_queue(sock, abi.TCP_SEND_QUEUE)
        repair.write_queue(sock, state.send.sent)
