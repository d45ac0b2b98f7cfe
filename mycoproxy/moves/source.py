"""The source's part in a move: the workload's place on this node so far."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import msgpack

from mycoproxy.addresses import FourTuple
from mycoproxy.errors import MycoError
from mycoproxy.handover import Connection, Leading, LocalSource, Nodes, Rehomed, plain
from mycoproxy.handover.leading import all_of, tried
from mycoproxy.moves.driver import Channel, Order
from mycoproxy.moves.namespaces import NodeNamespaces
from mycoproxy.moves.peer import Attach, PeerPart
from mycoproxy.moves.remote import RemotePeer, RemoteTarget
from mycoproxy.moves.source_datagrams import SourceDatagrams
from mycoproxy.moves.stream import Stream
from mycoproxy.namespaces import NamespaceWorker
from mycoproxy.tcp import Segment

_PLACE, _KEPT = "source", "connections"
_FOLLOW_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class SourcePlace:
    """Where the workload is, and where it goes. ``addresses``: its old ones to its new ones.

    ``follow``: for how many seconds new connections that still come here are passed on.
    """

    move: str
    netns: str
    init_pid: int
    target: str
    addresses: dict[str, str]
    follow: float = 0.2


@dataclass(slots=True)
class Report:
    """What is told of a handover. ``marks``: CLOCK_MONOTONIC seconds at which steps had ended.
    ``datagrams``: see ``SourceDatagrams.report``; empty unless it moved."""

    marks: dict[str, float] = field(default_factory=dict)
    connections: int = 0
    rehomed: list[Rehomed] = field(default_factory=list)
    remarks: tuple[str, ...] = ()
    replayed: int = 0
    welcomed: int = 0
    datagrams: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    def mark(self, step: str) -> None:
        """``step`` has ended."""
        self.marks[step] = time.monotonic()

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "marks": self.marks,
            "connections": self.connections,
            "rehomed": [
                {
                    "peer": one.peer,
                    "name": [part for end in one.connection for part in end],
                    "path": one.path.value,
                }
                for one in self.rehomed
            ],
            "remarks": list(self.remarks),
            "replayed": self.replayed,
            "welcomed": self.welcomed,
            "datagrams": self.datagrams,
            "error": self.error,
        }


class SourcePart:
    """This node as the source of one move. ``orders`` go to whoever has the tasks.

    ``open`` while the workload runs, ``collect`` once it stands; then the rest is ordered by the
    agreement: ``prepare`` (which waits for ``hand_over``), ``undo`` or ``remove``.
    """

    def __init__(
        self,
        place: SourcePlace,
        home: PeerPart,
        target: RemoteTarget,
        *,
        peers: Sequence[RemotePeer],
        namespaces: NodeNamespaces,
        orders: Channel,
        datagrams: Callable[[NamespaceWorker], SourceDatagrams],
    ) -> None:
        self.place = place
        self.orders = orders
        self.report = Report()
        self.lives: dict[str, int] = {}
        self.involved: dict[str, int] = {}
        self._recalled = False
        self._home = home
        self._target = target
        self._peers = tuple(peers)
        self._namespaces = namespaces
        self._worker = namespaces.workload(Path(place.netns))
        self._local = LocalSource(self._worker, place.init_pid, place.move)
        self.datagrams = datagrams(self._worker)
        self._leading = Leading(
            (home, *peers), addresses=place.addresses, nodes=Nodes(home.name, target.name)
        )
        self._connections: list[Connection] = []
        self._go = asyncio.Event()
        self._attach: Attach | None = None
        self._frozen = False

    @property
    def home(self) -> PeerPart:
        """This node's part as a peer."""
        return self._home

    @property
    def paths(self) -> list[Path]:
        """The namespaces in which something may be translated."""
        return [Path(self.place.netns), *self._home.paths, *self.datagrams.home.paths]

    @property
    def opened(self) -> list[str]:
        """The other nodes that have made ready for this move, or may have."""
        return [peer.name for peer in self._peers]

    async def open(self) -> None:
        """Make ready here and on the other nodes. One that cannot be reached is an error: it may
        be the one that clients come by."""
        await self._home.prepare()
        await self._local.prepare()
        lives = await all_of(*(peer.prepare() for peer in self._peers))
        self.lives = {peer.name: life for peer, life in zip(self._peers, lives, strict=True)}
        await self.datagrams.open()

    async def collect(self, allow: Callable[[int], None]) -> None:
        """The tasks stand: find the connections and their paths. ``allow`` is told how many there
        are; it may refuse them by raising."""
        self._frozen = True
        known = await self._local.collect()
        allow(len(known))
        await self._leading.survey(known)
        expected = self._leading.expect()
        self.involved = {
            node: self.lives[node] for node in (*expected, self.place.target) if node in self.lives
        }
        self.datagrams.stands()

    def begun(self, move_id: str, attach: Attach) -> None:
        """The agreement has begun: what is changed from now on is written down."""
        self._attach = attach
        attach(_PLACE, msgpack.packb(asdict(self.place)))
        self._home.attach_to(attach)
        self._target.begun(move_id)
        for peer in self._peers:
            peer.begun(move_id)

    def hand_over(self) -> None:
        """The copy is there: begin."""
        self._go.set()

    async def prepare(self, enrol: Callable[[Mapping[str, int]], None]) -> None:
        """Everything up to the vote. ``enrol`` is told of peers that were not involved so far."""
        await self._leading.stage()
        await self._go.wait()
        self.report.mark("begin")
        await self._local.hold()
        self.report.mark("hold")
        stream = Stream()
        establishing = asyncio.create_task(
            self._target.establish(stream.parts(), self.place.addresses)
        )
        try:
            await self._capture(stream)
            plan = await self._leading.plan(self._connections, await self._local.newcomers())
            stream.put(plain.via_to_part(plan.via))
            stream.end()
            late = {
                node: self.lives[node]
                for node in plan.tasks
                if node in self.lives and node not in self.involved
            }
            if late:
                self.involved |= late
                enrol(late)
            self.report.mark("plan")
            await all_of(self._leading.rehome(plan, involved=self.involved), establishing)
        finally:
            establishing.cancel()
            await asyncio.wait({establishing})
        self.report.rehomed = plan.rehomed
        self.report.mark("prepared")

    async def _capture(self, stream: Stream) -> None:
        """The target has the first connections while the last ones are captured."""
        async for some in self._local.capturing():
            self._connections += some
            for part in await asyncio.to_thread(list, plain.connections_to_parts(some)):
                stream.put(part)
        self._write_down(self._connections)
        self.report.connections = len(self._connections)
        self.report.mark("capture")

    def _write_down(self, connections: Sequence[Connection]) -> None:
        kept = [one for one in connections if one.is_only_copy]
        if kept and self._attach is not None:
            self._attach(_KEPT, b"".join(plain.connections_to_parts(kept)))

    async def committed(self) -> None:
        """The target may run: tell it what was lost meanwhile. Failing costs the clients time."""
        self.report.mark("committed")
        failures: list[Exception] = []
        lost: list[Segment] = [*await tried(self._local.lost_segments(), failures)]
        lost += await self._leading.lost(self._connections, failures)
        syns = self._leading.take_newcomers()
        await self._target.deliver(lost)
        self.report.mark("live")
        self.datagrams.lives()
        if syns:
            await self._target.welcome(syns, self.place.addresses, {})
        self.report.replayed = self._target.live.delivered
        self.report.remarks = self._target.live.remarks

    async def remove(self) -> None:
        """The target lives. Nothing of the workload must be heard from here any more."""
        self.datagrams.lives()
        await self._local.silence()
        if not self._recalled:
            await self._follow()
        await self._home.finish()
        await self.orders.give(Order.REMOVE)
        await self.datagrams.end()
        self.report.datagrams = self.datagrams.report()

    async def _follow(self) -> None:
        last = time.monotonic() + self.place.follow
        try:
            while time.monotonic() < last:
                came = await self._leading.follow(self._local, self._target.welcome)
                self.report.welcomed += came
                await asyncio.sleep(_FOLLOW_SECONDS)
        except MycoError as error:  # who came meanwhile has to come again
            self.report.error = f"new connections could not be passed on: {error}"

    async def undo(self, unreached: frozenset[str]) -> None:
        """The workload goes on here. Connections that ``unreached`` peers may still lead to the
        target stay held: their clients would be reset."""
        leave = self._led_by(unreached)
        await self._home.undo()
        await self._local.resume(leave)
        lost = await self._leading.lost(self._connections, [])
        await self._local.release_hold([*lost, *self._leading.take_newcomers()], leave)
        if self._frozen:
            await self.orders.give(Order.THAW)

    def _led_by(self, nodes: frozenset[str]) -> frozenset[FourTuple]:
        return frozenset(
            one.connection for one in self._leading.current.rehomed if one.peer in nodes
        )

    async def close(self) -> None:
        """Close the duplicates of the sockets, and what was for the time of the move."""
        await _each(self._local.close(), self._home.close(), self.datagrams.close())
        self._worker.close()

    @classmethod
    def place_of(cls, attachments: Mapping[str, bytes]) -> SourcePlace | None:
        """Where another process had the workload, if it came so far as to write it down."""
        data = attachments.get(_PLACE)
        return None if data is None else SourcePlace(**msgpack.unpackb(data))

    async def recall(self, attachments: Mapping[str, bytes]) -> Self:
        """Take over from another process: for ``undo`` or ``remove``. The tasks still stand."""
        self._frozen = self._recalled = True
        await self._home.prepare()
        await self._home.recall(attachments)
        await self._local.prepare(is_held=True)
        await self._local.collect()
        data = attachments.get(_KEPT, b"")
        await self._local.recall(plain.ConnectionReader(most_bytes=len(data) + 1).feed(data))
        return self


async def _each(*steps: Awaitable[None]) -> None:
    """Do all of them, then raise the first failure."""
    await all_of(*steps)
