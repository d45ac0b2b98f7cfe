"""Plays a cell of the state matrix: into its state, on (moved or not), and to the end."""

import errno
import os
import select
import socket
import time

import pytest
from state_approach import MSS, NOBODY, OFF, SMALL, SOCKET, Approach, Counters
from state_matrix import Address, Options, Queues, Step, Way
from tcp_lab import DEADLINE, NOTHING, wait_until

from mycoproxy import tcp
from mycoproxy.addresses import Endpoint
from mycoproxy.tcp import TcpConnectionState as S
from mycoproxy.tcp.segments import RST

# Where an answer of the peer leads.
FOLLOWS = {
    S.SYN_SENT: (S.ESTABLISHED, S.CLOSE),
    S.FIN_WAIT1: (S.FIN_WAIT2,),
    S.CLOSING: (S.CLOSE,),
    S.LAST_ACK: (S.CLOSE,),
}


class Play(Approach):
    """One cell in a lab, from its beginning to its end."""

    def go_on(self) -> None:
        """Moved, looked at, or rolled back."""
        if self.cell.way is Way.PEEKED:
            self._peek()
        elif self.cell.way is Way.ROLLED_BACK:
            state = self.move.capture()
            self._queues_are_right(state)
            self.lab.nft("c", NOTHING)
            remarks = self.move.roll_back(state)
            assert bool(remarks) == bool(self.row.becomes), remarks
            assert self.visible() == self.before
        else:
            self._move()

    def _peek(self) -> None:
        self.tap.arrived()
        before = Counters.of(self.owner)
        state = self.move.a.call(tcp.capture, self.owner, peek=True)
        after = Counters.of(self.owner)
        self._queues_are_right(state)
        assert self.visible() == self.before
        if self.row.state is S.CLOSE:
            assert self.tap.arrived() == ()
        else:  # but for a retransmission, whose time it may have been
            assert before.sent - before.retransmitted == after.sent - after.retransmitted
        self.lab.nft("c", NOTHING)
        self.lab.nft("a", NOTHING)

    def _move(self) -> None:
        state = self.move.capture()
        self._queues_are_right(state)
        here, there = self._new_names(state)
        peers_state = None
        if here != state.local:
            peers_state = self.move.c.call(tcp.capture, self.peer)
            self.peer.close()
        state = tcp.decode(tcp.encode(state))
        new = self.move.socket_in("b")
        epoll = watch(new)
        self.move.stack.callback(epoll.close)
        remarks = tcp.establish(new, state, local=here, remote=there)
        if peers_state is not None:
            self._establish_the_peer(peers_state, here=here, there=there)
        self.lab.nft("c", NOTHING)
        self.lab.shield("b", up=False)
        remarks += self.move.b.call(tcp.release, new, state)
        self.owner.close()
        self.owner = new
        assert bool(remarks) == bool(self.row.becomes), remarks
        self._is_the_same(epoll, here, there)
        if peers_state is not None:
            self.move.c.call(tcp.release, self.peer, peers_state)

    def _new_names(self, state: tcp.TcpState) -> tuple[Endpoint, Endpoint]:
        version = 6 if self.cell.family == "v6" else 4
        form = "::ffff:{}" if self.cell.family == "mapped" else "{}"
        link = self.lab.to_b
        here, there = state.connection
        if self.cell.address is not Address.KEPT:
            here = here._replace(address=form.format(link.address("right", version)))
        if self.cell.address is Address.BOTH:
            there = there._replace(address=form.format(link.address("left", version)))
        return here, there

    def _establish_the_peer(self, state: tcp.TcpState, *, here: Endpoint, there: Endpoint) -> None:
        """The peer's end gets to know the new names, as a translation would do it."""
        mine, its = (
            end._replace(address=end.address.removeprefix("::ffff:")) for end in (there, here)
        )
        self.peer = self.move.socket_in("c")
        tcp.establish(self.peer, state, local=mine, remote=its)

    def _queues_are_right(self, state: tcp.TcpState) -> None:
        """The cell is what it says."""
        queues, negotiated = self.cell.queues, state.negotiated
        assert state.state is self.row.state
        # To look at a pending error is to take it, so peeking does not.
        assert state.error == (0 if self.cell.way is Way.PEEKED else self.row.error)
        assert bool(state.receive.data) == (
            queues in (Queues.UNREAD, Queues.FULL, Queues.UNREAD_FULL)
        )
        assert bool(state.send.unsent) == (queues in (Queues.UNSENT, Queues.FULL))
        assert bool(state.send.sent) == (queues is Queues.UNACKNOWLEDGED) or state.send.unsent
        assert self.to_owner.written.startswith(state.receive.data)
        assert self.to_peer.written.endswith(state.send.sent + state.send.unsent)
        assert (state.buffers.lock == 3) == (self.cell.options is Options.LOCKED)
        if self.row.established:
            off = OFF.get(self.cell.options, ())
            assert (negotiated.timestamps is None) == ("timestamps" in off)
            assert negotiated.sack == ("sack" not in off)
            assert (negotiated.window_scale is None) == ("window_scaling" in off)
            assert (negotiated.mss_clamp == MSS) == (self.cell.options is Options.SMALL_MSS)

    def _is_the_same(self, epoll: select.epoll, here: Endpoint, there: Endpoint) -> None:
        wanted = dict(self.before)
        if self.cell.address is not Address.KEPT:
            wanted["name"] = (*here, *wanted["name"][2:])  # type: ignore[index]
            wanted["peer"] = (*there, *wanted["peer"][2:])  # type: ignore[index]
        seen = self.visible()
        if (now := self.state()) is not self.row.state:  # the peer has answered already
            assert now in FOLLOWS[self.row.state]
            for what in ("events", "peer"):
                del seen[what], wanted[what]
        assert seen == wanted
        # Whoever waits, edge-triggered and registered before, is woken. A new socket hangs up, too.
        events = int(str(wanted.get("events", 0))) & ~select.POLLHUP
        assert sum(event for _, event in epoll.poll(0)) & events == events

    def finish(self) -> None:
        """The peer finishes its side, the owner its own."""
        if self.row.state is S.SYN_SENT:
            self._connect_succeeds()
        elif self.row.state is S.CLOSE:
            self._end_is_seen()
        if self.peer is not None and self.row.state is not S.CLOSE:
            self._talk()
            self._part()

    def _connect_succeeds(self) -> None:
        if Step.NOBODY_LISTENS in self.row.steps:
            wait_until(lambda: self.state() is S.CLOSE, "refused")
            self._error_is_seen(errno.ECONNREFUSED)
            return
        self.peer, _ = self.waiting.accept()
        self.move.stack.callback(self.peer.close)
        wait_until(lambda: self.state() is S.ESTABLISHED, "connected")
        assert self.owner.getsockopt(SOCKET, socket.SO_ERROR) == 0
        assert self.owner.getpeername()[:2] == self.where_the_peer_is()
        assert self.owner.getsockname() == self.before["name"]

    def _end_is_seen(self) -> None:
        if Step.CONNECTED not in self.row.steps and not self.row.error:
            with pytest.raises(OSError, match="not connected"):
                self.owner.recv(1)
            self.owner.settimeout(DEADLINE)
            self.owner.connect(self.where_the_peer_is())
            return
        self.to_owner.carry(NOBODY, self.owner)
        assert self.to_owner.read == self.to_owner.written
        taken = self.cell.way is not Way.PEEKED
        self._error_is_seen((taken and self.row.becomes) or self.row.error)

    def _error_is_seen(self, number: int) -> None:
        """Once; then it is the end of the stream, and nothing can be written."""
        if number and number != errno.EPIPE:  # which after a FIN a reader does not get to see
            with pytest.raises(OSError) as caught:
                self.owner.recv(1)
            assert caught.value.errno == number
        else:
            assert self.owner.getsockopt(SOCKET, socket.SO_ERROR) == number
        assert self.owner.getsockopt(SOCKET, socket.SO_ERROR) == 0
        assert self.owner.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            self.owner.send(b"more")

    def _talk(self) -> None:
        """Every byte that was written arrives, and some more where more may be written."""
        if not self.row.peer_closed:
            self.to_owner.rest = os.urandom(SMALL)
        if not self.row.owner_closed:
            self.to_peer.rest = os.urandom(SMALL)
        self.owner.setblocking(False)
        self.peer.setblocking(False)
        end = time.monotonic() + DEADLINE
        while True:
            done = self.to_owner.carry(self.peer, self.owner)
            if self.to_peer.carry(self.owner, self.peer) and done:
                break
            assert time.monotonic() < end, f"{self.to_owner} {self.to_peer}"
            select.select([self.owner, self.peer], [], [], 0.01)
        assert self.to_owner.read == self.to_owner.written
        assert self.to_peer.read == self.to_peer.written

    def _part(self) -> None:
        """Whoever has not closed does, the peer first; both see the end."""
        self.owner.settimeout(DEADLINE)
        self.peer.settimeout(DEADLINE)
        if not self.row.peer_closed:
            self.peer_closes()
        assert self.owner.recv(1) == b""
        if not self.row.owner_closed:
            self.owner_closes()
        assert self.peer.recv(1) == b""
        wait_until(lambda: self.state() is S.CLOSE, "the end")
        assert self.owner.getsockopt(SOCKET, socket.SO_ERROR) == 0
        with pytest.raises(BrokenPipeError):
            self.owner.send(b"more")

    def no_reset_was_seen(self) -> None:
        """But where the row is about one."""
        if self.peer is None or Step.OWNER_DEAF in self.row.steps or self.row.error:
            return
        port = self.peer.getsockname()[1]
        arrived = [one for one in self.tap.arrived() if one.connection.local.port == port]
        assert [one for one in arrived if one.header.flags & RST] == []


def watch(sock: socket.socket) -> select.epoll:
    """As an owner that has registered its socket before the move; what there was, it has heard."""
    epoll = select.epoll()
    epoll.register(sock, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
    epoll.poll(0)
    return epoll
