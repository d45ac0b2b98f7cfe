"""One TCP connection as data: all that TCP_REPAIR can read of it.

What is in here is what the peer can tell apart, and the round trip time, without which it would
wait longer for what gets lost. Left behind, because the kernel has no way to put it back, are: the
congestion window (the connection starts like a new one), out-of-order segments (the peer sends them
again: a SACK may be withdrawn), the peer's last timestamp (learned again with its first segment),
ECN (the connection goes on without), and the mark of urgent data that we have sent.
"""

import socket
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.tcp.abi import TcpConnectionState
from mycoproxy.tcp.options import Settings
from mycoproxy.tcp.segments import SEQUENCE_SPACE

FIN_SENT = frozenset(
    {
        TcpConnectionState.FIN_WAIT1,
        TcpConnectionState.FIN_WAIT2,
        TcpConnectionState.CLOSING,
        TcpConnectionState.LAST_ACK,
    }
)
"""We said that we send no more (a FIN stands in the send queue, or is acknowledged)."""

FIN_RECEIVED = frozenset(
    {TcpConnectionState.CLOSE_WAIT, TcpConnectionState.LAST_ACK, TcpConnectionState.CLOSING}
)
"""The peer said so."""


class SendQueue(NamedTuple):
    """Bytes that the peer has not acknowledged.

    ``una`` (``snd_una``) is the sequence number of the first of them, or of what is sent next; in
    FIN_WAIT2 it is the one after our FIN, in SYN_SENT that of our SYN. A FIN is no byte: it
    follows from the state.
    """

    una: int
    sent: bytes
    unsent: bytes


class ReceiveQueue(NamedTuple):
    """Bytes that were acknowledged and not yet read.

    ``next`` is the number *after* the last, and that of the peer's FIN if it has sent one.
    ``urgent``: the offset in ``data`` of a byte of urgent data (MSG_OOB) that waits to be read.
    """

    next: int
    data: bytes
    urgent: int | None = None


class Window(NamedTuple):
    """``struct tcp_repair_window`` (include/uapi/linux/tcp.h), names and all."""

    snd_wl1: int
    snd_wnd: int
    max_window: int
    rcv_wnd: int
    rcv_wup: int

    def settable(self, expected: int) -> Self:
        """As TCP_REPAIR_WINDOW takes it, where ``expected`` is the next sequence number.

        The peer's window may last have been updated by a segment out of order, which does not move
        along; the kernel takes no update that is beyond our own window (tcp_repair_set_window).
        """
        beyond = (self.snd_wl1 - expected - self.rcv_wnd) % SEQUENCE_SPACE
        return self._replace(snd_wl1=expected) if 0 < beyond < SEQUENCE_SPACE // 2 else self


class WindowScale(NamedTuple):
    """The negotiated shifts: of windows we receive (``send``) and of those we announce."""

    send: int
    receive: int


class Timestamps(NamedTuple):
    """Our timestamp clock at capture, and its unit.

    From Linux 6.7 on TCP_TIMESTAMP carries in its lowest bit whether the clock ticks in
    microseconds (``tp->tcp_usec_ts``); before, that bit is the clock's own. ``clock`` is without
    that bit, so a state can go from an old kernel to a new one.
    """

    clock: int
    microseconds: bool


class Negotiated(NamedTuple):
    """What the handshake settled. ``mss_clamp`` in bytes, as TCP_MAXSEG reads in repair mode."""

    mss_clamp: int
    window_scale: WindowScale | None
    sack: bool
    timestamps: Timestamps | None
    ecn: bool


class Buffers(NamedTuple):
    """SO_SNDBUF and SO_RCVBUF in the kernel's bytes; SO_BUF_LOCK (0: both are auto-tuned).

    ``window_clamp`` (TCP_WINDOW_CLAMP, bytes) is the largest window that will be announced. A new
    socket derives it from what it would negotiate itself, so it has to move along.
    """

    send: int
    receive: int
    lock: int
    window_clamp: int


@dataclass(frozen=True, slots=True)
class TcpState:
    """A connection, as ``capture`` reads it and ``establish`` puts it into a closed socket.

    ``family`` is that of the socket: in an AF_INET6 socket an IPv4 connection has addresses of
    the form ``::ffff:192.0.2.1``, and they stay in that form.

    In SYN_SENT only names, ``send.una`` and what the owner set mean anything. In CLOSE the
    ``remote`` end is forgotten (unspecified, port 0), and only ``receive.data``, ``shut_down``,
    ``error`` (the errno that SO_ERROR will give, 0 for none) and what the owner set do.
    ``shut_down``: nothing will be read any more, because the owner said so (SHUT_RD), or because
    the connection has ended (CLOSE); a FIN of the peer does not count. ``round_trip``: the smoothed
    round trip time in microseconds (tcpi_rtt), 0 if none was measured.
    """

    family: socket.AddressFamily
    local: Endpoint
    remote: Endpoint
    state: TcpConnectionState
    send: SendQueue
    receive: ReceiveQueue
    window: Window
    negotiated: Negotiated
    buffers: Buffers
    reuse_address: bool
    options: Settings = ()
    shut_down: bool = False
    error: int = 0
    round_trip: int = 0

    @property
    def connection(self) -> FourTuple:
        """The connection's name."""
        return FourTuple(self.local, self.remote)

    @property
    def fin_sent(self) -> bool:
        """Our FIN is queued, sent, or acknowledged."""
        return self.state in FIN_SENT

    @property
    def fin_received(self) -> bool:
        """The peer's FIN has arrived."""
        return self.state in FIN_RECEIVED

    @property
    def played_from(self) -> int:
        """The offset in the receive queue from which on it is played as segments (``playing``)."""
        data, urgent = self.receive.data, self.receive.urgent
        return len(data) if urgent is None else urgent

    @property
    def next_expected(self) -> int:
        """The sequence number that we expect next (``rcv_nxt``)."""
        return (self.receive.next + self.fin_received) % SEQUENCE_SPACE

    def moved_to(self, *, local: Endpoint | None = None, remote: Endpoint | None = None) -> Self:
        """The same connection under another name."""
        return replace(self, local=local or self.local, remote=remote or self.remote)
