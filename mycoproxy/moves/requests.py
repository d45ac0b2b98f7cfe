"""What other agents ask of this one for their moves.

Until a part is bound to the agreement's move nothing was changed on this node, but for empty
tables; a part that stays unbound is closed after a while.
"""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from mycoproxy.agreement import MoveId, Moves, message_from_plain
from mycoproxy.errors import MycoError, RefusedError
from mycoproxy.handover import plain
from mycoproxy.moves import datagram_requests
from mycoproxy.moves.acts import Acts
from mycoproxy.moves.admission import Admission
from mycoproxy.moves.background import Background
from mycoproxy.moves.datagram_requests import DatagramRequests
from mycoproxy.moves.entries import Entries, Entry
from mycoproxy.moves.limits import Limits
from mycoproxy.moves.methods import MOST_BYTES, Method
from mycoproxy.moves.parts import Parts
from mycoproxy.moves.remote import Call
from mycoproxy.moves.target import TargetPart
from mycoproxy.peering import Body, PeeringError, Reply, RequestError

log = logging.getLogger(__name__)


class Requests:
    """Answers them."""

    def __init__(
        self,
        moves: Moves,
        call: Call,
        entries: Entries,
        parts: Parts,
        *,
        acts: Acts,
        background: Background,
        limits: Limits,
        admission: Admission,
    ) -> None:
        self.name = entries.name
        self._moves = moves
        self._call = call
        self._entries = entries
        self._parts = parts
        self._acts = acts
        self._background = background
        self._limits = limits
        self._admission = admission
        self.datagrams = DatagramRequests(
            entries,
            parts.datagrams,
            background=background,
            is_known=self._is_known,
            look_after=acts.look_after,
            limits=limits,
        )

    async def handle(  # noqa: PLR0911, PLR0912
        self, peer: str, method: str, args: dict[str, Any], body: Body
    ) -> Reply:
        """A request of another agent, whose certificate says that it is ``peer``."""
        try:
            what = Method(method)
        except ValueError:
            raise RequestError("unknown", f"no such method: {method!r:.80}") from None
        if what is Method.AGREE:
            message = message_from_plain(args.get("message"))
            self._acts.carry_out(self._moves.receive(peer, message))
            return Reply()
        name = args.get("move")
        if not isinstance(name, str):
            raise RequestError("arguments", "the name of a move is wanted")
        entry = self._entries.get(peer, name)
        match what:
            case Method.OPEN:
                return await self._open(peer, name)
            case Method.KNOWS:
                return Reply({"known": self._entries.get(self.name, name) is not None})
            case Method.CLOSE:
                self._background.spawn(self.datagrams.close(peer, name))
                if entry is not None:
                    self._background.spawn(self._give_up(entry))
                return Reply()
        if what in datagram_requests.METHODS:
            return await self.datagrams.handle(what, peer, name, args, body)
        if entry is None:
            raise RequestError("unknown", f"{self.name} has no part in {name} of {peer}")
        self._entries.collector.begin()
        if what is Method.SURVEY:
            return await self._survey(entry, args, body)
        self._bind(entry, args.get("id"))
        if what is Method.STAGE:
            return await self._stage(entry, body)
        if what is Method.REHOME:
            return await self._rehome(entry, body)
        if not isinstance(entry.part, TargetPart):
            raise RequestError("role", f"{self.name} is not the target of {name}")
        return await self._as_target(what, entry, entry.part, args, body)

    async def expire(self, entry: Entry) -> None:
        """Close a part that has not begun, once its source knows nothing of it any more.

        It may have been bound: a request can be faster than the agreement's first message, which
        never comes if the source dies.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + self._limits.unbound
        while not self._has_begun(entry) and entry in self._entries:
            await asyncio.sleep(self._limits.ask)
            if self._has_begun(entry):
                return
            if loop.time() > end or not await self._is_known(entry):
                await self._give_up(entry)

    def _has_begun(self, entry: Entry) -> bool:
        return entry.begun or (entry.id is not None and self._moves.knows(entry.id))

    async def _as_target(
        self, what: Method, entry: Entry, part: TargetPart, args: dict[str, Any], body: Body
    ) -> Reply:
        addresses = plain.addresses_from_plain(args.get("addresses", {}))
        if what is Method.ESTABLISH:
            await self._establish(entry, part, body, addresses)
            return Reply()
        segments = plain.segments_from_bytes(await body.read(MOST_BYTES))
        if what is Method.DELIVER:
            return Reply({"live": plain.went_live_to_plain(await part.deliver(segments))})
        via = plain.via_from_plain(args.get("via", [[], []]))
        await part.welcome(segments, addresses, via)
        return Reply()

    async def _open(self, source: str, name: str) -> Reply:
        entry = self._entries.get(source, name)
        if entry is not None and entry.id is None and isinstance(entry.part, TargetPart):
            try:
                self._admission.coming(name)
            except RefusedError as error:
                raise RequestError("draining", f"{self.name}: {error}") from error
        if entry is None:
            part = self._parts.peer(name)
            entry = self._entries.add(Entry(name, source, part))
            try:
                await part.prepare()
            except BaseException:
                await self._acts.close(entry)
                raise
            self._background.spawn(self.expire(entry))
        return Reply({"life": self._moves.life})

    async def _survey(self, entry: Entry, args: dict[str, Any], body: Body) -> Reply:
        names = plain.names_from_bytes(await body.read(MOST_BYTES))
        addresses = plain.addresses_from_plain(args.get("addresses"))
        entry.addresses |= {*addresses, *addresses.values()}
        offers = await entry.node.survey(names, addresses, home=False)
        return Reply(body=plain.offers_to_bytes(offers))

    def _bind(self, entry: Entry, text: object) -> None:
        if not isinstance(text, str):
            raise RequestError("arguments", "the id of the move is wanted")
        self._entries.bind(entry, MoveId.parse(text))

    async def _stage(self, entry: Entry, body: Body) -> Reply:
        tasks = plain.tasks_from_bytes(await body.read(MOST_BYTES))
        if not entry.staged.done():
            entry.staged.set_result(tasks)
        return Reply()

    async def _rehome(self, entry: Entry, body: Body) -> Reply:
        tasks, without = plain.rehoming_from_bytes(await body.read(MOST_BYTES))
        if entry.tasks.done():  # of connections that came later
            await entry.node.rehome(tasks)
        else:
            if not entry.staged.done():  # nothing was
                entry.staged.set_result(())
            entry.tasks.set_result((tasks, without))
            await asyncio.shield(entry.prepared)
        return Reply(body=plain.segments_to_bytes(await entry.node.lost_segments()))

    async def _establish(
        self,
        entry: Entry,
        part: TargetPart,
        body: Body,
        addresses: Mapping[str, str],
    ) -> None:
        if not entry.connections.done():
            most = self._limits.queues
            entry.connections.set_result(lambda: part.establish(body, addresses, most_bytes=most))
        await asyncio.shield(entry.prepared)

    async def _is_known(self, entry: Entry) -> bool:
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

    async def _give_up(self, entry: Entry) -> None:
        """It has not begun, so it has not voted, and nothing was changed."""
        if self._has_begun(entry) or entry not in self._entries:
            return
        if entry.id is not None:
            self._entries.forget(entry.id)
        log.info("%s of %s never began: closed", entry.name, entry.source)
        if isinstance(entry.part, TargetPart):
            with suppress(MycoError):
                await entry.part.undo()
        await self._acts.close(entry)
