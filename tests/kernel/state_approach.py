"""Leads a connection into a state of the matrix, with what its queues are to hold.

Each ``Step`` is a method of ``Approach``. What either side writes is kept, and compared with what
the other reads. The owner is the one whose socket is moved: the server, but where it connects.
"""

import os
import select
import socket
import struct
from contextlib import suppress
from typing import Any, NamedTuple

from state_matrix import Cell, Options, Queues, Step
from tcp_lab import DEADLINE, Lab, Move, exchange, fill, settle, wait_until

from mycoproxy import tcp
from mycoproxy.tcp import TcpConnectionState as S
from mycoproxy.tcp import abi, repair

TCP, SOCKET = socket.IPPROTO_TCP, socket.SOL_SOCKET
TCP_USER_TIMEOUT = 18  # include/uapi/linux/tcp.h
EVENTS = select.POLLIN | select.POLLRDHUP | select.POLLHUP | select.POLLERR

SMALL = 3_000  # bytes: ten segments of the smallest size, which are sent at once
SMALL_WINDOW = 8_192
MORE_THAN_IT = 20_000
OWNERS_BUFFER = 40_000
MOST = 4 << 20  # more than the buffers hold
MSS = 300
SWITCHES = ("timestamps", "sack", "window_scaling")
OFF = {
    Options.NONE: SWITCHES,
    Options.NO_TIMESTAMPS: ("timestamps",),
    Options.NO_SCALING: ("window_scaling",),
}


class Stream:
    """One direction: all that was written, all that was read, and what is still to be written.

    After SHUT_RD the reader takes an empty queue for the end (``shut``), and yet gets what comes.
    """

    def __init__(self, *, shut: bool = False) -> None:
        self.written, self.read, self.rest = bytearray(), bytearray(), b""
        self._shut = shut

    def carry(self, sender: socket.socket, receiver: socket.socket) -> bool:
        """Write and read what goes at the moment; says whether everything has arrived."""
        with suppress(BlockingIOError):
            while self.rest:
                count = sender.send(self.rest)
                self.written += self.rest[:count]
                self.rest = self.rest[count:]
        with suppress(BlockingIOError):
            while missing := len(self.written) - len(self.read):
                part = receiver.recv(missing)
                self.read += part
                assert part or self._shut, f"the stream ended {missing} bytes early"
                if not part:
                    return False
        return len(self.read) == len(self.written) and not self.rest


class Counters(NamedTuple):
    """From ``struct tcp_info``."""

    retransmitted: int
    sent: int
    received: int
    window: int

    @classmethod
    def of(cls, sock: socket.socket) -> "Counters":
        # tcpi_total_retrans, tcpi_segs_out, tcpi_segs_in, tcpi_snd_wnd
        layout = struct.Struct("=100xI32xII84xI")
        return cls(*layout.unpack(sock.getsockopt(TCP, abi.TCP_INFO, layout.size)))


class _Nobody:
    """An end that is not there: it reads nothing, and would block."""

    def recv(self, _: int) -> bytes:
        raise BlockingIOError

    send = recv


NOBODY: Any = _Nobody()


class Approach:
    """One cell in a lab, up to its state."""

    def __init__(self, lab: Lab, cell: Cell, tap: tcp.Tap) -> None:
        self.lab, self.cell, self.row, self.tap = lab, cell, cell.row, tap
        self.move = Move(lab.network, cell.family, lab=lab)
        self.to_owner = Stream(shut=Step.OWNER_STOPS_READING in self.row.steps)
        self.to_peer = Stream()
        self.owner: Any = None
        self.peer: Any = None
        self.waiting: Any = None  # where the peer accepts
        self.before: dict[str, object] = {}

    def close(self) -> None:
        self.move.close()

    def begin(self) -> None:
        """The state, with what the queues are to hold."""
        self.lab.restore()
        off = OFF.get(self.cell.options, ())
        self.lab.sysctls("ca", {f"net.ipv4.tcp_{name}": int(name not in off) for name in SWITCHES})
        self.tap.arrived()
        if Step.CONNECTED not in self.row.steps:
            self._make_owner()
        for step in self.row.steps:
            if step is Step.OWNER_CLOSES:
                self._fill_send_queue()
            getattr(self, step.name.lower())()
        if not self.row.owner_closed:
            self._fill_send_queue()
        wait_until(lambda: self.state() is self.row.state, f"{self.row.state.name}")
        self.before = self.visible()
        if self.row.state is S.CLOSE:  # what had not arrived never will
            del self.to_owner.written[repair.queued_bytes(self.owner, abi.SIOCINQ) :]

    def state(self) -> S:
        return repair.connection_state(self.owner)

    def _make_owner(self) -> None:
        self.owner = self.move.server = self.move.socket_in("a")
        self._prepare(self.owner, "a")
        self.waiting = self.move.socket_in("c")
        address = self.lab.to_a.left_v6 if self.cell.family == "v6" else self.lab.to_a.left_v4
        self.waiting.bind((address, 0))
        self.waiting.listen()
        self.waiting.settimeout(DEADLINE)

    def _prepare(self, sock: socket.socket, place: str) -> None:
        if self.cell.options is Options.SMALL_MSS:
            sock.setsockopt(TCP, abi.TCP_MAXSEG, MSS)
        if self.cell.options is Options.LOCKED and place == "a":
            sock.setsockopt(SOCKET, socket.SO_RCVBUF, OWNERS_BUFFER)
            sock.setsockopt(SOCKET, socket.SO_SNDBUF, OWNERS_BUFFER)
        if self.cell.queues in (Queues.UNSENT, Queues.FULL) and place == "c":
            sock.setsockopt(SOCKET, socket.SO_RCVBUF, SMALL_WINDOW)

    def connected(self) -> None:
        self.move.connect(self._prepare)
        self.owner, self.peer = self.move.server, self.move.client
        exchange(self.peer, self.owner, 1)
        self._fill_receive_queue()

    def _fill_receive_queue(self) -> None:
        stream = self.to_owner
        if self.cell.queues is Queues.UNREAD:
            stream.rest = os.urandom(SMALL)
            stream.carry(self.peer, NOBODY)
            settle(self.peer)
        elif self.cell.queues in (Queues.FULL, Queues.UNREAD_FULL):
            if self.row.peer_closed:
                self._fill_but_for_the_fin()
            else:
                stream.written += fill(self.peer, most=MOST)

    def _fill_but_for_the_fin(self) -> None:
        """The peer's FIN needs a place in the owner's window, too: one unit of the window."""
        scales = self.peer.getsockopt(TCP, abi.TCP_INFO, abi.INFO_HEAD.size)[6]
        unit = 1 << (scales & 15)
        while (room := Counters.of(self.peer).window - unit) > 0:
            data = os.urandom(room)
            self.peer.settimeout(DEADLINE)
            self.peer.sendall(data)
            self.to_owner.written += data
            settle(self.peer)

    def _fill_send_queue(self) -> None:
        stream = self.to_peer
        if self.cell.queues is Queues.UNACKNOWLEDGED:
            self.peer_deaf()
            stream.rest = os.urandom(SMALL)
            stream.carry(self.owner, NOBODY)
        elif self.cell.queues is Queues.UNSENT:
            self.owner.setblocking(False)
            while repair.queued_bytes(self.owner, abi.SIOCOUTQNSD) < MORE_THAN_IT:
                data = os.urandom(MORE_THAN_IT // 4)
                stream.written += data[: self.owner.send(data)]
        elif self.cell.queues is Queues.FULL:
            stream.written += fill(self.owner, most=MOST)

    def peer_deaf(self) -> None:
        # Behind a closed window a FIN is not acknowledged anyway; and what is before is to be.
        if self.cell.queues not in (Queues.UNSENT, Queues.FULL):
            self.lab.shield("c", up=True)

    def owner_deaf(self) -> None:
        self.lab.shield("a", up=True)

    def owner_binds(self) -> None:
        self.owner.bind((self.move.server_address, 0))

    def nobody_listens(self) -> None:
        name = self.waiting.getsockname()
        self.waiting.close()
        self.waiting = self.move.socket_in("c")
        self.waiting.bind(name)

    def owner_connects(self) -> None:
        self.owner_binds()
        self.owner.setblocking(False)
        with suppress(BlockingIOError):
            self.owner.connect(self.where_the_peer_is())

    def where_the_peer_is(self) -> tuple[str, int]:
        address, port = self.waiting.getsockname()[:2]
        return (f"::ffff:{address}" if self.cell.family == "mapped" else address), port

    def peer_closes(self) -> None:
        self.peer.shutdown(socket.SHUT_WR)
        open_ = (S.ESTABLISHED, S.FIN_WAIT1, S.FIN_WAIT2)
        wait_until(lambda: self.state() not in open_, "the peer's FIN")

    def owner_closes(self) -> None:
        self.owner.shutdown(socket.SHUT_WR)

    def owner_stops_reading(self) -> None:
        self.owner.shutdown(socket.SHUT_RD)

    def peer_resets(self) -> None:
        self.peer.setsockopt(SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
        self.peer.close()

    def owner_waits_in_vain(self) -> None:
        self.owner.setsockopt(TCP, TCP_USER_TIMEOUT, 1)
        self.owner.sendall(b"never arrives")

    def visible(self) -> dict[str, object]:
        """All that its owner can know of a socket without using it."""
        sock = self.owner
        seen: dict[str, object] = {
            "name": sock.getsockname(),
            "events": repair.poll(sock) & EVENTS,
            "unread": repair.queued_bytes(sock, abi.SIOCINQ),
            "reuse": sock.getsockopt(SOCKET, socket.SO_REUSEADDR),
            "lock": repair.buffer_lock(sock),
        }
        if repair.buffer_lock(sock):
            seen["buffers"] = repair.buffers(sock)[:2]
        try:
            seen["peer"] = sock.getpeername()
        except OSError as error:
            seen["peer"] = error.errno
        return seen
