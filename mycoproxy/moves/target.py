"""The target's part in a move: the workload's new place on this node."""

import asyncio
import logging
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import msgpack

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.errors import MycoError
from mycoproxy.handover import Connection, LocalTarget, WentLive, plain
from mycoproxy.handover.leading import all_of
from mycoproxy.moves.driver import Answer, Channel, DriverError, Order
from mycoproxy.moves.namespaces import NodeNamespaces
from mycoproxy.moves.peer import Attach, PeerPart
from mycoproxy.moves.target_datagrams import TargetDatagrams
from mycoproxy.tcp import Segment

log = logging.getLogger(__name__)

_PLACE, _CONNECTIONS, _PATHS = "target", "connections", "paths"


@dataclass(frozen=True, slots=True)
class TargetPlace:
    """Where the copy is. ``source``: the node that may hand over to it. ``init_pid``, ``pids``: as
    for ``LocalTarget.collect``; 0 as long as there is no copy."""

    move: str
    source: str
    netns: str
    init_pid: int = 0
    pids: tuple[int, ...] = ()


class CopyDeadError(MycoError):
    """The copy is dead, and has never run."""


class TargetPart:
    """This node as the target of one move. ``orders`` go to whoever has the copy's tasks."""

    def __init__(
        self, place: TargetPlace, node: PeerPart, namespaces: NodeNamespaces, orders: Channel
    ) -> None:
        self.place = place
        self.node = node
        self.orders = orders
        self.live: asyncio.Future[WentLive] = asyncio.get_running_loop().create_future()
        self._namespaces = namespaces
        self._worker = namespaces.workload(Path(place.netns))
        self._local = LocalTarget(self._worker, place.move)
        self.datagrams = TargetDatagrams(self._worker)
        self._attach: Attach | None = None
        self._noted: _Noted | None = None

    @property
    def paths(self) -> list[Path]:
        """The namespaces in which something may be translated."""
        return [Path(self.place.netns), *self.node.paths]

    def attach_to(self, attach: Attach) -> None:
        """Write down ahead what another process would have to know, from now on."""
        self._attach = attach
        self.node.attach_to(attach)

    async def prepare(self) -> None:
        """Raise the shield, and make the node ready."""
        await self._local.prepare()
        await self.node.prepare()

    def collect(self, init_pid: int, pids: Iterable[int]) -> None:
        """The copy is there and stands."""
        self.place = TargetPlace(
            self.place.move, self.place.source, self.place.netns, init_pid, tuple(pids)
        )
        self._local.collect(init_pid, self.place.pids)

    async def establish(
        self, parts: AsyncIterable[bytes], addresses: Mapping[str, str], *, most_bytes: int
    ) -> None:
        """``parts``: what ``plain.ConnectionReader`` takes, to its end.

        They are established as they come, and written down when all are there: until this node
        votes nobody has to know of them, because the copy will be killed.
        """
        assert self._attach is not None
        self._attach(_PLACE, msgpack.packb(asdict(self.place)))
        reader = plain.ConnectionReader(most_bytes=most_bytes)
        written = []
        async for part in parts:
            written.append(part)
            connections = await asyncio.to_thread(reader.feed, part)
            if connections:
                await self._local.establish_some(connections, addresses)
        if reader.via is None:
            raise MycoError(f"{self.place.source} did not say that these are all connections")
        await self._local.lead(reader.via, addresses)
        self._attach(_PATHS, msgpack.packb({"addresses": dict(addresses)}))
        self._attach(_CONNECTIONS, b"".join(written))

    async def go_live(self) -> None:
        """Let the copy run. Raises ``CopyDeadError``, ``DriverError``."""
        answer = await self.orders.give(Order.RESUME)
        if answer is Answer.DEAD:
            raise CopyDeadError(f"the copy of {self.place.move} died before it ran")
        if answer is not Answer.RUNNING:
            if self._noted is not None:
                await self._local.recall(*self._noted)
            live = await self._go_live()
            self._lives(live)
            await self.datagrams.before_tasks_run(self.place.init_pid, self.place.pids)
            await self.orders.give(Order.RUN)
        else:
            self._lives(WentLive(0, ()))
            self.datagrams.run()
        await self.node.finish()

    def _lives(self, live: WentLive) -> None:
        """What was lost may be delivered from now on."""
        if not self.live.done():
            self.live.set_result(live)

    async def _go_live(self) -> WentLive:
        """There is no way back: what could not be let live is told, and the rest runs."""
        try:
            return await self._local.go_live(())
        except (MycoError, OSError) as error:
            log.error("%s: %s", self.place.move, error)  # noqa: TRY400
            return WentLive(0, (str(error),))

    async def deliver(self, lost: Sequence[Segment]) -> WentLive:
        """Segments that were lost, once it is live."""
        live = await asyncio.shield(self.live)
        delivered = await self._local.deliver(lost)
        return WentLive(live.delivered + delivered, live.remarks)

    async def welcome(
        self,
        syns: Sequence[Segment],
        addresses: Mapping[str, str],
        via: Mapping[FourTuple, Endpoint],
    ) -> None:
        """See ``Target``, once it is live."""
        await asyncio.shield(self.live)
        await self._local.welcome(syns, addresses, via)

    async def undo(self) -> None:
        """See that there is no copy. Its sockets are in repair mode, and end silently with it.

        Raises ``DriverError``.
        """
        await self.node.undo()  # the source waits for this
        answer = await self.orders.give(Order.KILL)
        if answer not in (Answer.DONE, Answer.DEAD):
            raise DriverError(f"the copy of {self.place.move} was not killed: {answer.value}")
        self.live.cancel()

    async def close(self) -> None:
        """Close the duplicates of its sockets, and lift the shield if the copy runs."""
        self.datagrams.close()
        stays = self.live.cancelled() or not self.live.done()
        await all_of(self._local.close(stays_shielded=stays), self.node.close())
        self._worker.close()

    @classmethod
    def place_of(cls, attachments: Mapping[str, bytes]) -> TargetPlace | None:
        """Where another process had the copy, if it came so far as to write it down."""
        if _PLACE not in attachments:
            return None
        place = msgpack.unpackb(attachments[_PLACE])
        return TargetPlace(**{**place, "pids": tuple(place["pids"])})

    async def recall(self, attachments: Mapping[str, bytes]) -> Self:
        """Take over from another process. Raises ``MycoError``, ``OSError``.

        A copy that is not there any more has no sockets; it can be undone only.
        """
        await self._local.prepare(is_shielded=True)
        await self.node.prepare()
        await self.node.recall(attachments)
        self.collect(self.place.init_pid, self.place.pids)
        if _CONNECTIONS in attachments:
            self._noted = _read(attachments)
        return self


_Noted = tuple[Sequence[Connection], Mapping[str, str], Mapping[FourTuple, Endpoint]]


def _read(attachments: Mapping[str, bytes]) -> _Noted:
    data = attachments[_CONNECTIONS]
    paths: dict[str, Any] = msgpack.unpackb(attachments[_PATHS])
    reader = plain.ConnectionReader(most_bytes=len(data))
    connections = reader.feed(data)
    return connections, plain.addresses_from_plain(paths["addresses"]), reader.via or {}
