"""All moves of one agent: carries out what the agreement orders, with the parts of this node.

Three come to it: the local driver (``open_source``, ``collect``, ``hand_over``; ``open_target``,
``restored``), other agents (``handle``), and, after a restart, the journal (``start``).

A participant's part is opened by name, ahead of the agreement: the target's by its driver, a
peer's by the source's agent. It is bound to the agreement's move by the source's first request
that has both. Until then nothing was changed on this node, but for empty tables; a part that stays
unbound is closed after a while.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.agreement import (
    Act,
    Action,
    Do,
    MoveId,
    Moves,
    Order,
    Outcome,
    Over,
    Refuse,
    Send,
    message_from_plain,
    message_to_plain,
)
from mycoproxy.agreement.messages import Commit
from mycoproxy.errors import MycoError, UsageError
from mycoproxy.handover import Connection, Task, plain
from mycoproxy.moves.caretaker import Caretaker
from mycoproxy.moves.driver import Channel
from mycoproxy.moves.methods import MOST_BYTES, Method
from mycoproxy.moves.namespaces import NodeNamespaces
from mycoproxy.moves.peer import PeerPart
from mycoproxy.moves.remote import Call, RemotePeer, RemoteTarget
from mycoproxy.moves.source import Report, SourcePart, SourcePlace
from mycoproxy.moves.target import CopyDeadError, TargetPart, TargetPlace
from mycoproxy.namespaces import NamespaceWorker
from mycoproxy.netfilter.hold import left_holds
from mycoproxy.netfilter.nft import Nft
from mycoproxy.netfilter.paths import Network
from mycoproxy.peering import Body, PeeringError, Reply, RequestError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds, and bytes. ``call``: for one request to another agent; ``say``: for a message of the
    agreement, which is repeated if it is lost; ``ask``: how often a part that has not begun asks
    whether it will; ``unbound``: when it gives up if the source cannot be asked."""

    call: float = 20.0
    say: float = 5.0
    ask: float = 3.0
    unbound: float = 300.0
    votes: float = 60.0
    queues: int = 1 << 30


@dataclass(slots=True, eq=False)
class _Entry:
    """A part of this node in one move, whoever opened it."""

    name: str
    source: str
    part: SourcePart | TargetPart | PeerPart
    id: MoveId | None = None
    prepared: "asyncio.Future[None]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    tasks: "asyncio.Future[Sequence[Task]]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    connections: "asyncio.Future[Callable[[], Awaitable[None]]]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    over: "asyncio.Future[bool]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    told: bool = False
    addresses: set[str] = field(default_factory=set)

    @property
    def role(self) -> str:
        if isinstance(self.part, SourcePart):
            return "source"
        return "target" if isinstance(self.part, TargetPart) else "peer"


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
        limits: Limits = Limits(),
    ) -> None:
        self.name = moves.name
        self._moves = moves
        self._call = call
        self._namespaces = namespaces
        self._known = known
        self._behind = behind
        self._limits = limits
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._by_id: dict[MoveId, _Entry] = {}
        self._bound: dict[MoveId, asyncio.Future[_Entry]] = {}
        self._actions: dict[MoveId, asyncio.Task[None]] = {}
        self._channels: dict[str, Channel] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Event()
        self._is_up = asyncio.Event()
        self._to_recall: set[MoveId] = set()
        self.caretaker = Caretaker(self._moving_addresses)

    # --- an agent's life --------------------------------------------------------------------

    async def start(self) -> None:
        """Take up what the journal holds, and keep time."""
        orders = self._moves.recover()
        self._to_recall = {status.move for status in self._moves.status()}
        for move in sorted(self._to_recall):
            try:
                await self._recall(move)
            except (MycoError, OSError) as error:  # it is tried again before anything is done
                log.error("%s: cannot be taken up again: %s", move, error)  # noqa: TRY400
        await asyncio.to_thread(self._tidy)
        self._is_up.set()
        self._carry_out(orders)
        for path in self._namespaces.paths():
            self.caretaker.look_after(path)
        self._spawn(self._keep_time())

    async def stop(self) -> None:
        """End what is under way, as it stands: the journal has it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.caretaker.stop()

    def _tidy(self) -> None:
        """Remove holds of moves that had not begun when the agent before this one ended."""
        known = [entry.name for entry in self._entries.values()]
        for path in self._namespaces.paths():
            with suppress(MycoError, OSError), NamespaceWorker(path) as worker:
                worker.call(_remove_left_holds, known)

    def _moving_addresses(self) -> frozenset[str]:
        return frozenset().union(*(entry.addresses for entry in self._entries.values()))

    async def _keep_time(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            due = self._moves.next_wake()
            if due is None:
                await self._changed.wait()
                continue
            try:
                async with asyncio.timeout(max(0.0, due - loop.time())):
                    await self._changed.wait()
            except TimeoutError:
                self._carry_out(self._moves.wake())

    async def _recall(self, move: MoveId) -> None:
        attachments = self._moves.attachments(move)
        name = str(move)
        part: SourcePart | TargetPart | PeerPart | None = None
        if move.source == self.name:
            where = SourcePart.place_of(attachments)
            if where is not None:
                name = where.move
                part = await self._source(where, ()).recall(attachments)
        else:
            place = TargetPart.place_of(attachments)
            if place is not None:
                name = place.move
                part = await TargetPart.recall(
                    place,
                    attachments,
                    self._peer(name),
                    self._namespaces,
                    self.channel(name),
                )
            elif _NAME in attachments:
                name = attachments[_NAME].decode()
                peer = self._peer(name)
                await peer.prepare()
                await peer.recall(attachments)
                part = peer
        self._to_recall.discard(move)
        if part is not None:
            entry = _Entry(name, move.source, part, move)
            self._entries[move.source, name] = self._by_id[move] = entry

    # --- the local driver -------------------------------------------------------------------

    def channel(self, name: str) -> Channel:
        """The orders to the driver of a move on this node."""
        return self._channels.setdefault(name, Channel())

    def name_of(self, move: MoveId) -> str:
        """What a move is called on every node; its id if that is not known here."""
        entry = self._by_id.get(move)
        return str(move) if entry is None else entry.name

    def knows(self, name: str) -> bool:
        """Is there anything of a move of that name here, for a driver?"""
        return any(
            entry.name == name and not isinstance(entry.part, PeerPart)
            for entry in self._entries.values()
        )

    async def open_source(self, place: SourcePlace) -> None:
        """The workload is here and is to move. Raises ``MycoError``."""
        self._refuse_twice(self.name, place.move)
        if place.target == self.name:
            raise UsageError(f"{place.move}: source and target are both {self.name}")
        nodes = sorted({*self._known(), place.target} - {self.name})
        part = self._source(place, nodes)
        entry = self._entries[self.name, place.move] = _Entry(place.move, self.name, part)
        entry.addresses = {*place.addresses, *place.addresses.values()}
        try:
            await part.open()
        except BaseException:
            await self._close(entry)
            raise

    async def collect(self, name: str) -> None:
        """The workload of ``name`` stands: find its connections, and begin the agreement."""
        entry = self._own(name)
        part = entry.part
        assert isinstance(part, SourcePart)
        await part.collect()
        target = part.place.target
        peers = [node for node in part.involved if node != target]
        move, orders = self._moves.begin(target, peers, part.involved, votes=self._limits.votes)
        entry.id = move
        self._by_id[move] = entry
        if any(isinstance(order, Over) for order in orders):
            self._carry_out(orders)
            raise MycoError(f"{name}: the journal did not take the beginning; see the agent's log")
        part.begun(str(move), lambda key, data: self._moves.attach(move, key, data))
        self._carry_out(orders)

    async def hand_over(self, name: str) -> tuple[bool, Report]:
        """The copy is there and stands. Returns when the outcome is certain: True: it moved."""
        entry = self._own(name)
        assert isinstance(entry.part, SourcePart)
        entry.part.hand_over()
        moved = await asyncio.shield(entry.over)
        return moved, entry.part.report

    async def abort(self, name: str) -> None:
        """Give up before the commit. Returns when the source goes on."""
        entry = self._own(name)
        if entry.id is None:
            await self._close(entry)
        else:
            self._carry_out(self._moves.abort(entry.id))
            await asyncio.shield(entry.over)

    async def open_target(self, place: TargetPlace) -> None:
        """The workload's new place is here, and empty. Raises ``MycoError``."""
        self._refuse_twice(place.source, place.move)
        part = TargetPart(place, self._peer(place.move), self._namespaces, self.channel(place.move))
        entry = self._entries[place.source, place.move] = _Entry(place.move, place.source, part)
        try:
            await part.prepare()
        except BaseException:
            await self._close(entry)
            raise
        self._spawn(self._expire(entry))

    def restored(self, name: str, init_pid: int, pids: Sequence[int]) -> None:
        """The copy is there and stands. Raises ``UsageError``."""
        for entry in self._entries.values():
            if entry.name == name and isinstance(entry.part, TargetPart):
                entry.part.collect(init_pid, pids)
                return
        raise UsageError(f"this node is not the target of a move {name}")

    def _own(self, name: str) -> _Entry:
        entry = self._entries.get((self.name, name))
        if entry is None or not isinstance(entry.part, SourcePart):
            raise UsageError(f"this node is not the source of a move {name}")
        return entry

    def _refuse_twice(self, source: str, name: str) -> None:
        if (source, name) in self._entries:
            raise UsageError(f"there is a move {name} of {source} here already")

    # --- other agents -----------------------------------------------------------------------

    async def handle(  # noqa: PLR0911
        self, peer: str, method: str, args: dict[str, Any], body: Body
    ) -> Reply:
        """A request of another agent, whose certificate says that it is ``peer``."""
        try:
            what = Method(method)
        except ValueError:
            raise RequestError("unknown", f"no such method: {method!r:.80}") from None
        # Nothing may be decided about a move whose part is not there yet.
        await self._is_up.wait()
        if what is Method.AGREE:
            message = message_from_plain(args.get("message"))
            self._carry_out(self._moves.receive(peer, message))
            return Reply()
        name = args.get("move")
        if not isinstance(name, str):
            raise RequestError("arguments", "the name of a move is wanted")
        if what is Method.OPEN:
            return await self._open(peer, name)
        if what is Method.KNOWS:
            return Reply({"known": (self.name, name) in self._entries})
        entry = self._entries.get((peer, name))
        if what is Method.CLOSE:
            if entry is not None:
                self._spawn(self._give_up(entry))
            return Reply()
        if entry is None:
            raise RequestError("unknown", f"{self.name} has no part in {name} of {peer}")
        if what is Method.SURVEY:
            return await self._survey(entry, args, body)
        self._bind(entry, args.get("id"))
        if what is Method.REHOME:
            return await self._rehome(entry, body)
        if not isinstance(entry.part, TargetPart):
            raise RequestError("role", f"{self.name} is not the target of {name}")
        return await self._as_target(what, entry, entry.part, args, body)

    async def _as_target(
        self, what: Method, entry: _Entry, part: TargetPart, args: dict[str, Any], body: Body
    ) -> Reply:
        addresses = plain.addresses_from_plain(args.get("addresses", {}))
        via = plain.via_from_plain(args.get("via", [[], []]))
        if what is Method.ESTABLISH:
            await self._establish(entry, part, body, addresses, via)
            return Reply()
        segments = plain.segments_from_bytes(await body.read(MOST_BYTES))
        if what is Method.DELIVER:
            return Reply({"live": plain.went_live_to_plain(await part.deliver(segments))})
        await part.welcome(segments, addresses, via)
        return Reply()

    async def _open(self, source: str, name: str) -> Reply:
        if (source, name) not in self._entries:
            part = self._peer(name)
            entry = self._entries[source, name] = _Entry(name, source, part)
            try:
                await part.prepare()
            except BaseException:
                await self._close(entry)
                raise
            self._spawn(self._expire(entry))
        return Reply({"life": self._moves.life})

    async def _survey(self, entry: _Entry, args: dict[str, Any], body: Body) -> Reply:
        names = plain.names_from_bytes(await body.read(MOST_BYTES))
        addresses = plain.addresses_from_plain(args.get("addresses"))
        entry.addresses |= {*addresses, *addresses.values()}
        node = entry.part.node if isinstance(entry.part, TargetPart) else entry.part
        assert isinstance(node, PeerPart)
        offers = await node.survey(names, addresses, home=False)
        return Reply(body=plain.offers_to_bytes(offers))

    def _bind(self, entry: _Entry, text: object) -> None:
        if not isinstance(text, str):
            raise RequestError("arguments", "the id of the move is wanted")
        move = MoveId.parse(text)
        if move.source != entry.source or entry.id not in (None, move):
            raise RequestError("move", f"{entry.name} of {entry.source} is not {text:.80}")
        if entry.id is None:
            entry.id = move
            self._by_id[move] = entry
            bound = self._bound.setdefault(move, asyncio.get_running_loop().create_future())
            if not bound.done():
                bound.set_result(entry)

    async def _rehome(self, entry: _Entry, body: Body) -> Reply:
        tasks = plain.tasks_from_bytes(await body.read(MOST_BYTES))
        node = entry.part.node if isinstance(entry.part, TargetPart) else entry.part
        assert isinstance(node, PeerPart)
        if entry.tasks.done():  # of connections that came later
            await node.rehome(tasks)
        else:
            entry.tasks.set_result(tasks)
            await asyncio.shield(entry.prepared)
        return Reply(body=plain.segments_to_bytes(await node.lost_segments()))

    async def _establish(
        self,
        entry: _Entry,
        part: TargetPart,
        body: Body,
        addresses: Mapping[str, str],
        via: Mapping[FourTuple, Endpoint],
    ) -> None:
        reader = plain.ConnectionReader(most_bytes=self._limits.queues)
        parts: list[bytes] = []
        connections: list[Connection] = []
        async for chunk in body:
            parts.append(chunk)
            connections += reader.feed(chunk)
        if not entry.connections.done():
            entry.connections.set_result(lambda: part.establish(parts, connections, addresses, via))
        await asyncio.shield(entry.prepared)

    async def _expire(self, entry: _Entry) -> None:
        """Close a part that has not begun, once its source knows nothing of it any more."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._limits.unbound
        while entry.id is None and self._entries.get((entry.source, entry.name)) is entry:
            await asyncio.sleep(self._limits.ask)
            if entry.id is None and (loop.time() > end or not await self._is_known(entry)):
                await self._give_up(entry)

    async def _is_known(self, entry: _Entry) -> bool:
        try:
            answer = await self._call(
                entry.source,
                Method.KNOWS.value,
                {"move": entry.name},
                deadline=self._limits.say,
            )
        except (PeeringError, OSError):
            return True  # nobody said that it is over
        return bool(answer.result.get("known"))

    async def _give_up(self, entry: _Entry) -> None:
        """It has not begun, so it has not voted, and nothing was changed."""
        if entry.id is not None or self._entries.get((entry.source, entry.name)) is not entry:
            return
        log.info("%s of %s never began: closed", entry.name, entry.source)
        if isinstance(entry.part, TargetPart):
            with suppress(MycoError):
                await entry.part.undo()
        await self._close(entry)

    # --- what the agreement orders ----------------------------------------------------------

    def _carry_out(self, orders: Iterable[Order]) -> None:
        self._changed.set()
        for order in orders:
            match order:
                case Send(node, message):
                    self._spawn(self._say(node, message_to_plain(message)))
                    if isinstance(message, Commit) and message.move.source == self.name:
                        self._committed(message.move)
                case Do(move, act):
                    self._begin(move, act)
                case Over(move, live):
                    self._spawn(self._end(move, live=live))
                case Refuse(node, reason):
                    log.warning("refused what %s said: %s", node, reason)

    async def _say(self, node: str, message: Mapping[str, Any]) -> None:
        try:
            await self._call(
                node, Method.AGREE.value, {"message": message}, deadline=self._limits.say
            )
        except (PeeringError, OSError) as error:  # it is said again
            log.debug("%s did not hear %s: %s", node, message["kind"], error)

    async def _say_closed(self, node: str, name: str) -> None:
        with suppress(PeeringError, OSError):  # it asks
            await self._call(node, Method.CLOSE.value, {"move": name}, deadline=self._limits.say)

    def _committed(self, move: MoveId) -> None:
        entry = self._by_id.get(move)
        if entry is None or entry.told or not isinstance(entry.part, SourcePart):
            return
        entry.told = True
        if entry.prepared.done():  # not after a restart: what was lost is lost
            self._spawn(self._deliver(entry.part))

    async def _deliver(self, part: SourcePart) -> None:
        try:
            await part.committed()
        except MycoError as error:
            log.warning("%s: what was lost meanwhile was not delivered: %s", part.place.move, error)

    def _begin(self, move: MoveId, act: Act) -> None:
        before = self._actions.get(move)
        self._actions[move] = self._spawn(self._perform(move, act, before))

    async def _perform(self, move: MoveId, act: Act, before: "asyncio.Task[None] | None") -> None:
        if before is not None and not before.done():
            before.cancel()
            await asyncio.wait({before})
        outcome = Outcome.DONE
        try:
            await self._act(move, act)
        except CopyDeadError:
            outcome = Outcome.DEAD
        except (MycoError, OSError) as error:
            log.error("%s: cannot %s: %s", move, act.action.value, error)  # noqa: TRY400
            outcome = Outcome.FAILED
            self._note_failure(move, error)
        self._carry_out(self._moves.report(move, act.action, outcome))

    def _note_failure(self, move: MoveId, error: Exception) -> None:
        entry = self._by_id.get(move)
        if entry is None:
            return
        if not entry.prepared.done():
            entry.prepared.set_exception(MycoError(str(error)))
            entry.prepared.exception()  # seen, if nobody waits
        if isinstance(entry.part, SourcePart) and not entry.part.report.error:
            entry.part.report.error = str(error)

    async def _act(self, move: MoveId, act: Act) -> None:
        entry = self._by_id.get(move)
        if act.action is Action.PREPARE:
            if entry is None:
                entry = await asyncio.shield(
                    self._bound.setdefault(move, asyncio.get_running_loop().create_future())
                )
            await self._prepare(move, entry)
            if not entry.prepared.done():
                entry.prepared.set_result(None)
            return
        if entry is None and move in self._to_recall:
            await self._recall(move)
            entry = self._by_id.get(move)
        if entry is None:  # it never began here
            return
        part = entry.part
        match act.action:
            case Action.UNDO:
                await (part.undo(act.unreached) if isinstance(part, SourcePart) else part.undo())
            case Action.GO_LIVE if isinstance(part, TargetPart):
                await part.go_live()
            case Action.FINISH if isinstance(part, PeerPart):
                await part.finish()
            case Action.REMOVE if isinstance(part, SourcePart):
                await part.remove()
            case _:
                raise MycoError(f"{entry.role} cannot {act.action.value}")

    async def _prepare(self, move: MoveId, entry: _Entry) -> None:
        part = entry.part
        if isinstance(part, SourcePart):
            await part.prepare(lambda lives: self._carry_out(self._moves.enrol(move, lives)))
            return

        def attach(key: str, data: bytes) -> None:
            self._moves.attach(move, key, data)

        attach(_NAME, entry.name.encode())
        part.attach_to(attach)
        if isinstance(part, TargetPart):
            establish = await asyncio.shield(entry.connections)
            await establish()
            await part.node.rehome(await asyncio.shield(entry.tasks))
        else:
            await part.rehome(await asyncio.shield(entry.tasks))

    async def _end(self, move: MoveId, *, live: bool) -> None:
        self._bound.pop(move, None)
        self._actions.pop(move, None)
        entry = self._by_id.pop(move, None)
        if entry is None:
            return
        if not entry.over.done():
            entry.over.set_result(live)
        if not entry.prepared.done():
            entry.prepared.set_exception(MycoError(f"{entry.name} was given up"))
            entry.prepared.exception()
        await self._close(entry)

    async def _close(self, entry: _Entry) -> None:
        if self._entries.get((entry.source, entry.name)) is entry:
            del self._entries[entry.source, entry.name]
        if not isinstance(entry.part, PeerPart):
            self._channels.pop(entry.name, None)
        if not entry.over.done():
            entry.over.set_result(False)
        if isinstance(entry.part, SourcePart):
            for node in entry.part.opened:
                self._spawn(self._say_closed(node, entry.name))
        try:
            await entry.part.close()
        except (MycoError, OSError) as error:
            log.warning("%s: not closed cleanly: %s", entry.name, error)
        for path in entry.part.paths:
            self.caretaker.look_after(path)

    # --- parts ------------------------------------------------------------------------------

    def _peer(self, name: str) -> PeerPart:
        return PeerPart(self.name, name, self._namespaces, behind=self._behind)

    def _source(self, place: SourcePlace, nodes: Iterable[str]) -> SourcePart:
        deadline = self._limits.call
        return SourcePart(
            place,
            self._peer(place.move),
            RemoteTarget(self._call, place.target, place.move, deadline=deadline),
            peers=[RemotePeer(self._call, node, place.move, deadline=deadline) for node in nodes],
            namespaces=self._namespaces,
            orders=self.channel(place.move),
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s", error, exc_info=error)


def _remove_left_holds(known: Sequence[str]) -> None:
    with Nft() as nft:
        for table in left_holds(nft, known):
            log.info("removed %s, which was left behind", table)
            nft.delete_table(table)


_NAME = "name"
