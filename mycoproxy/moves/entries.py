"""The moves that this node has a part in, by their names, and once they have begun by their ids.

A participant's part is opened by name, ahead of the agreement: the target's by its driver, a
peer's by the source's agent. It is bound to the agreement's move by the source's first request
that has both.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from mycoproxy.addresses import FourTuple
from mycoproxy.agreement import MoveId
from mycoproxy.errors import UsageError
from mycoproxy.handover import Task
from mycoproxy.moves.collector import CollectorPause
from mycoproxy.moves.peer import PeerPart
from mycoproxy.moves.source import SourcePart
from mycoproxy.moves.target import TargetPart
from mycoproxy.peering import RequestError

T = TypeVar("T")


def _future() -> "asyncio.Future[T]":
    return asyncio.get_running_loop().create_future()


@dataclass(slots=True, eq=False)
class Entry:
    """A part of this node in one move, whoever opened it. ``source`` is the node it comes from."""

    name: str
    source: str
    part: SourcePart | TargetPart | PeerPart
    id: MoveId | None = None
    begun: bool = False
    """Has the agreement ordered anything of it? From then on only the agreement ends it."""
    prepared: "asyncio.Future[None]" = field(default_factory=_future)
    """Is it ready to be committed? An exception: it cannot be."""
    staged: "asyncio.Future[Sequence[Task]]" = field(default_factory=_future)
    """What is to be re-homed here, as far as was known before the handover."""
    tasks: "asyncio.Future[tuple[Sequence[Task], Collection[FourTuple]]]" = field(
        default_factory=_future
    )
    """What is to be re-homed beside that, and what of it is not."""
    connections: "asyncio.Future[Callable[[], Awaitable[None]]]" = field(default_factory=_future)
    """What establishes the connections, once they have come."""
    over: "asyncio.Future[bool]" = field(default_factory=_future)
    """True: it moved."""
    told: bool = False
    addresses: set[str] = field(default_factory=set)

    @property
    def role(self) -> str:
        """Of this node: source, target or peer."""
        if isinstance(self.part, SourcePart):
            return "source"
        return "target" if isinstance(self.part, TargetPart) else "peer"

    @property
    def here(self) -> PeerPart:
        """What this node does for the paths, in whichever role."""
        return self.part.home if isinstance(self.part, SourcePart) else self.node

    @property
    def node(self) -> PeerPart:
        """This node's part as a peer, which a target has as well."""
        part = self.part
        if isinstance(part, SourcePart):
            raise RequestError("role", f"{part.place.move} comes from here")
        return part.node if isinstance(part, TargetPart) else part


class Entries:
    """All of them. ``name`` is the node's own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._by_name: dict[tuple[str, str], Entry] = {}
        self._by_id: dict[MoveId, Entry] = {}
        self._bound: dict[MoveId, asyncio.Future[Entry]] = {}
        self.collector = CollectorPause()

    def __iter__(self) -> Iterator[Entry]:
        return iter([*self._by_name.values()])

    def __len__(self) -> int:
        return len(self._by_name)

    def refuse_twice(self, source: str, name: str) -> None:
        """Raise ``UsageError`` if there is one of that name."""
        if (source, name) in self._by_name:
            raise UsageError(f"there is a move {name} of {source} here already")

    def add(self, entry: Entry) -> Entry:
        """A new one. Raises as ``refuse_twice``."""
        self.refuse_twice(entry.source, entry.name)
        self._by_name[entry.source, entry.name] = entry
        if entry.id is not None:
            self._by_id[entry.id] = entry
        return entry

    def remove(self, entry: Entry) -> None:
        """It has ended."""
        if entry in self:
            del self._by_name[entry.source, entry.name]
        if not self._by_name:
            self.collector.end()

    def __contains__(self, entry: object) -> bool:
        return isinstance(entry, Entry) and self.get(entry.source, entry.name) is entry

    def get(self, source: str, name: str) -> Entry | None:
        """What ``source`` calls ``name``."""
        return self._by_name.get((source, name))

    def of(self, move: MoveId) -> Entry | None:
        """The one that is bound to it."""
        return self._by_id.get(move)

    def own(self, name: str) -> tuple[Entry, SourcePart]:
        """One that comes from here. Raises ``UsageError``."""
        entry = self.get(self.name, name)
        if entry is None or not isinstance(entry.part, SourcePart):
            raise UsageError(f"this node is not the source of a move {name}")
        return entry, entry.part

    def coming(self, name: str) -> TargetPart:
        """The part of one that comes here. Raises ``UsageError``."""
        for entry in self:
            if entry.name == name and isinstance(entry.part, TargetPart):
                return entry.part
        raise UsageError(f"this node is not the target of a move {name}")

    def bind(self, entry: Entry, move: MoveId) -> None:
        """It is this one. Raises ``RequestError`` if it is another, or another node's."""
        if move.source != entry.source or entry.id not in (None, move):
            raise RequestError("move", f"{entry.name} of {entry.source} is not {move}")
        if entry.id is None:
            entry.id = move
            self._by_id[move] = entry
            bound = self._waiting(move)
            if not bound.done():
                bound.set_result(entry)

    async def bound(self, move: MoveId) -> Entry:
        """The one that is bound to it, or will be."""
        known = self._by_id.get(move)
        return await asyncio.shield(self._waiting(move)) if known is None else known

    def forget(self, move: MoveId) -> Entry | None:
        """The agreement on it is over. Returns the one that was bound to it."""
        self._bound.pop(move, None)
        return self._by_id.pop(move, None)

    def _waiting(self, move: MoveId) -> "asyncio.Future[Entry]":
        return self._bound.setdefault(move, asyncio.get_running_loop().create_future())
