"""Connections that wait in a listener's accept queue: taken out, and put into another's.

No descriptor refers to such a connection, so nothing can be established *in* it; it has to come
into being where the new listener finds it, and with the numbers that the client knows. Taking out
is accept(2), while the listener's tasks stand. Putting back plays the connection's handshake to the
kernel, over loopback, and makes the kernel choose the right initial sequence number:

**A SYN that meets a socket in TIME_WAIT is answered with that socket's next sequence number plus
65,537** (``tcp_timewait_state_process``, net/ipv4/tcp_minisocks.c; since Linux 2.6). So first a
socket is established in repair mode under the connection's name, 65,537 before the number it needs,
and closed by a FIN that is played to it: now it is in TIME_WAIT. Then

* the client's SYN, with the options that were negotiated: the listener takes it, and answers with
  the number that the client already has;
* the client's acknowledgement: the connection is complete and in the accept queue;
* the data that it had sent, and its FIN, if it had.

Everything the kernel does with a new connection it has done with this one: backlog, wake-ups,
SO_REUSEPORT groups, what the listener hands down. Nobody outside may hear of it: a hold or a shield
has to drop what the namespace sends, and let pass what is played (``marks.PLAYED``, loopback).

* **Our window scale** is chosen by the kernel from the largest buffer that may come to be: for the
  time of the handshake TCP_WINDOW_CLAMP of the listener and ``tcp_rmem`` of the namespace leave it
  one choice.
* What the old socket has taken may be more than a new one would: then the listener hands down a
  larger receive buffer.
* **Our timestamps** begin at an offset that hangs on the addresses and a secret of the kernel's
  (``secure_tcp_ts_off``), or at none (``tcp_timestamps`` = 2). The client discards what is older
  than what it has seen, so of the two one is taken that is not; on the kernel that the connection
  came from that is always the first. If neither will do (one in four), the connection goes on
  without timestamps: Linux and most others accept that, RFC 7323 (3.2) allows a peer to drop it.
* Handshakes that were still under way (``handshakes``) are completed here too. A request, unlike a
  connection, would refuse a client that echoes the old place's timestamps (``tcp_check_req``,
  "TSEcrRejected", Linux 6.15). For the same reason TCP_DEFER_ACCEPT is off meanwhile: the owner
  accepts a connection that it would have got with its first data.
"""

import socket
import struct
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.sockdiag import FoundSocket, SocketLookup
from mycoproxy.tcp import abi, repair
from mycoproxy.tcp.abi import TcpConnectionState
from mycoproxy.tcp.ended import without_blocking
from mycoproxy.tcp.errors import TcpError
from mycoproxy.tcp.playing import peers_data, peers_segment
from mycoproxy.tcp.replay import inject, send_out
from mycoproxy.tcp.segments import (
    ACK,
    CWR,
    ECE,
    FIN,
    SEQUENCE_SPACE,
    SYN,
    Segment,
    on_the_wire,
    segment,
)
from mycoproxy.tcp.state import TcpState, Timestamps

_TCP = socket.IPPROTO_TCP
_TIME_WAIT_STEP: Final = 65_537  # tcp_timewait_state_process: tw_snd_nxt + 65535 + 2
_BEFORE_SYN: Final = 1000  # what the socket in TIME_WAIT has received ends well before the SYN
_NO_CLAMP: Final = 0xFFFF << abi.TCP_MAX_WSCALE  # what the kernel takes for none (0) itself
_SURE_WINDOW: Final = 16 * 1024  # what any listener's new connection takes at once
_HANDSHAKE_STATES = (TcpConnectionState.SYN_RECV, TcpConnectionState.NEW_SYN_RECV)


def take(listener: socket.socket) -> list[socket.socket]:
    """Accept everything that waits, in order. Under the hold; the listener's tasks must stand.

    What the client has reset meanwhile is closed and left out. A connection of TCP Fast Open waits
    here before its handshake is complete; that is completed, as ``handshakes`` does with others.
    On a thread of the listener's network namespace. Raises ``OSError``, ``TcpError``.
    """
    taken: list[socket.socket] = []
    try:
        for _ in range(repair.accept_queue(listener).waiting):
            connection, _ = listener.accept()
            state = repair.connection_state(connection)
            if state is TcpConnectionState.CLOSE:
                connection.close()
                continue
            taken.append(connection)
            if state is TcpConnectionState.SYN_RECV:
                _acknowledge_syn_ack(connection)
    except BaseException:
        for connection in taken:
            connection.close()
        raise
    return taken


def _acknowledge_syn_ack(sock: socket.socket) -> None:
    reuse_address = sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    repair.enter(sock)
    repair.select_queue(sock, abi.TCP_RECV_QUEUE)
    received = repair.queue_sequence(sock)
    repair.select_queue(sock, abi.TCP_SEND_QUEUE)
    sent = repair.queue_sequence(sock)
    repair.leave(sock, probe=False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse_address)
    name = FourTuple(Endpoint(*sock.getsockname()[:2]), Endpoint(*sock.getpeername()[:2]))
    # As large a window as can be said without scaling; the client's next segment says better.
    inject(
        [
            segment(
                on_the_wire(name),
                flags=ACK,
                sequence=received,
                acknowledgement=sent,
                window=0xFFFF,
            )
        ]
    )


def put(listener: socket.socket, states: Iterable[TcpState]) -> list[TcpState]:
    """Put connections into the listener's accept queue, in this order.

    ``states`` have the names that they are to have here. On a thread of the listener's network
    namespace; nothing that it sends may get out. Returns the states as the kernel has agreed to
    them: without timestamps where they could not be kept. Raises ``TcpError``; the connections
    before the failed one are in the queue.
    """
    with _Handshakes(listener) as handshakes:
        return [handshakes.complete(state) for state in states]


def announce(states: Iterable[TcpState]) -> None:
    """Answer the clients of handshakes that were under way once more, now that packets get out.

    ``states`` as ``put`` returned them. A client that waits for the answer has it; one that has had
    it acknowledges it again. Raises ``TcpError``.
    """
    send_out(_syn_ack(state) for state in states)


class _Handshakes:
    """The listener and its namespace, set up so that handshakes come out as they should."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._sysctls = _Sysctls()
        self._lookup: SocketLookup

    def __enter__(self) -> Self:
        self._deferred = self._listener.getsockopt(_TCP, socket.TCP_DEFER_ACCEPT)
        self._clamp = self._listener.getsockopt(_TCP, abi.TCP_WINDOW_CLAMP)
        self._buffers = repair.buffers(self._listener)
        self._lookup = SocketLookup()
        try:
            self._sysctls.set("tcp_window_scaling", "1")
            self._sysctls.set("tcp_sack", "1")
            if self._deferred:
                self._listener.setsockopt(_TCP, socket.TCP_DEFER_ACCEPT, 0)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lookup.close()
        self._sysctls.restore()
        self._listener.setsockopt(_TCP, abi.TCP_WINDOW_CLAMP, self._clamp or _NO_CLAMP)
        self._set_receive_buffer(self._buffers.receive)
        if self._deferred:
            self._listener.setsockopt(_TCP, socket.TCP_DEFER_ACCEPT, self._deferred)

    def complete(self, state: TcpState) -> TcpState:
        """The whole handshake and what followed it."""
        if state.send.sent or state.send.unsent or state.fin_sent:
            raise TcpError(f"{state.connection} has sent something: it was accepted already")
        name = on_the_wire(state.connection)
        waiting = self._waiting()
        agreed = self._begin(state, name)
        first = (state.receive.next - len(state.receive.data)) % SEQUENCE_SPACE
        inject([peers_segment(state, flags=ACK, sequence=first)])
        self._fill(state, name)
        if state.fin_received:
            inject([peers_segment(state, flags=FIN | ACK, sequence=state.receive.next)])
        if self._waiting() != waiting + 1:
            raise TcpError(
                f"{state.connection} did not come into the accept queue of this listener: "
                f"{waiting} waited before, {self._waiting()} now"
            )
        return agreed

    def _begin(self, state: TcpState, name: FourTuple) -> TcpState:
        """Up to the SYN. Returns the state with what the SYN could offer."""
        try:
            with socket.socket(_wire_family(state), socket.SOCK_STREAM) as ghost:
                agreed = self._with_timestamps(ghost, state)
                self._prepare_scale(state)
                self._set_receive_buffer(
                    repair.room(self._buffers.receive, len(state.receive.data))
                    if len(state.receive.data) > _SURE_WINDOW
                    else self._buffers.receive
                )
                self._into_time_wait(ghost, state)
        except OSError as error:
            raise TcpError(
                f"cannot prepare the handshake of {state.connection}: {error}"
            ) from error
        inject([_syn(agreed)])
        found = self._found(name)
        if found.state not in _HANDSHAKE_STATES:
            raise TcpError(
                f"{state.connection}: no listener took its SYN, the socket is in state "
                f"{TcpConnectionState(found.state).name}: does anyone listen at {state.local}, and "
                "is the backlog large enough?"
            )
        return agreed

    def _with_timestamps(self, ghost: socket.socket, state: TcpState) -> TcpState:
        """Bind ``ghost``, and choose where our timestamps begin."""
        local, remote = on_the_wire(state.connection)
        repair.enter(ghost)
        ghost.bind(local)
        wanted = state.negotiated.timestamps
        if wanted is None:
            return state
        for sysctl in ("1", "2"):
            self._sysctls.set("tcp_timestamps", sysctl)
            clock = _clock_towards(ghost, remote)
            ahead = (clock.clock - wanted.clock) % SEQUENCE_SPACE
            if clock.microseconds == wanted.microseconds and ahead < SEQUENCE_SPACE // 2:
                return state
        return replace(state, negotiated=state.negotiated._replace(timestamps=None))

    def _prepare_scale(self, state: TcpState) -> None:
        """Leave the kernel one window scale to choose (``tcp_select_initial_window``)."""
        if state.negotiated.window_scale is None:
            return
        shift = state.negotiated.window_scale.receive
        smallest, default, _ = self._sysctls.get("tcp_rmem").split()
        self._sysctls.set("tcp_rmem", f"{smallest} {default} {1 << (15 + shift)}")
        self._listener.setsockopt(_TCP, abi.TCP_WINDOW_CLAMP, (1 << (16 + shift)) - 1)

    def _set_receive_buffer(self, size: int) -> None:
        """What the connection will inherit, on top of which the kernel's auto-tuning goes on."""
        if self._listener.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) != size:
            repair.force_receive_buffer(self._listener, size)
            repair.set_buffer_lock(self._listener, self._buffers.lock)

    def _into_time_wait(self, ghost: socket.socket, state: TcpState) -> None:
        """``ghost`` is bound and in repair mode; afterwards its name is in TIME_WAIT."""
        connection = on_the_wire(state.connection)
        sent = (state.send.una - 1 - _TIME_WAIT_STEP) % SEQUENCE_SPACE  # after the FIN
        received = (_initial_sequence(state) - _BEFORE_SYN) % SEQUENCE_SPACE
        repair.select_queue(ghost, abi.TCP_RECV_QUEUE)
        repair.set_queue_sequence(ghost, received)
        repair.select_queue(ghost, abi.TCP_SEND_QUEUE)
        repair.set_queue_sequence(ghost, (sent - 1) % SEQUENCE_SPACE)
        ghost.connect(connection.remote)
        ghost.shutdown(socket.SHUT_WR)
        inject([segment(connection, flags=FIN | ACK, sequence=received, acknowledgement=sent)])
        if repair.connection_state(ghost) is not TcpConnectionState.CLOSE:
            raise TcpError(
                f"{state.connection} cannot be put into TIME_WAIT: not on a thread of its network "
                "namespace, or a hold drops what is played"
            )

    def _fill(self, state: TcpState, name: FourTuple) -> None:
        """Play the data. The window may open only as it comes, so it is looked at what arrived."""
        length = len(state.receive.data)
        arrived = 0
        while arrived < length:
            inject(peers_data(state, arrived))
            found = self._found(name).receive_queue
            if found <= arrived:
                raise TcpError(
                    f"{state.connection}: {length} bytes waited to be read, the new listener's "
                    f"socket takes {arrived}: give it the receive buffer that the old one had"
                )
            arrived = found

    def _waiting(self) -> int:
        return repair.accept_queue(self._listener).waiting

    def _found(self, name: FourTuple) -> FoundSocket:
        found = self._lookup.find(name)
        if found is None:
            raise TcpError(
                f"{name} came to nothing: does anyone listen at {name.local}, and is its backlog "
                "large enough?"
            )
        return found


def _syn(state: TcpState) -> Segment:
    """The client's, as far as it is known what it offered."""
    # The client's clock is not known. 0 is what the kernel takes for "not yet told"
    # (tcp_paws_check, include/net/tcp.h).
    scale = state.negotiated.window_scale
    return segment(
        on_the_wire(state.connection),
        flags=SYN | ECE | CWR if state.negotiated.ecn else SYN,
        sequence=_initial_sequence(state),
        window=state.window.snd_wnd,
        options=_handshake_options(state, clock=0, scale=scale.send if scale else 0),
    )


def _syn_ack(state: TcpState) -> Segment:
    """Ours, from its ``connection.remote``, which is this end, to the client."""
    timestamps, scale = state.negotiated.timestamps, state.negotiated.window_scale
    local, remote = on_the_wire(state.connection)
    return segment(
        FourTuple(local=remote, remote=local),
        flags=SYN | ACK | ECE if state.negotiated.ecn else SYN | ACK,
        sequence=state.send.una - 1,
        acknowledgement=_initial_sequence(state) + 1,
        window=state.window.rcv_wnd,
        options=_handshake_options(
            state,
            clock=timestamps.clock if timestamps else 0,
            scale=scale.receive if scale else 0,
        ),
    )


def _handshake_options(state: TcpState, *, clock: int, scale: int) -> bytes:
    negotiated = state.negotiated
    options = struct.pack("!BBH", abi.TCPOPT_MSS, 4, negotiated.mss_clamp)
    if negotiated.sack:
        options += bytes((abi.TCPOPT_SACK_PERM, 2))
    if negotiated.timestamps is not None:
        # An echo of 0 is none (tcp_rcv_synsent_state_process, net/ipv4/tcp_input.c).
        options += struct.pack("!BBII", abi.TCPOPT_TIMESTAMP, 10, clock, 0)
    if negotiated.window_scale is not None:
        options += bytes((abi.TCPOPT_WINDOW, 3, scale))
    return options


def _initial_sequence(state: TcpState) -> int:
    """The client's (``rcv_isn``): all it has sent is in the receive queue."""
    return (state.receive.next - len(state.receive.data) - 1) % SEQUENCE_SPACE


def _wire_family(state: TcpState) -> socket.AddressFamily:
    return socket.AF_INET if state.local.version == 4 else socket.AF_INET6


def _clock_towards(ghost: socket.socket, remote: Endpoint) -> Timestamps:
    """What the kernel's timestamps towards ``remote`` read now, by connecting for a moment.

    ``ghost`` is bound and in repair mode, before and after. The SYN must not get out.
    """
    repair.leave(ghost, probe=False)
    with without_blocking(ghost):
        ghost.connect_ex(remote)
    repair.enter(ghost)
    value = abi.U32.unpack(ghost.getsockopt(_TCP, abi.TCP_TIMESTAMP, abi.U32.size))[0]
    repair.disconnect(ghost)
    return Timestamps(value & ~1, bool(value & 1))


class _Sysctls:
    """net.ipv4.* of the calling thread's network namespace, for a while."""

    def __init__(self) -> None:
        self._before: dict[str, str] = {}
        self._now: dict[str, str] = {}

    def get(self, name: str) -> str:
        if name not in self._now:
            self._now[name] = _sysctl(name).read_text().strip()
        return self._now[name]

    def set(self, name: str, value: str) -> None:
        before = self.get(name)
        if before != value:
            self._before.setdefault(name, before)
            _sysctl(name).write_text(value)
            self._now[name] = value

    def restore(self) -> None:
        while self._before:
            name, value = self._before.popitem()
            _sysctl(name).write_text(value)


def _sysctl(name: str) -> Path:
    return Path("/proc/sys/net/ipv4", name)
