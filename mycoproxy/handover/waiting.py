"""The source's connections that no task has: those that wait to be accepted, and handshakes.

While the tasks stand the kernel goes on completing handshakes, so what waits at a listener is known
for certain only under the hold. Order: ``watch`` once the tasks stand (it costs a look through the
kernel's whole socket table, so ahead of the handover); ``learn`` just before the hold, ``complete``
and ``take`` under it. ``put_back`` undoes ``take``.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mycoproxy.addresses import Endpoint, FourTuple, wire_address
from mycoproxy.handover.sides import Connection
from mycoproxy.netfilter.hold import is_unspecified
from mycoproxy.sockdiag import SocketLookup
from mycoproxy.sockets import Listener
from mycoproxy.socktable import AddressInUse, addresses_in_use
from mycoproxy.tcp import (
    Segment,
    Tap,
    TcpConnectionState,
    TcpError,
    TcpState,
    accept_queue,
    capture,
    handshakes,
)
from mycoproxy.tcp.handshakes import Handshake
from mycoproxy.tcp.segments import ACK, SYN, on_the_wire

_NOBODYS = 0  # the inode of a socket that no descriptor refers to


@dataclass(frozen=True, slots=True)
class Waiting:
    """A connection out of an accept queue. ``handshake``: whether its client knows that it is open
    is not known."""

    listener: Listener
    state: TcpState
    handshake: bool


class WaitingConnections:
    """What waits at ``listeners``. On a thread of their network namespace; their tasks stand."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self._listeners = listeners
        self._requests: set[FourTuple] = set()
        self._handshakes: list[Handshake] = []
        self._taken: list[Waiting] = []
        self._begun: set[FourTuple] = set()
        self._kept: dict[FourTuple, Segment] = {}
        self._syns: Tap | None = None

    def watch(self) -> list[FourTuple]:
        """Begin to take notice. Returns the names of those that wait already.

        Raises ``OSError``.
        """
        if not self._listeners:
            return []
        self._syns = Tap(only_syn=True)
        table = [one for one in addresses_in_use() if self._is_ours(one)]
        self._requests = {
            FourTuple(one.local, one.remote)
            for one in table
            if one.remote is not None and one.state == TcpConnectionState.SYN_RECV
        }
        return [FourTuple(one.local, one.remote) for one in table if one.remote is not None]

    def learn(self, tap: Tap) -> None:
        """Learn the numbers of the handshakes under way. New SYNs must be kept out already.

        ``tap`` sees outgoing segments. Raises ``TcpError``, ``OSError``.
        """
        if self._syns is None:
            return
        arrived = self._arrived(self._syns)
        asked = self._requests | arrived.keys()
        if not asked:
            return
        with SocketLookup() as lookup:
            found = {name: lookup.find(name) for name in asked}
        # What has come to nothing did not come as far as the listener.
        self._kept = {name: syn for name, syn in arrived.items() if found[name] is None}
        self._begun = {name for name, state in found.items() if state is not None}
        self._handshakes = handshakes.learn(
            [
                name
                for name, state in found.items()
                if state is not None and state.state == TcpConnectionState.SYN_RECV
            ],
            tap,
        )

    def newcomers(self) -> list[Segment]:
        """The SYNs of connections that nobody here has answered, since the last call.

        Those that arrived after new ones were to be kept out. Raises ``TcpError``.
        """
        if self._syns is not None:
            self._kept |= self._arrived(self._syns)
        kept, self._kept = self._kept, {}
        known = {on_the_wire(state.connection) for state in self.states} | self._begun
        return [syn for name, syn in kept.items() if name not in known]

    def _arrived(self, syns: Tap) -> dict[FourTuple, Segment]:
        return {
            segment.connection: segment
            for segment in syns.arrived()
            if segment.header.flags & (SYN | ACK) == SYN
            and self._listens_at(segment.connection.local)
        }

    def take(self) -> list[Waiting]:
        """Complete the handshakes, and take everything out of the accept queues. Under the hold.

        Raises ``TcpError``, ``OSError``; what was taken before can be put back.
        """
        handshakes.complete([one.sock for one in self._listeners], self._handshakes)
        completed = {on_the_wire(one.connection) for one in self._handshakes}
        for listener in self._listeners:
            for sock in accept_queue.take(listener.sock):
                with sock:  # silent: it is in repair mode
                    # Its options are the listener's, which hands them down on the target too.
                    state = capture(sock, settings=())
                handshake = on_the_wire(state.connection) in completed
                self._taken.append(Waiting(listener, state, handshake))
        return self._taken

    def recall(self, noted: Iterable[Connection]) -> None:
        """Take over what another process has taken. Connections that it has put back already, or
        not taken yet, are left where they are. Raises ``OSError``."""
        by_names = {listener.names: listener for listener in self._listeners}
        with SocketLookup() as lookup:
            self._taken += [
                Waiting(by_names[one.listener], one.state, one.handshake)
                for one in noted
                if one.listener in by_names and lookup.find(one.four_tuple) is None
            ]

    def put_back(self) -> list[Exception]:
        """Undo ``take``, still under the hold. Returns what went wrong; the rest was done."""
        failures: list[Exception] = []
        for listener in self._listeners:
            states = [one.state for one in self._taken if one.listener is listener]
            if states:
                try:
                    accept_queue.put(listener.sock, states)
                except (TcpError, OSError) as error:
                    failures.append(error)
        return failures

    def announce(self) -> None:
        """After ``put_back``, and once the hold has ended. Raises ``TcpError``."""
        accept_queue.announce(one.state for one in self._taken if one.handshake)
        self._taken.clear()

    @property
    def states(self) -> Iterator[TcpState]:
        """Those of what was taken."""
        return (one.state for one in self._taken)

    def close(self) -> None:
        """Take no more notice."""
        if self._syns is not None:
            self._syns.close()

    def _is_ours(self, used: AddressInUse) -> bool:
        return used.remote is not None and used.inode == _NOBODYS and self._listens_at(used.local)

    def _listens_at(self, local: Endpoint) -> bool:
        return is_covered(local, (one.local for one in self._listeners))


def is_covered(local: Endpoint, listeners: Iterable[Endpoint]) -> bool:
    """Does one of these listeners take connections to ``local``?"""
    address = wire_address(local.address)
    return any(
        one.port == local.port and (is_unspecified(one) or wire_address(one.address) == address)
        for one in listeners
    )
