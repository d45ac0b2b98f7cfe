"""All moves of one agent. Three come to it: the local driver, whose requests are here; other
agents (``requests``); and the agreement (``acts``), which after a restart goes on from the journal.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from mycoproxy.agreement import MoveId, Moves, Over
from mycoproxy.errors import MycoError, RefusedError, UsageError
from mycoproxy.moves.acts import Acts
from mycoproxy.moves.admission import Admission
from mycoproxy.moves.background import Background
from mycoproxy.moves.caretaker import Caretaker
from mycoproxy.moves.driver import Channel
from mycoproxy.moves.entries import Entries, Entry
from mycoproxy.moves.left_behind import remove_left_holds
from mycoproxy.moves.limits import DEFAULT, Limits
from mycoproxy.moves.namespaces import NodeNamespaces
from mycoproxy.moves.parts import Parts
from mycoproxy.moves.peer import PeerPart
from mycoproxy.moves.remote import Call
from mycoproxy.moves.requests import Requests
from mycoproxy.moves.source import Report, SourcePlace
from mycoproxy.moves.target import TargetPlace
from mycoproxy.namespaces import NamespaceWorker
from mycoproxy.netfilter.paths import Network
from mycoproxy.peering import Body, Reply


class Engine:
    """One for an agent. ``start`` comes first; all on one event loop.

    ``known``: the names of the other nodes that may be asked, at the time of the call.
    ``behind``: the networks whose packets can only come by this node, see ``Standpoint``.
    """

    def __init__(
        self,
        moves: Moves,
        call: Call,
        namespaces: NodeNamespaces,
        *,
        known: Callable[[], Iterable[str]],
        behind: Sequence[Network] | None,
        limits: Limits = DEFAULT,
    ) -> None:
        self.name = moves.name
        self.caretaker = Caretaker(self._moving_addresses)
        self.entries = Entries(moves.name)
        self.admission = Admission()
        self._moves = moves
        self._namespaces = namespaces
        self._known = known
        self._limits = limits
        self._is_up = asyncio.Event()
        self._background = Background()
        self._parts = Parts(moves.name, call, namespaces, behind=behind, deadline=limits.call)
        self.acts = Acts(
            moves,
            call,
            self.entries,
            self._parts,
            background=self._background,
            caretaker=self.caretaker,
            say=limits.say,
        )
        self._requests = Requests(
            moves,
            call,
            self.entries,
            self._parts,
            acts=self.acts,
            background=self._background,
            limits=limits,
            admission=self.admission,
        )

    async def start(self) -> None:
        """Take up what the journal holds, and keep time."""
        orders = await self.acts.recover()
        await asyncio.to_thread(self._tidy)
        self._is_up.set()
        self.acts.carry_out(orders)
        for path in self._namespaces.paths():
            self.caretaker.look_after(path)
        self._background.spawn(self.acts.keep_time())

    async def stop(self) -> None:
        """End what is under way, as it stands: the journal has it."""
        await self._background.stop()
        await self.caretaker.stop()

    async def handle(self, peer: str, method: str, args: dict[str, Any], body: Body) -> Reply:
        """See ``Requests.handle``."""
        # Nothing may be decided about a move whose part is not there yet.
        await self._is_up.wait()
        return await self._requests.handle(peer, method, args, body)

    def _tidy(self) -> None:
        """Remove holds of moves that had not begun when the agent before this one ended."""
        known = [entry.name for entry in self.entries]
        for path in self._namespaces.paths():
            with suppress(MycoError, OSError), NamespaceWorker(path) as worker:
                worker.call(remove_left_holds, known)

    def _moving_addresses(self) -> frozenset[str]:
        return frozenset().union(*(entry.addresses for entry in self.entries))

    # --- what a driver asks ---------------------------------------------------------------

    def channel(self, name: str) -> Channel:
        """The orders to the driver of a move on this node."""
        return self._parts.channel(name)

    def name_of(self, move: MoveId) -> str:
        """What a move is called on every node; its id if that is not known here."""
        entry = self.entries.of(move)
        return str(move) if entry is None else entry.name

    def knows(self, name: str) -> bool:
        """Is there anything of a move of that name here, for a driver?"""
        return any(
            entry.name == name and not isinstance(entry.part, PeerPart) for entry in self.entries
        )

    async def open_source(self, place: SourcePlace) -> None:
        """The workload is here and is to move. Raises ``MycoError``."""
        self.entries.refuse_twice(self.name, place.move)
        if place.target == self.name:
            raise UsageError(f"{place.move}: source and target are both {self.name}")
        self.admission.one_more(place.move, self._under_way())
        nodes = sorted({*self._known(), place.target} - {self.name})
        part = self._parts.source(place, nodes)
        entry = self.entries.add(Entry(place.move, self.name, part))
        entry.addresses = {*place.addresses, *place.addresses.values()}
        try:
            await part.open()
        except BaseException:
            await self.acts.close(entry)
            raise

    async def collect(self, name: str) -> None:
        """The workload of ``name`` stands: find its connections, and begin the agreement."""
        entry, part = self.entries.own(name)
        self.entries.collector.begin()
        await part.collect(lambda count: self.admission.connections(name, count))
        target = part.place.target
        peers = [node for node in part.involved if node != target]
        move, orders = self._moves.begin(target, peers, part.involved, votes=self._limits.votes)
        self.entries.bind(entry, move)
        if any(isinstance(order, Over) for order in orders):
            self.acts.carry_out(orders)
            raise MycoError(f"{name}: the journal did not take the beginning; see the agent's log")
        part.begun(str(move), lambda key, data: self._moves.attach(move, key, data))
        self.acts.carry_out(orders)

    async def hand_over(self, name: str) -> tuple[bool, Report]:
        """The copy is there and stands. Returns when the outcome is certain: True: it moved."""
        entry, part = self.entries.own(name)
        part.hand_over()
        moved = await asyncio.shield(entry.over)
        return moved, part.report

    async def abort(self, name: str) -> None:
        """Give up before the commit. Returns when the source goes on."""
        entry, _ = self.entries.own(name)
        if entry.id is None:
            await self.acts.close(entry)
        else:
            self.acts.carry_out(self._moves.abort(entry.id))
            await asyncio.shield(entry.over)

    async def open_target(self, place: TargetPlace) -> None:
        """The workload's new place is here, and empty. Raises ``MycoError``."""
        self.entries.refuse_twice(place.source, place.move)
        self.admission.coming(place.move)
        self.admission.one_more(place.move, self._under_way())
        part = self._parts.target(place)
        entry = self.entries.add(Entry(place.move, place.source, part))
        try:
            await part.prepare()
        except BaseException:
            await self.acts.close(entry)
            raise
        self._background.spawn(self._requests.expire(entry))

    def restored(self, name: str, init_pid: int, pids: Sequence[int]) -> None:
        """The copy is there and stands. Raises ``UsageError``."""
        self.entries.coming(name).collect(init_pid, pids)

    # --- what a person asks ---------------------------------------------------------------

    def under_way(self) -> list[dict[str, str]]:
        """Every move that is open or was opened here: its name, ``id`` if it has begun, ``role``,
        and the node that it comes from (``source``)."""
        roles = {(entry.source, entry.name, entry.id): entry.role for entry in self.entries}
        roles |= {
            (one.move.source, str(one.move), one.move): one.role
            for one in self._moves.status()
            if self.entries.of(one.move) is None
        }
        return [
            {"move": name, "id": str(move or ""), "role": role, "source": source}
            for (source, name, move), role in roles.items()
        ]

    def resolve(self, move: str, *, live: bool) -> None:
        """Decide for this node, whose doubt nobody else can end. ``move``: its name, or its id.

        Raises ``RefusedError``, ``UsageError``.
        """
        self.acts.carry_out(self._moves.resolve(self._open_move(move), live=live))

    def gone(self, move: str, node: str) -> None:
        """``node`` is gone for ever, with all that ran on it. Raises like ``resolve``."""
        self.acts.carry_out(self._moves.gone(self._open_move(move), node))

    def _open_move(self, wanted: str) -> MoveId:
        names = {one.move: self.name_of(one.move) for one in self._moves.status()}
        found = [move for move, name in names.items() if wanted in (name, str(move))]
        if not found:
            there = ", ".join(names.values()) or "none"
            raise RefusedError(f"no move {wanted} is open on {self.name}; these are: {there}")
        if len(found) > 1:
            ids = ", ".join(map(str, found))
            raise UsageError(f"there are several moves {wanted}; say which by its id: {ids}")
        return found[0]

    def _under_way(self) -> int:
        return sum(not isinstance(entry.part, PeerPart) for entry in self.entries)
