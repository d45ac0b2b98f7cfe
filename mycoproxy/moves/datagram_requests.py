"""What other agents ask of this one for the UDP flows of their moves.

Only the source of a move asks, and only for a move that has a part here: a node's part in UDP is
made while that one is open, and ends when the source says so, or knows nothing of the move any
more. It is the source's word, too, that the workload runs elsewhere now. A peer that has no
connections of the workload is not asked for its vote, and learns of no decision; so this cannot
be checked here, as little as what ``REHOME`` asks for. A wrong order would do this harm: datagrams
of that workload's flows (no others are taken) go to an address where nobody is, until
the flow has been silent for its conntrack timeout. The target knows, and refuses.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from mycoproxy.handover import datagram_plain, plain
from mycoproxy.moves.background import Background
from mycoproxy.moves.entries import Entries, Entry
from mycoproxy.moves.limits import Limits
from mycoproxy.moves.methods import Method
from mycoproxy.moves.node_datagrams import Make, NodeDatagrams
from mycoproxy.moves.target import TargetPart
from mycoproxy.peering import Body, Reply, RequestError

METHODS: Final = frozenset(
    {
        Method.DATAGRAM_SURVEY,
        Method.DATAGRAM_ASK,
        Method.DATAGRAM_LEAD,
        Method.DATAGRAM_RESTORE,
        Method.DATAGRAM_DELIVER,
    }
)

_Key = tuple[str, str]  # the source, and what it calls the move


class DatagramRequests:
    """Answers them. ``is_known``: does its source still know a move? ``look_after``: something may
    be led in this namespace from now on."""

    def __init__(
        self,
        entries: Entries,
        make: Make,
        *,
        background: Background,
        is_known: Callable[[Entry], Awaitable[bool]],
        look_after: Callable[[Path], None],
        limits: Limits,
    ) -> None:
        self._entries = entries
        self._make = make
        self._background = background
        self._is_known = is_known
        self._look_after = look_after
        self._limits = limits
        self._parts: dict[_Key, NodeDatagrams] = {}

    @property
    def parts(self) -> list[NodeDatagrams]:
        """Those that are open."""
        return [*self._parts.values()]

    async def handle(
        self, what: Method, peer: str, name: str, args: dict[str, Any], body: Body
    ) -> Reply:
        """A request of ``peer`` for its move ``name``. Raises ``MycoError``, ``OSError``."""
        entry = self._entries.get(peer, name)
        if what in (Method.DATAGRAM_RESTORE, Method.DATAGRAM_DELIVER):
            return await self._as_target(what, entry, body)
        part = self._part((peer, name), entry)
        if what is Method.DATAGRAM_LEAD:
            if entry and isinstance(entry.part, TargetPart) and not entry.part.datagrams.is_live:
                raise RequestError("early", f"the workload of {name} does not run here yet")
            await part.lead(datagram_plain.tasks_from_bytes(await body.read()))
            return Reply()
        addresses = plain.addresses_from_plain(args.get("addresses"))
        if what is Method.DATAGRAM_SURVEY:
            ports = datagram_plain.ports_from_plain(args.get("ports"))
            offers = await part.survey(addresses, ports, home=False)
        else:
            flows = plain.names_from_bytes(await body.read())
            offers = await part.ask(flows, addresses, home=False)
        return Reply(body=datagram_plain.offers_to_bytes(offers))

    async def close(self, peer: str, name: str) -> None:
        """The move has ended."""
        part = self._parts.get((peer, name))
        if part is not None:
            try:
                await part.close()
            finally:
                self._parts.pop((peer, name), None)
                for path in part.paths:
                    self._look_after(path)

    async def _as_target(self, what: Method, entry: Entry | None, body: Body) -> Reply:
        if entry is None or not isinstance(entry.part, TargetPart):
            raise RequestError("role", "this node is not the target of that move")
        datagrams = entry.part.datagrams
        if what is Method.DATAGRAM_RESTORE:
            datagrams.expect(datagram_plain.ends_from_bytes(await body.read()))
            return Reply()
        remarks = await datagrams.deliver(datagram_plain.datagrams_from_bytes(await body.read()))
        return Reply({"remarks": datagram_plain.remarks_to_plain(remarks)})

    def _part(self, key: _Key, entry: Entry | None) -> NodeDatagrams:
        part = self._parts.get(key)
        if part is None:
            if entry is None:
                raise RequestError("unknown", f"no part in {key[1]} of {key[0]}")
            target = entry.part.place.netns if isinstance(entry.part, TargetPart) else None
            part = self._parts[key] = self._make(None if target is None else Path(target))
            self._background.spawn(self._watch(key, entry))
        return part

    async def _watch(self, key: _Key, entry: Entry) -> None:
        """Close it, should nobody say so."""
        loop = asyncio.get_running_loop()
        end: float | None = None
        while key in self._parts:
            await asyncio.sleep(self._limits.ask)
            if entry in self._entries or key not in self._parts:
                continue
            end = end or loop.time() + self._limits.unbound
            if loop.time() > end or not await self._is_known(entry):
                await self.close(*key)
