"""A peer node in a network namespace of this machine: finds its part of each path, re-homes it."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from mycoproxy.addresses import Endpoint, FourTuple, wire_address
from mycoproxy.errors import MycoError
from mycoproxy.handover.anchoring import Anchoring
from mycoproxy.handover.sides import Offer, Task
from mycoproxy.namespaces import NamespaceWorker
from mycoproxy.netfilter.anchor import Anchors
from mycoproxy.netfilter.conntrack import Conntrack
from mycoproxy.netfilter.elements import on_the_wire
from mycoproxy.netfilter.entry import ConntrackEntry, wire_direction
from mycoproxy.netfilter.hold import Hold
from mycoproxy.netfilter.local_addresses import local_addresses
from mycoproxy.netfilter.nft import Nft
from mycoproxy.netfilter.paths import Network, Path, Standpoint, choose_path
from mycoproxy.netfilter.rebind import Rebound, admit, rebind
from mycoproxy.netfilter.rebind import undo as undo_rebind
from mycoproxy.netfilter.renamed import plain_entry, renamed_entry, untracked_entry
from mycoproxy.netfilter.translate import (
    Move,
    Translate,
    Translations,
    compose,
    present_name,
)
from mycoproxy.sockdiag import SocketLookup
from mycoproxy.tcp import Segment, Tap, TcpError


@dataclass(frozen=True, slots=True)
class Changes:
    """What one ``rehome`` does in one namespace. Plain data.

    ``translated``: how the connections of ``moves`` were translated before. ``replaced``: conntrack
    entries by the connections' names on the wire. ``obsolete``: entries that go when the move is
    finished. ``needs_nat``: the kernel has to look at entries' NAT.
    """

    moves: list[Move]
    translated: dict[FourTuple, Endpoint]
    replaced: dict[FourTuple, Rebound]
    added: list[ConntrackEntry]
    obsolete: list[ConntrackEntry]
    needs_nat: bool


_NOTHING_STAGED: tuple[Sequence[Task], Changes | None] = ((), None)


class LocalPeer:
    """One namespace of a peer node. ``prepare`` ahead of the freeze, ``survey`` once the workload
    stands, ``close`` when the move has ended.

    What ``rehome`` changed stays after ``close``: it lives as long as the connections do.
    ``behind``: see ``Standpoint``. ``note`` is told of changes before they are made; it may prevent
    them by raising. With what it was told another process can ``recall`` them.
    """

    def __init__(
        self,
        name: str,
        worker: NamespaceWorker,
        move: str,
        *,
        behind: Sequence[Network] | None = None,
        note: Callable[[Changes], None] | None = None,
    ) -> None:
        self.name = name
        self._worker = worker
        self._move = move
        self._note = note
        self._behind = None if behind is None else tuple(behind)
        self._begun = False
        self._opened = False
        self._nft: Nft
        self._conntrack: Conntrack
        self._sockets: SocketLookup
        self._hold: Hold
        self._translate: Translate
        self._anchors: Anchors
        self._anchoring: Anchoring
        self._own_addresses: frozenset[str] = frozenset()
        self._rebound: list[Rebound] = []
        self._moves: list[Move] = []
        self.known_behind: frozenset[str] = frozenset()
        """Addresses of pods, which are behind this node beside its own."""
        self._surveyed: dict[FourTuple, Offer] = {}
        self._staged = _NOTHING_STAGED
        self._obsolete: list[ConntrackEntry] = []
        self._held_names: dict[FourTuple, FourTuple] = {}
        self._lost: list[Segment] = []
        self._tap: Tap | None = None

    async def prepare(self) -> None:
        """Open the sockets to the kernel and make the tables, so that re-homing is quick."""
        self._begun = True
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
        self._anchors = Anchors(self._nft)
        self._anchoring = Anchoring(self._anchors, self._translate, self._conntrack, self._sockets)
        self._own_addresses = local_addresses()

    def has_address(self, address: str) -> bool:
        """Is ``address`` one of this namespace's own?"""
        return wire_address(address) in self._own_addresses

    async def survey(
        self, connections: Sequence[FourTuple], addresses: Mapping[str, str], *, home: bool
    ) -> Sequence[Offer]:
        """See ``Peer``. Connections for which nothing can be done here are left out."""
        return await self._worker.run(self._survey, connections, addresses, home)

    def _survey(
        self, connections: Sequence[FourTuple], addresses: Mapping[str, str], home: bool
    ) -> Sequence[Offer]:
        entries = self._conntrack.find(connections)
        clients_here = self._clients_here(connections)
        standpoint = Standpoint(
            home=home,
            behind=self._behind,
            addresses=self.known_behind | self._own_addresses,
        )
        paths = {
            connection: choose_path(
                connection,
                addresses=addresses,
                entry=entries.get(connection),
                local_addresses=self._own_addresses if connection in clients_here else (),
                standpoint=standpoint,
            )
            for connection in connections
        }
        anchors = self._anchoring.ends(
            [
                connection
                for connection, path in paths.items()
                # The workload's own node is asked for more, if nobody else leads a connection.
                if path is Path.ANCHOR or (home and path not in (Path.REBIND, Path.TRANSLATE))
            ],
            connections,
            addresses,
            self._own_addresses,
        )
        offers = [
            Offer(connection, path, entries.get(connection), anchors.get(connection))
            for connection, path in paths.items()
            if path is not Path.NOTHING or connection in entries or connection in anchors
        ]
        self._surveyed.update((offer.connection, offer) for offer in offers)
        return offers

    async def stage(self, tasks: Sequence[Task]) -> None:
        """See ``Peer``. Entries under new names are there from now on: nothing has them yet."""
        changes = await self._noted_changes(tasks)
        await self._worker.run(self._admit, changes.added)
        self._staged = tasks, changes

    async def rehome(self, tasks: Sequence[Task], without: Collection[FourTuple] = ()) -> None:
        """See ``Peer``."""
        (staged, changes), self._staged = self._staged, _NOTHING_STAGED
        if changes is not None and without:
            left = [task for task in staged if task.connection not in without]
            changes = await self._worker.run(self._left_of, changes, left)
        if changes is not None:
            await self._worker.run(self._apply, changes)
        if tasks:
            changes = await self._noted_changes(tasks)
            await self._worker.run(self._apply, changes)
            await self._worker.run(self._admit, changes.added)

    async def _noted_changes(self, tasks: Sequence[Task]) -> Changes:
        changes = await self._worker.run(self._changes, tasks)
        if self._note is not None:
            self._note(changes)
        if changes.needs_nat:
            await self._worker.run(self._anchors.add, _anchored(tasks, changes))
        return changes

    def _changes(self, tasks: Sequence[Task]) -> Changes:
        # Conntrack goes on knowing what is translated here by the name that the client dialled.
        dialled = {task.connection for task in tasks if task.path is Path.TRANSLATE}
        added = [self._added(task) for task in tasks if task.path in (Path.ADMIT, Path.CARRY)]
        clients = {on_the_wire(name.remote) for name in dialled}
        # Only who recalls it wants to know; the kernel is not asked for nothing in a handover.
        translated = self._translate.list() if clients and self._note is not None else {}
        return Changes(
            moves=[
                Move(task.connection, task.after.local)
                for task in tasks
                if task.path is Path.TRANSLATE
            ],
            translated={name: now for name, now in translated.items() if name.remote in clients},
            replaced={
                task.connection: self._replaced(task)
                for task in tasks
                if task.path in (Path.REBIND, Path.ANCHOR)
            },
            added=list(dict.fromkeys(added)),
            obsolete=[
                entry
                for task in tasks
                if task.path in (Path.ADMIT, Path.NOTHING)
                and task.connection not in dialled
                and (entry := self._entry(task.connection)) is not None
            ],
            needs_nat=any(task.path in (Path.ANCHOR, Path.CARRY) for task in tasks),
        )

    def _apply(self, changes: Changes) -> None:
        if changes.moves:
            self._translate.add(changes.moves)
            self._moves += changes.moves
        if changes.replaced:
            self._rebind(changes.replaced)
        self._obsolete += changes.obsolete

    def _admit(self, entries: Sequence[ConntrackEntry]) -> None:
        if entries:
            self._rebound += admit(self._conntrack, entries)

    def _left_of(self, changes: Changes, tasks: Sequence[Task]) -> Changes:
        """The changes of these tasks, which are what is left of those of ``changes``."""
        left = self._changes(tasks)
        gone = {Rebound(None, entry) for entry in changes.added} - {
            Rebound(None, entry) for entry in left.added
        }
        self._conntrack.delete([one.new for one in gone])
        self._rebound = [one for one in self._rebound if one not in gone]
        return left

    def _replaced(self, task: Task) -> Rebound:
        old = self._entry(task.connection)
        new = renamed_entry(old or untracked_entry(task.connection), task.connection, task.after)
        return Rebound(old, new)

    def _added(self, task: Task) -> ConntrackEntry:
        if task.entry is not None:
            return task.entry
        old = self._entry(task.connection)
        if old is None:
            raise MycoError(f"{self.name} does not know {task.connection}, and is to go on with it")
        return plain_entry(old, task.connection, task.after)

    def _entry(self, connection: FourTuple) -> ConntrackEntry | None:
        offer = self._surveyed.get(connection)
        return None if offer is None else offer.entry

    def _rebind(self, changes: Mapping[FourTuple, Rebound]) -> None:
        # While they are held here, their packets have the names that the other side gave them.
        self._held_names |= {_outer_side(change, name): name for name, change in changes.items()}
        tap = self._listening_tap()
        try:
            rebind(self._conntrack, self._hold, list(changes.values()))
        finally:
            tap.pause()
        self._rebound += changes.values()
        with suppress(TcpError):  # it overflowed: then the clients send again, later
            self._lost += [
                segment.moved_to(name)
                for segment in tap.arrived()
                if (name := self._held_names.get(segment.connection)) is not None
            ]

    async def recall(self, noted: Sequence[Changes]) -> None:
        """Take over what another process was about to do here, and did in part: for ``undo`` and
        ``finish``. After ``prepare``."""
        await self._worker.run(self._recall, noted)

    def _recall(self, noted: Sequence[Changes]) -> None:
        translated = self._translate.list()
        for changes in noted:
            self._moves += [
                move
                for move in changes.moves
                if is_in_force(move, before=changes.translated, now=translated)
            ]
            self._rebound += [
                change
                for change in (
                    *changes.replaced.values(),
                    *(Rebound(None, entry) for entry in changes.added),
                )
                if self._is_in_force(change)
            ]
            self._obsolete += changes.obsolete

    def _is_in_force(self, change: Rebound) -> bool:
        """Was the old entry taken away, or the new one put in its place? Or both not."""
        old = change.old
        found = self._conntrack.get((old or change.new).orig, zone=change.new.zone)
        return found is None or old is None or found.reply != old.reply

    def _listening_tap(self) -> Tap:
        if self._tap is None:
            self._tap = Tap()
        else:
            self._tap.go_on()
        return self._tap

    def _clients_here(self, connections: Sequence[FourTuple]) -> frozenset[FourTuple]:
        """Those whose client is here *and* dialled the workload itself.

        A client that dialled a Service has its address here too, but another node's NAT in between:
        its socket knows another address than the workload's.
        """
        if not any(wire_address(one.remote.address) in self._own_addresses for one in connections):
            return frozenset()
        translated = {present_name(*one) for one in self._translate.list().items()}
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
        """See ``Peer``. All that arrived: whoever has the states knows what is news in it."""
        lost, self._lost = self._lost, []
        return lost

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

    async def finish(self) -> None:
        """See ``Peer``."""
        await self._worker.run(self._finish)

    def _finish(self) -> None:
        obsolete, self._obsolete = self._obsolete, []
        if obsolete:
            self._conntrack.delete(obsolete)  # those that are gone already are no error

    async def close(self) -> None:
        """Remove what was only for the time of the move."""
        if self._begun:  # it may be under way, and cannot be stopped
            self._begun = False
            await self._worker.run(self._close)

    def _close(self) -> None:
        if not self._opened:
            return
        self._opened = False
        if self._tap is not None:
            # Only now: closing a packet socket waits for an RCU grace period, some 20 ms.
            self._tap.close()
        self._hold.release()
        self._nft.close()
        self._conntrack.close()
        self._sockets.close()


def is_in_force(move: Move, *, before: Translations, now: Translations) -> bool:
    """Was ``move`` made, given what was translated ahead of it, and what is?"""
    after = compose(before, [move])
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    return all(now.get(name) == after.get(name) for name in changed)


def _anchored(tasks: Sequence[Task], changes: Changes) -> Iterator[FourTuple]:
    """What the other ends' packets are called, of those whose NAT has no rules of its own here."""
    for task in tasks:
        if task.path is Path.ANCHOR:
            yield _outer_side(changes.replaced[task.connection], task.connection)
        elif task.path is Path.CARRY and task.entry is not None:
            there, here = task.entry.reply
            yield FourTuple(local=here, remote=there)


def _outer_side(change: Rebound, name: FourTuple) -> FourTuple:
    """What packets from the other side are called, ahead of NAT here."""
    entry = change.old or change.new
    if wire_direction(name.local, name.remote) == entry.orig:
        return FourTuple(local=entry.reply.destination, remote=entry.reply.source)
    return FourTuple(local=entry.orig.destination, remote=entry.orig.source)
