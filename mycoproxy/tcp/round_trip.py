"""The round trip time that the source had measured, given to the moved socket.

The kernel lets nobody set its estimate, and measures none from what was written in repair mode
(TCPCB_REPAIRED counts as retransmitted): the first timeout would be 3 s. It does take a sample from
an acknowledgement that echoes a timestamp (``tcp_ack_update_rtt``, net/ipv4/tcp_input.c). So one
byte that the peer has acknowledged already is put ahead of the send queue, and its acknowledgement
is played to the socket, with a timestamp that is as old as the source's estimate.

The peer's own acknowledgement would not do. It echoes the last timestamp that came *in order*,
which is from before the move, and if the connection was silent, or its window closed, from long
before: the sample would be the time since then, seconds or minutes, and the timeout three times
that.
"""

import socket
import struct
from typing import Final

from mycoproxy.tcp import abi
from mycoproxy.tcp.playing import named_as, of_any_device, peers_segment
from mycoproxy.tcp.replay import inject
from mycoproxy.tcp.segments import ACK, SEQUENCE_SPACE
from mycoproxy.tcp.state import TcpState

_TICKS_PER_SECOND: Final = 1000  # TCP_TS_HZ, include/net/tcp.h
_MICROSECONDS_PER_TICK: Final = 1_000_000 // _TICKS_PER_SECOND
# RFC 7323, 3.2: kind, length, TSval, TSecr; after two TCPOPT_NOP
_TIMESTAMPS: Final = struct.Struct(">BBBBII")
_UNKNOWN: Final = 0
"""The peer's clock, which TCP_REPAIR does not tell. The kernel remembers 0 as none."""


def byte_ahead(state: TcpState) -> bytes:
    """What is put ahead of the send queue, one sequence number before it: a byte, or nothing.

    Nothing where nothing waits for an acknowledgement (the next one is measured like any), and
    without timestamps. Should the byte ever be sent, the peer drops it unread, as it drops all that
    is older than its window.
    """
    return b"\0" if state.send.sent and state.negotiated.timestamps is not None else b""


def play(sock: socket.socket, state: TcpState) -> None:
    """Acknowledge ``byte_ahead``; ``sock`` is in repair mode, and nothing of the peer has come yet.

    A source that had no estimate itself (it has just been moved there) gives the time since it was
    captured. On a thread of the socket's network namespace. Raises ``OSError``, ``TcpError``.
    """
    timestamps = state.negotiated.timestamps
    if timestamps is None or not byte_ahead(state):
        return
    now = abi.U32.unpack(sock.getsockopt(socket.IPPROTO_TCP, abi.TCP_TIMESTAMP, abi.U32.size))[0]
    unit = 1 if timestamps.microseconds else _MICROSECONDS_PER_TICK
    ago = state.round_trip // unit
    echoed = now - ago if ago else timestamps.clock
    options = _TIMESTAMPS.pack(1, 1, 8, 10, _UNKNOWN, echoed % SEQUENCE_SPACE)
    acknowledgement = peers_segment(
        named_as(sock, state), flags=ACK, sequence=state.receive.next, options=options
    )
    with of_any_device(sock):
        inject([acknowledgement])
