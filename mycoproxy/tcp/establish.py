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
import os
import socket
from typing import Final

from mycoproxy.addresses import Endpoint
from mycoproxy.tcp import abi, batch, closing, options, repair, round_trip, sockaddr
from mycoproxy.tcp.abi import TcpConnectionState
from mycoproxy.tcp.errors import TcpError, UnsupportedSocketError, UnsupportedStateError
from mycoproxy.tcp.option_table import When
from mycoproxy.tcp.segments import SEQUENCE_SPACE
from mycoproxy.tcp.state import FIN_RECEIVED, FIN_SENT, TcpState, WindowScale

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
) -> list[str]:
    """Put ``state`` into ``sock``, with another local or remote endpoint if one is given.

    ``sock`` is fresh, or what CRIU restored of a connection with ``tcp-close``; a duplicate of
    another task's descriptor will do, and that task's epoll registrations stay valid. It needs a
    route to the peer and the local address in its network namespace. A shield keeps the peer's
    packets away until this is done.

    The socket is left **in repair mode**: nothing was sent, and closing it is silent. Returns what
    could not be kept of the owner's options, in words. Raises ``TcpError`` (naming the step the
    kernel refused), ``UnsupportedStateError`` (``sock`` is in use, or ``state`` is none that a
    connection can be moved in), ``UnsupportedSocketError`` (another family). After an error the
    socket is closed, silent, and not in repair mode.

    A ``state`` in SYN_SENT is only bound here, and one in CLOSE not touched: ``release`` does it.
    """
    wanted = (
        state if local is None and remote is None else state.moved_to(local=local, remote=remote)
    )
    if wanted.state not in _KNOWN:
        raise UnsupportedStateError(
            wanted.state, wanted.connection, "a state that capture returns is wanted"
        )
    if sockaddr.tcp_family(sock) != wanted.family:
        raise UnsupportedSocketError(
            f"{wanted.connection} needs a socket of {wanted.family.name}, "
            f"this one is {socket.AddressFamily(sock.family).name}"
        )
    remarks = options.apply(sock, wanted.options, When.BEFORE_BIND) if wanted.options else []
    if wanted.negotiated.ecn:
        remarks.append("explicit congestion notification (ECN): the kernel cannot take it over")
    if wanted.state is TcpConnectionState.CLOSE:
        return remarks  # see ``ended``: there is nothing that would have to be silent
    found = repair.connection_state(sock)
    if found is not TcpConnectionState.CLOSE:
        raise TcpError(
            f"cannot establish {wanted.connection}: the socket is {found.name}, not closed"
        )
    try:
        if wanted.state is TcpConnectionState.SYN_SENT:
            _bind_only(sock, wanted.local)
            return remarks
        _connect(sock, wanted)
        if wanted.played_from or wanted.send.sent:
            _fill_queues(sock, wanted)
        if wanted.options:
            remarks += options.apply(sock, wanted.options, When.BEFORE_LIVE)
        window = (
            closing.window_before_played(wanted)
            if wanted.receive.data or wanted.fin_received
            else wanted.window
        )
        _FINISH.run(
            sock.fileno(),
            _FINISH_INPUTS.pack(
                repair.force_value(wanted.buffers.receive),
                *window,
                wanted.buffers.window_clamp,
                abi.TCP_NO_QUEUE,
            ),
        )
    except OSError as error:
        abort(sock)
        raise TcpError(f"cannot establish {wanted.connection}: cannot {error.strerror}") from error
    return remarks


def abort(sock: socket.socket) -> None:
    """Take back ``establish``: ``sock`` is closed, nothing is sent, no error is pending.

    The socket stays bound. For a socket that ``establish`` left in repair mode.
    """
    repair.enter(sock)
    repair.disconnect(sock)
    repair.leave(sock, probe=False)


def _begin(family: socket.AddressFamily) -> batch.Program:
    """Up to the negotiated options; see the module's docstring."""
    size = sockaddr.SIZES[family]
    number = bytes(4)
    return batch.Program(
        [
            # AF_UNSPEC: the socket becomes closed and no longer shut down (tcp_disconnect).
            batch.connect(16, must=True, name="clear the socket"),
            batch.getsockopt(_SOCKET, socket.SO_ERROR),  # which clears it
            _set(abi.TCP_REPAIR, name="enter repair mode (CAP_NET_ADMIN needed)"),
            batch.bind(size, name="bind"),
            _set(abi.TCP_REPAIR_QUEUE, name="select the receive queue"),
            _set(abi.TCP_QUEUE_SEQ, name="set the sequence number of the receive queue"),
            _set(abi.TCP_REPAIR_QUEUE, name="select the send queue"),
            _set(abi.TCP_QUEUE_SEQ, name="set the sequence number of the send queue"),
            _set(abi.TCP_MAXSEG, name="set the segment size"),
            batch.connect(size, must=True, name="connect (a route must exist)"),
            batch.setsockopt(
                _TCP,
                abi.TCP_REPAIR_OPTIONS,
                bytes(_NEGOTIATED * abi.REPAIR_OPT.size),
                must=True,
                name="set the negotiated options",
            ),
            _set(abi.TCP_TIMESTAMP, name="set the timestamp clock"),
            batch.setsockopt(
                _SOCKET, abi.SO_SNDBUFFORCE, number, must=True, name="set the send buffer"
            ),
        ]
    )


def _set(option: int, size: int = 4, *, name: str) -> batch.Operation:
    return batch.setsockopt(_TCP, option, bytes(size), must=True, name=name)


_NEGOTIATED: Final = 4  # MSS, window scale, SACK, timestamps
_BIND: Final = 3
_BEGIN: Final = {family: _begin(family) for family in sockaddr.SIZES}
_BEGIN_INPUTS: Final = {
    family: _BEGIN[family].packer(["16x", "I", f"{size}s", *"IIIII", f"{size}s", "8I", "I", "I"])
    for family, size in sockaddr.SIZES.items()
}
_FINISH: Final = batch.Program(
    [
        batch.setsockopt(
            _SOCKET, abi.SO_RCVBUFFORCE, bytes(4), must=True, name="set the receive buffer"
        ),
        _set(abi.TCP_REPAIR_WINDOW, abi.REPAIR_WINDOW.size, name="set the window"),
        _set(abi.TCP_WINDOW_CLAMP, name="set the window's clamp"),
        _set(abi.TCP_REPAIR_QUEUE, name="select no queue"),
    ]
)
_FINISH_INPUTS: Final = _FINISH.packer(["I", "5I", "I", "I"])


def _connect(sock: socket.socket, state: TcpState) -> None:
    """Steps 1 to 4, and a send buffer with room for the queue."""
    send, receive = state.send, state.receive
    negotiated = state.negotiated
    # One number earlier, for what the peer has acknowledged already: a FIN, which is queued again
    # by ``closing``, or a byte ahead of what was sent, which is acknowledged by ``round_trip``.
    again = state.state is TcpConnectionState.FIN_WAIT2 or bool(round_trip.byte_ahead(state))
    # Also without scaling: connect has chosen a shift by this namespace's sysctl, and only an
    # answer to a SYN would take it back. The peer would see windows a hundred times too small.
    scale = negotiated.window_scale or _NO_SCALING
    clock = negotiated.timestamps
    family = state.family
    program = _BEGIN[family]
    answer = program.run(
        sock.fileno(),
        _BEGIN_INPUTS[family].pack(
            abi.TCP_REPAIR_ON,
            sockaddr.pack(state.local, family),
            abi.TCP_RECV_QUEUE,
            (receive.next - len(receive.data)) % SEQUENCE_SPACE,
            abi.TCP_SEND_QUEUE,
            (send.una - again) % SEQUENCE_SPACE,
            # Loopback negotiates more than may be asked for; TCP_REPAIR_OPTIONS takes it.
            max(_SMALLEST_MAXSEG, min(negotiated.mss_clamp, _LARGEST_MAXSEG)),
            sockaddr.pack(state.remote, family),
            abi.TCPOPT_MSS,
            negotiated.mss_clamp,
            abi.TCPOPT_WINDOW,
            scale.send | scale.receive << 16,
            # 0 is no option to tcp_repair_options_est (net/ipv4/tcp.c), which passes it over.
            abi.TCPOPT_SACK_PERM if negotiated.sack else 0,
            0,
            abi.TCPOPT_TIMESTAMP if clock else 0,
            0,
            clock.clock | clock.microseconds if clock else 0,
            repair.force_value(repair.room(state.buffers.send, len(send.sent) + len(send.unsent))),
        ),
    )
    _check_bind(sock, state.local, -program.result(answer, _BIND))


_NO_SCALING: Final = WindowScale(0, 0)


def _bind_only(sock: socket.socket, local: Endpoint) -> None:
    repair.disconnect(sock)
    repair.enter(sock)
    try:
        sock.bind(local)
    except OSError as error:
        _check_bind(sock, local, error.errno or 0)


def _check_bind(sock: socket.socket, local: Endpoint, number: int) -> None:
    """A socket stays bound when it is disconnected, and cannot be bound again."""
    if number and (number != errno.EINVAL or sock.getsockname()[:2] != local):
        raise OSError(
            number,
            f"bind to {local} (the address must exist in the namespace): {os.strerror(number)}",
        )


def _fill_queues(sock: socket.socket, state: TcpState) -> None:
    try:
        if state.played_from:
            repair.force_receive_buffer(
                sock, repair.room(state.buffers.receive, len(state.receive.data))
            )
            repair.select_queue(sock, abi.TCP_RECV_QUEUE)
            repair.write_queue(sock, state.receive.data[: state.played_from])
        if state.send.sent:
            repair.select_queue(sock, abi.TCP_SEND_QUEUE)
            if ahead := round_trip.byte_ahead(state):
                repair.write_queue(sock, ahead)
            repair.write_queue(sock, state.send.sent)
    except OSError as error:
        raise OSError(error.errno, f"fill the queues: {error.strerror}") from error
