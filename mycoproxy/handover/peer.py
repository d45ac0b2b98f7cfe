"""A peer node in a network namespace of this machine: finds its part of each path, re-homes it."""

import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyroute2 import IPRoute

from mycoproxy.addresses import Endpoint, FourTuple, wire_address
from mycoproxy.handover.sides import Connection, Rehomed
from mycoproxy.namespaces import NamespaceWorker
from mycoproxy.netfilter.conntrack import Conntrack
from mycoproxy.netfilter.elements import on_the_wire
from mycoproxy.netfilter.entry import ConntrackEntry
from mycoproxy.netfilter.hold import Hold
from mycoproxy.netfilter.nft import Nft
from mycoproxy.netfilter.paths import Path, choose_path
from mycoproxy.netfilter.rebind import Rebound, admit, rebind
from mycoproxy.netfilter.rebind import undo as undo_rebind
from mycoproxy.netfilter.translate import Move, Translate
from mycoproxy.sockdiag import SocketLookup
from mycoproxy.tcp import Segment, Tap, TcpError


@dataclass(frozen=True, slots=True)
class _Todo:
    """What is to be done here for one connection."""

    path: Path
    new_address: str
    entry: ConntrackEntry | None


class LocalPeer:
    """One peer node. ``prepare`` ahead of the freeze, ``survey`` once the workload stands,
    ``close`` when the move has ended.

    What ``rehome`` changed stays after ``close``: it lives as long as the connections do.
    """

    def __init__(self, name: str, worker: NamespaceWorker, move: str) -> None:
        self.name = name
        self._worker = worker
        self._move = move
        self._opened = False
        self._nft: Nft
        self._conntrack: Conntrack
        self._sockets: SocketLookup
        self._hold: Hold
        self._translate: Translate
        self._own_addresses: frozenset[str] = frozenset()
        self._rebound: list[Rebound] = []
        self._moves: list[Move] = []
        self._lost: list[Segment] = []
        self._surveyed: set[FourTuple] = set()
        self._todo: dict[FourTuple, _Todo] = {}
        self._tap: Tap | None = None

    async def prepare(self) -> None:
        """Open the sockets to the kernel and make the tables, so that re-homing is quick."""
        await self._worker.run(self._prepare)

    def _prepare(self) -> None:
        self._nft = Nft()
        self._conntrack = Conntrack()
        self._sockets = SocketLookup()
        self._opened = True
        self._hold = Hold(self._nft, f"{self._move}-peer")
        self._hold.install()
        self._translate = Translate(self._nft)
        self._translate.install()
        self._own_addresses = _addresses_here()

    async def survey(self, connections: Sequence[FourTuple], addresses: Mapping[str, str]) -> None:
        """See ``Peer``."""
        await self._worker.run(self._survey, connections, addresses)

    def _survey(self, connections: Sequence[FourTuple], addresses: Mapping[str, str]) -> None:
        self._surveyed.update(connections)
        entries = self._conntrack.find(connections)
        clients_here = self._clients_here(connections)
        for connection in connections:
            new_address = moved_address(connection.local.address, addresses)
            entry = entries.get(connection)
            path = choose_path(
                connection,
                new_address=new_address,
                entry=entry,
                local_addresses=self._own_addresses if connection in clients_here else (),
            )
            if path is not Path.NOTHING:
                self._todo[connection] = _Todo(path, new_address, entry)

    async def rehome(
        self, connections: Sequence[Connection], addresses: Mapping[str, str]
    ) -> Sequence[Rehomed]:
        """See ``Peer``. Connections that do not pass here are left out of the result."""
        return await self._worker.run(self._rehome, connections, addresses)

    def _rehome(
        self, connections: Sequence[Connection], addresses: Mapping[str, str]
    ) -> Sequence[Rehomed]:
        names = {connection.four_tuple for connection in connections}
        # Those that came after the survey.
        self._survey(sorted(names - self._surveyed), addresses)
        todo = {name: one for name, one in self._todo.items() if name in names}
        moves = [
            Move(name, one.new_address) for name, one in todo.items() if one.path is Path.TRANSLATE
        ]
        if moves:
            self._translate.add(moves)
            self._moves += moves
        new_local = {
            name.local: Endpoint(one.new_address, name.local.port) for name, one in todo.items()
        }
        self._rebind(connections, _entries(todo, Path.REBIND), new_local)
        admitted = _entries(todo, Path.ADMIT)
        if admitted:
            self._rebound += admit(self._conntrack, admitted.values(), new_local)
        return [Rehomed(self.name, name, one.path) for name, one in todo.items()]

    def _rebind(
        self,
        connections: Sequence[Connection],
        entries: Mapping[FourTuple, ConntrackEntry],
        new_local: Mapping[Endpoint, Endpoint],
    ) -> None:
        if not entries:
            return
        # Here a connection's packets have the name that the client gave it.
        dialled = {
            FourTuple(entry.orig.destination, entry.orig.source): name
            for name, entry in entries.items()
        }
        states = {one.four_tuple: one.state for one in connections}
        self._tap = Tap()
        self._rebound += rebind(self._conntrack, self._hold, entries.values(), new_local)
        try:
            lost = self._tap.lost(
                states[name].moved_to(local=local, remote=remote)
                for (local, remote), name in dialled.items()
                if name in states
            )
        except TcpError:  # it overflowed: then the clients send again, later
            return
        self._lost += [segment.moved_to(dialled[segment.connection]) for segment in lost]

    def _clients_here(self, connections: Sequence[FourTuple]) -> frozenset[FourTuple]:
        """Those whose client is here *and* dialled the workload itself.

        A client that dialled a Service has its address here too, but another node's NAT in between:
        its socket knows another address than the workload's.
        """
        if not any(wire_address(one.remote.address) in self._own_addresses for one in connections):
            return frozenset()
        translated = {
            FourTuple(Endpoint(now, name.local.port), name.remote)
            for name, now in self._translate.list().items()
        }
        dialled = self._sockets.connected(
            FourTuple(local=one.remote, remote=one.local) for one in connections
        )
        return frozenset(
            one
            for one in connections
            if FourTuple(local=one.remote, remote=one.local) in dialled
            or FourTuple(on_the_wire(one.local), on_the_wire(one.remote)) in translated
        )

    async def lost_segments(self) -> Sequence[Segment]:
        """See ``Peer``."""
        return self._lost

    async def undo(self) -> None:
        """See ``Peer``."""
        await self._worker.run(self._undo)

    def _undo(self) -> None:
        moves, self._moves = self._moves, []
        rebound, self._rebound = self._rebound, []
        try:
            if moves:
                self._translate.add([move.reversed() for move in moves])
        finally:
            if rebound:
                undo_rebind(self._conntrack, self._hold, rebound)

    async def close(self) -> None:
        """Remove what was only for the time of the move."""
        if self._opened:
            await self._worker.run(self._close)

    def _close(self) -> None:
        self._opened = False
        if self._tap is not None:
            # Only now: closing a packet socket waits for an RCU grace period, some 20 ms.
            self._tap.close()
        self._hold.release()
        self._nft.close()
        self._conntrack.close()
        self._sockets.close()


def moved_address(address: str, addresses: Mapping[str, str]) -> str:
    """An address after the move, as it is in packets; the same if it is not one that changes."""
    old = wire_address(address)
    return addresses.get(old, old)


def unreached(
    connections: Sequence[FourTuple],
    rehomed: Sequence[Rehomed],
    addresses: Mapping[str, str],
) -> list[FourTuple]:
    """The connections whose address changes and whose client's path nobody has re-homed.

    ``admit`` alone does not lead a packet anywhere.
    """
    led = Counter(one.connection for one in rehomed if one.path in (Path.REBIND, Path.TRANSLATE))
    return [
        connection
        for connection in connections
        if not led[connection]
        and moved_address(connection.local.address, addresses)
        != wire_address(connection.local.address)
    ]


def _entries(todo: Mapping[FourTuple, _Todo], path: Path) -> dict[FourTuple, ConntrackEntry]:
    return {
        name: one.entry for name, one in todo.items() if one.path is path and one.entry is not None
    }


def _addresses_here() -> frozenset[str]:
    with IPRoute() as route:
        return frozenset(
            dict(message["attrs"]).get("IFA_LOCAL") or dict(message["attrs"])["IFA_ADDRESS"]
            for message in route.get_addr()
            if message["family"] in (socket.AF_INET, socket.AF_INET6)
        )
