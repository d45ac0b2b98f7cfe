"""Half-closed states: a re-established socket goes through the closing segments again.

``establish`` makes an ESTABLISHED socket; what was closed since is played to it, in the order in
which it happened (compare ``soccr/soccr.c`` of CRIU):

========== =====================================================================================
CLOSE_WAIT the peer's FIN, as a segment over loopback
FIN_WAIT1  shutdown(2) of a live socket: our FIN goes out (again); if the peer has it, it
           acknowledges it once more
FIN_WAIT2  shutdown(2) in repair mode, which queues the FIN and sends nothing, then the peer's
           acknowledgement as a segment
CLOSING    as FIN_WAIT1, then the peer's FIN
LAST_ACK   the peer's FIN, then as FIN_WAIT1
========== =====================================================================================

The owner sees what it would have seen: ``read() == 0`` after the last byte, EPOLLRDHUP. The kernel
may acknowledge the peer's FIN a second time; a peer that has sent one takes no harm.
"""

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from mycoproxy.tcp import abi, repair
from mycoproxy.tcp.abi import TcpConnectionState
from mycoproxy.tcp.errors import TcpError
from mycoproxy.tcp.playing import named_as, of_any_device, peers_data, peers_segment
from mycoproxy.tcp.replay import inject
from mycoproxy.tcp.segments import ACK, FIN, SEQUENCE_SPACE
from mycoproxy.tcp.state import TcpState, Window

_LOST = (
    "did not arrive at its socket: release has to be called on a thread of the socket's network "
    "namespace, without a hold"
)
_NO_FIN = (
    TcpConnectionState.ESTABLISHED,
    TcpConnectionState.FIN_WAIT1,
    TcpConnectionState.FIN_WAIT2,
)


def window_before_played(state: TcpState) -> Window:
    """The receive window that a socket needs before the rest of what the peer sent is played to it.

    All of that has to be inside of it, and the last announcement cannot have been later.
    """
    window, end = state.window, state.next_expected
    played = len(state.receive.data) - state.played_from + state.fin_received
    if not played:
        return window
    begin = (end - played) % SEQUENCE_SPACE
    edge = (window.rcv_wup + window.rcv_wnd - end) % SEQUENCE_SPACE  # beyond what was played
    if edge > SEQUENCE_SPACE // 2:
        edge = 0
    since = (begin - window.rcv_wup) % SEQUENCE_SPACE
    announced = window.rcv_wup if since < SEQUENCE_SPACE // 2 else begin
    room = (end + edge - announced) % SEQUENCE_SPACE
    return window._replace(rcv_wup=announced, rcv_wnd=room)


def queue_acknowledged_fin(sock: socket.socket, state: TcpState) -> None:
    """The silent half of FIN_WAIT2: ``sock`` is in repair mode. Raises ``OSError``."""
    if state.state is TcpConnectionState.FIN_WAIT2:
        repair.select_queue(sock, abi.TCP_SEND_QUEUE)
        sock.shutdown(socket.SHUT_WR)


def play_the_rest(sock: socket.socket, state: TcpState) -> None:
    """The rest, on a live socket whose queues are filled: urgent data, what was closed.

    Raises ``OSError``, ``TcpError``.
    """
    state = named_as(sock, state)
    if state.receive.urgent is not None:
        _play_urgent(sock, state)
    if state.fin_received and state.state is not TcpConnectionState.CLOSING:
        _play_fin(sock, state)
    if state.state is TcpConnectionState.FIN_WAIT2:
        with of_any_device(sock):
            inject([peers_segment(state, flags=ACK, sequence=state.receive.next)])
    elif state.fin_sent:
        sock.shutdown(socket.SHUT_WR)
    if state.state is TcpConnectionState.CLOSING:
        _play_fin(sock, state)
    if state.shut_down:
        sock.shutdown(socket.SHUT_RD)


def _play_urgent(sock: socket.socket, state: TcpState) -> None:
    with of_any_device(sock), _with_room(sock, state):
        inject(peers_data(state, state.played_from))
    if not repair.poll(sock) & select.POLLPRI:
        raise TcpError(f"the urgent data of {state.remote} {_LOST}")


def _play_fin(sock: socket.socket, state: TcpState) -> None:
    # Even a FIN takes some of the receive buffer, which may be full.
    with of_any_device(sock), _with_room(sock, state):
        inject([peers_segment(state, flags=FIN | ACK, sequence=state.receive.next)])
    if repair.connection_state(sock) in _NO_FIN:
        raise TcpError(f"the FIN of {state.remote} {_LOST}")


@contextmanager
def _with_room(sock: socket.socket, state: TcpState) -> Iterator[None]:
    repair.force_receive_buffer(sock, repair.room(state.buffers.receive, len(state.receive.data)))
    try:
        yield
    finally:
        repair.force_receive_buffer(sock, state.buffers.receive)
