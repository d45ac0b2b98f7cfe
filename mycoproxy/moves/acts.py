"""Carries out what the agreement orders, with the parts of this node, and reports to it."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

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
    message_to_plain,
)
from mycoproxy.agreement.messages import Commit
from mycoproxy.errors import MycoError
from mycoproxy.handover.leading import all_of
from mycoproxy.moves.background import Background
from mycoproxy.moves.caretaker import Caretaker
from mycoproxy.moves.entries import Entries, Entry
from mycoproxy.moves.methods import Method
from mycoproxy.moves.parts import NAME, Parts
from mycoproxy.moves.peer import PeerPart
from mycoproxy.moves.remote import Call
from mycoproxy.moves.source import SourcePart
from mycoproxy.moves.target import CopyDeadError, TargetPart
from mycoproxy.peering import PeeringError

log = logging.getLogger(__name__)


class Acts:
    """``say``: seconds for a message of the agreement, which is repeated if it is lost."""

    def __init__(
        self,
        moves: Moves,
        call: Call,
        entries: Entries,
        parts: Parts,
        *,
        background: Background,
        caretaker: Caretaker,
        say: float,
    ) -> None:
        self._moves = moves
        self._call = call
        self._entries = entries
        self._parts = parts
        self._background = background
        self._caretaker = caretaker
        self._say_seconds = say
        self.ended: list[Callable[[Entry, bool], None]] = []
        """Called for each move that had begun and is over, and whether it moved; ahead of the end
        of its part."""
        self.over: list[Callable[[MoveId, bool], None]] = []
        """Called for each move, ahead of that, also for one that has no part here."""
        self.stepped: list[Callable[[], None]] = []
        """Called whenever moves may have gone on."""
        self.refused = 0
        """Messages of the agreement that were not for their senders to say."""
        self._acting: dict[MoveId, asyncio.Task[None]] = {}
        self._to_recall: set[MoveId] = set()
        self._changed = asyncio.Event()

    async def recover(self) -> list[Order]:
        """Take up what the journal holds; the first thing that is done. Returns what is due."""
        orders = self._moves.recover()
        self._to_recall = {status.move for status in self._moves.status()}
        for move in sorted(self._to_recall):
            try:
                await self._recall(move)
            except (MycoError, OSError) as error:  # it is tried again before anything is done
                log.error("%s: cannot be taken up again: %s", move, error)  # noqa: TRY400
        return orders

    async def keep_time(self) -> None:
        """Do what is due, for ever."""
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
                self.carry_out(self._moves.wake())

    def carry_out(self, orders: Iterable[Order]) -> None:
        """Begin what is ordered; does not wait."""
        self._changed.set()
        for order in orders:
            match order:
                case Send(node, message):
                    self._background.spawn(self._say(node, message_to_plain(message)))
                    if isinstance(message, Commit) and message.move.source == self._entries.name:
                        self._committed(message.move)
                case Do(move, act):
                    self._begin(move, act)
                case Over(move, live):
                    for tell in self.over:
                        tell(move, live)
                    self._background.spawn(self._end(move, live=live))
                case Refuse(node, reason):
                    self.refused += 1
                    log.warning("refused what %s said: %s", node, reason)
        for look in self.stepped:
            look()

    async def close(self, entry: Entry) -> None:
        """Its part has ended, or has not begun."""
        self._entries.remove(entry)
        if not isinstance(entry.part, PeerPart):
            self._parts.forget_channel(entry.name)
        if not entry.over.done():
            entry.over.set_result(False)
        if isinstance(entry.part, SourcePart):
            for node in entry.part.opened:
                self._background.spawn(self._say_closed(node, entry.name))
        try:
            await entry.part.close()
        except (MycoError, OSError) as error:
            log.warning("%s: not closed cleanly: %s", entry.name, error)
        for path in entry.part.paths:
            self._caretaker.look_after(path)

    def look_after(self, path: Path) -> None:
        """Something may be translated, or led, in this namespace from now on."""
        self._caretaker.look_after(path)

    async def _say(self, node: str, message: Mapping[str, Any]) -> None:
        try:
            await self._call(
                node, Method.AGREE.value, {"message": message}, deadline=self._say_seconds
            )
        except (PeeringError, OSError) as error:  # it is said again
            log.debug("%s did not hear %s: %s", node, message["kind"], error)

    async def _say_closed(self, node: str, name: str) -> None:
        with suppress(PeeringError, OSError):  # it asks
            await self._call(node, Method.CLOSE.value, {"move": name}, deadline=self._say_seconds)

    def _committed(self, move: MoveId) -> None:
        entry = self._entries.of(move)
        if entry is None or entry.told or not isinstance(entry.part, SourcePart):
            return
        entry.told = True
        if entry.prepared.done():  # not after a restart: what was lost is lost
            self._background.spawn(self._deliver(entry.part))

    async def _deliver(self, part: SourcePart) -> None:
        try:
            await part.committed()
        except MycoError as error:
            log.warning("%s: what was lost meanwhile was not delivered: %s", part.place.move, error)

    def _begin(self, move: MoveId, act: Act) -> None:
        before = self._acting.get(move)
        self._acting[move] = self._background.spawn(self._perform(move, act, before))

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
        except Exception as error:  # ours, and no reason to let all others wait
            log.exception("%s: cannot %s", move, act.action.value)
            outcome = Outcome.FAILED
            self._note_failure(move, error)
        self.carry_out(self._moves.report(move, act.action, outcome))

    def _note_failure(self, move: MoveId, error: Exception) -> None:
        entry = self._entries.of(move)
        if entry is None:
            return
        _fail(entry.prepared, MycoError(str(error)))
        if isinstance(entry.part, SourcePart) and not entry.part.report.error:
            entry.part.report.error = str(error)

    async def _act(self, move: MoveId, act: Act) -> None:
        if act.action is Action.PREPARE:
            entry = await self._entries.bound(move)
            entry.begun = True
            await self._prepare(move, entry)
            if not entry.prepared.done():
                entry.prepared.set_result(None)
            return
        if self._entries.of(move) is None and move in self._to_recall:
            await self._recall(move)
        known = self._entries.of(move)
        if known is None:  # it never began here
            return
        part = known.part
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
                raise MycoError(f"{known.role} cannot {act.action.value}")

    async def _prepare(self, move: MoveId, entry: Entry) -> None:
        part = entry.part
        if isinstance(part, SourcePart):
            await part.prepare(lambda lives: self.carry_out(self._moves.enrol(move, lives)))
            return

        def attach(key: str, data: bytes) -> None:
            self._moves.attach(move, key, data)

        attach(NAME, entry.name.encode())
        part.attach_to(attach)
        if isinstance(part, TargetPart):
            await all_of(_establish(entry), _rehome(entry))
        else:
            await _rehome(entry)

    async def _recall(self, move: MoveId) -> None:
        entry = await self._parts.recall(move, self._moves.attachments(move))
        self._to_recall.discard(move)
        if entry is not None:
            entry.begun = True
            self._entries.add(entry)

    async def _end(self, move: MoveId, *, live: bool) -> None:
        self._acting.pop(move, None)
        entry = self._entries.forget(move)
        if entry is None:
            return
        if not entry.over.done():
            entry.over.set_result(live)
        _fail(entry.prepared, MycoError(f"{entry.name} was given up"))
        for tell in self.ended:
            tell(entry, live)
        await self.close(entry)


async def _establish(entry: Entry) -> None:
    establish = await asyncio.shield(entry.connections)
    await establish()


async def _rehome(entry: Entry) -> None:
    await entry.node.stage(await asyncio.shield(entry.staged))
    await entry.node.rehome(*await asyncio.shield(entry.tasks))


def _fail(future: "asyncio.Future[None]", error: MycoError) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # seen, if nobody waits
