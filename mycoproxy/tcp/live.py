"""Leave repair mode: a captured connection goes on where it was, an established one goes live.

Leaving can send a window probe. The peer answers it with what it has acknowledged so far, which
settles the bytes that were sent and not acknowledged in one round trip. That is all the probe
does: its sequence number is before the peer's window, so the peer looks neither at its
acknowledgement nor at its window (``tcp_validate_incoming``, net/ipv4/tcp_input.c). A connection
that has sent nothing that is not acknowledged goes live without one: a packet and its answer take
four times as long as all the rest of it, and there may be thousands.
"""

import socket

from mycoproxy.tcp import abi, closing, connecting, ended, options, repair, round_trip
from mycoproxy.tcp.abi import TcpConnectionState
from mycoproxy.tcp.errors import TcpError
from mycoproxy.tcp.option_table import When
from mycoproxy.tcp.playing import named_as, of_any_device, peers_segment
from mycoproxy.tcp.replay import inject
from mycoproxy.tcp.segments import ACK, SEQUENCE_SPACE
from mycoproxy.tcp.state import TcpState, Window

_TCP = socket.IPPROTO_TCP
_SOCKET = socket.SOL_SOCKET


def resume(sock: socket.socket, state: TcpState | None = None) -> list[str]:
    """Undo ``capture``: the connection goes on where it was.

    SO_REUSEADDR, which the kernel clears here, is set to what ``state`` says; without a state it is
    set, because that is the side on which no server's restart can fail with EADDRINUSE. Lift the
    hold first, and call it on a thread of the socket's network namespace. Returns what could not be
    given back, in words: of a socket in CLOSE some errors. Raises ``OSError``, ``TcpError``.
    """
    if state is not None and state.state is TcpConnectionState.CLOSE:
        return ended.restore(sock, state)
    repair.leave(sock, probe=state is None or bool(state.send.sent))
    if state is not None and state.state is not TcpConnectionState.SYN_SENT:
        _remember_closed_window(sock, state)
    _set_reuse_address(sock, state is None or state.reuse_address)
    return []


def release(sock: socket.socket, state: TcpState) -> list[str]:
    """Go live with an established socket, and send what was never sent.

    Call it **after the shield is lifted** (what it sends would be lost, and a socket without a
    round trip estimate waits a second before it sends again) and **before the task runs** (which
    could write ahead of the unsent bytes). Packets that arrive earlier are handled like any.

    On a thread of the socket's network namespace: half-closed states and ends are played to it
    over that namespace's loopback.

    Every unsent byte is in the socket's send buffer afterwards; then follow the closing segments
    of a half-closed state, the buffers get the sizes they had, auto-tuned if they were, and whoever
    waits for the socket is woken. Returns what could not be kept, in words. Raises ``TcpError``;
    the connection is live then.
    """
    if state.state is TcpConnectionState.CLOSE:
        return ended.restore(sock, state) + _set_all_options(sock, state)
    try:
        if state.state is TcpConnectionState.SYN_SENT:
            repair.leave(sock, probe=False)
            _set_reuse_address(sock, state.reuse_address)
            connecting.connect(sock, state)
            return _set_all_options(sock, state)
        round_trip.play(sock, state)
        closing.queue_acknowledged_fin(sock, state)
        # A FIN is answered like a probe. A second answer would find nobody any more, and be reset.
        repair.leave(sock, probe=bool(state.send.sent) and not state.fin_sent)
        return _go_live(sock, state, state.send.unsent)
    except OSError as error:
        raise TcpError(f"cannot release {state.connection}: {error}") from error


def _go_live(sock: socket.socket, state: TcpState, unsent: bytes) -> list[str]:
    """All that follows leaving repair mode. Raises ``TcpError``."""
    try:
        _remember_closed_window(sock, state)
        _set_reuse_address(sock, state.reuse_address)
        remarks = options.apply(sock, state.options, When.LIVE) if state.options else []
        if unsent:
            _send_unsent(sock, unsent)
        if (
            state.state is not TcpConnectionState.ESTABLISHED
            or state.shut_down
            or state.receive.urgent is not None
        ):
            closing.play_the_rest(sock, state)
        _acknowledge_what_is_due(sock, state)
        repair.force_send_buffer(sock, state.buffers.send)
        repair.set_buffer_lock(sock, state.buffers.lock)
        if state.receive.data:
            _wake_readers(sock)
    except OSError as error:
        raise TcpError(f"cannot release {state.connection}: {error}") from error
    return remarks


def release_again(sock: socket.socket, state: TcpState) -> list[str]:
    """``release``, where another process may have done all of it, or some of it, or nothing.

    Call it before the task runs, as ``release``, and otherwise as that. Raises ``TcpError``.
    """
    if state.state is TcpConnectionState.CLOSE or repair.is_in_repair(sock):
        return release(sock, state)
    if state.state is TcpConnectionState.SYN_SENT:
        return []
    # It has left repair mode, and is ESTABLISHED until what was closed is played, at the end.
    if repair.connection_state(sock) is not TcpConnectionState.ESTABLISHED:
        return []
    repair.enter(sock)
    try:
        repair.select_queue(sock, abi.TCP_SEND_QUEUE)
        written = repair.queue_sequence(sock)
        repair.select_queue(sock, abi.TCP_NO_QUEUE)
    finally:
        repair.leave(sock, probe=False)
    end = (state.send.una + len(state.send.sent) + len(state.send.unsent)) % SEQUENCE_SPACE
    missing = (end - written) % SEQUENCE_SPACE
    return _go_live(sock, state, state.send.unsent[-missing:] if missing else b"")


def _set_all_options(sock: socket.socket, state: TcpState) -> list[str]:
    """Of a socket without a connection; what had to be set before bind(2) is."""
    return [
        remark
        for when in (When.BEFORE_LIVE, When.LIVE)
        for remark in options.apply(sock, state.options, when)
    ]


def _remember_closed_window(sock: socket.socket, state: TcpState) -> None:
    """After the probe, take the window to be what the *peer* believes it is.

    If the receive queue was full the peer was told of a window of 0, and waits. The restored queue
    takes less memory than the original, so the probe may announce a window; the peer does not look
    at it, but the kernel thinks it does, and sends no update when the task reads. The peer would
    go on only with its own probe, after 200 ms or, in back-off, much later. With the window set to
    what it was, the task's first read sends the update.

    A peer that may send a full segment needs no update, and might be sending right now: then
    nothing is done.
    """
    if state.fin_received:  # the peer sends no more
        return
    edge = state.window.rcv_wup + state.window.rcv_wnd
    if (edge - state.receive.next) % SEQUENCE_SPACE >= state.negotiated.mss_clamp:
        return
    repair.enter(sock)
    try:
        now = Window._make(
            abi.REPAIR_WINDOW.unpack(
                sock.getsockopt(_TCP, abi.TCP_REPAIR_WINDOW, abi.REPAIR_WINDOW.size)
            )
        )
        announced = now._replace(rcv_wnd=state.window.rcv_wnd, rcv_wup=state.window.rcv_wup)
        # A segment that is out of order may have come already.
        announced = announced.settable(state.receive.next)
        sock.setsockopt(_TCP, abi.TCP_REPAIR_WINDOW, abi.REPAIR_WINDOW.pack(*announced))
    finally:
        repair.leave(sock, probe=False)


def _acknowledge_what_is_due(sock: socket.socket, state: TcpState) -> None:
    """Send the acknowledgement that the source had delayed when it was captured.

    Up to 200 ms lie between a segment's arrival and its acknowledgement (``tcp_send_delayed_ack``,
    net/ipv4/tcp_output.c); the peer of a socket that is captured in between would wait for its
    timeout, and send all of it again. Of the window probe it does not take it. The kernel answers
    at once what is before its window, with an acknowledgement that is inside the peer's.
    """
    announced = state.window.rcv_wup
    if announced != state.next_expected:
        before = (announced - 1) % SEQUENCE_SPACE
        with of_any_device(sock):
            inject([peers_segment(named_as(sock, state), flags=ACK, sequence=before)])


def _set_reuse_address(sock: socket.socket, value: bool) -> None:
    sock.setsockopt(_SOCKET, socket.SO_REUSEADDR, int(value))


def _wake_readers(sock: socket.socket) -> None:
    """Tell whoever waits that there is something to read.

    Filling the receive queue in repair mode wakes nobody, and an edge-triggered epoll would wait
    for the *next* byte. Setting SO_RCVLOWAT, to any value, does it (``tcp_set_rcvlowat``,
    net/ipv4/tcp.c).
    """
    low_water = sock.getsockopt(_SOCKET, socket.SO_RCVLOWAT)
    sock.setsockopt(_SOCKET, socket.SO_RCVLOWAT, low_water)


def _send_unsent(sock: socket.socket, data: bytes) -> None:
    """Write ``data`` past TCP_NOTSENT_LOWAT, which may be the task's own."""
    low_water = sock.getsockopt(_TCP, abi.TCP_NOTSENT_LOWAT, abi.U32.size)
    sock.setsockopt(_TCP, abi.TCP_NOTSENT_LOWAT, abi.U32.pack(0xFFFFFFFF))
    try:
        repair.write_queue(sock, data)
    finally:
        sock.setsockopt(_TCP, abi.TCP_NOTSENT_LOWAT, low_water)
