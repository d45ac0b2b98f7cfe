"""What the peer has sent, as segments that are played to the socket that is to have it.

Data normally goes into the receive queue in repair mode. Two things have to be played: what comes
to a listener, and urgent data, whose mark only a segment can set (``tcp_check_urg``,
net/ipv4/tcp_input.c).
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from mycoproxy.addresses import Endpoint
from mycoproxy.tcp.segments import ACK, URG, Segment, on_the_wire, segment
from mycoproxy.tcp.state import TcpState

_PIECE: Final = 16 * 1024
_IFNAMSIZ: Final = 16  # include/uapi/linux/if.h


def named_as(sock: socket.socket, state: TcpState) -> TcpState:
    """``state`` with the name that ``establish`` has given ``sock``, which may be another."""
    return state.moved_to(
        local=Endpoint(*sock.getsockname()[:2]), remote=Endpoint(*sock.getpeername()[:2])
    )


def peers_segment(
    state: TcpState,
    *,
    flags: int,
    sequence: int,
    options: bytes = b"",
    data: bytes = b"",
    urgent: int = 0,
) -> Segment:
    """A segment that says nothing new about acknowledgement and window."""
    scale = state.negotiated.window_scale
    return segment(
        on_the_wire(state.connection),
        flags=flags,
        sequence=sequence,
        acknowledgement=state.send.una,
        window=state.window.snd_wnd >> (scale.send if scale else 0),
        options=options,
        data=data,
        urgent=urgent,
    )


def peers_data(state: TcpState, begin: int) -> Iterator[Segment]:
    """What is in the receive queue from offset ``begin`` on, its mark of urgent data included."""
    data, mark = state.receive.data, state.receive.urgent
    first = state.receive.next - len(data)
    at = begin
    while at < len(data):
        end = min(at + _PIECE, len(data))
        if mark is not None and at < mark < end:
            end = mark
        if at == mark:
            # The pointer is to the byte after the urgent one (RFC 6093, 3.1), but with
            # net.ipv4.tcp_stdurg set, which nobody does.
            end = at + 1
        yield peers_segment(
            state,
            flags=ACK | URG if at == mark else ACK,
            sequence=first + at,
            data=data[at:end],
            urgent=int(at == mark),
        )
        at = end


@contextmanager
def of_any_device(sock: socket.socket) -> Iterator[None]:
    """A socket that is bound to a device takes nothing from loopback."""
    device = sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, _IFNAMSIZ)
    if not device.strip(b"\0"):
        yield
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"\0")
    try:
        yield
    finally:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
