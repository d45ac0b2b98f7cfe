"""What the agent can be asked: parts add rows, changes and routes; the control socket serves them.

A part that knows connections adds a function that lists them; it need not know about HTTP, and the
control socket need not know about parts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp.web import AbstractRouteDef

Row = dict[str, Any]
"""Of values that JSON has."""

_WAITING: Final = 1000  # changes for one watcher


@dataclass(frozen=True)
class Rows:
    """What a part answers: rows, and in words what it could not find out."""

    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


Provider = Callable[[], Awaitable[Rows]]


class Changes:
    """What happens, for everybody who watches. Each watcher is behind by a bounded number."""

    def __init__(self) -> None:
        self._watchers: set[asyncio.Queue[Row | None]] = set()
        self._closed = False

    def publish(self, change: Row) -> None:
        """Tell all watchers. Never waits: one that reads too slowly is told so, and let go."""
        for queue in list(self._watchers):
            if queue.qsize() < _WAITING:
                queue.put_nowait(change)
            else:
                self._watchers.discard(queue)
                queue.put_nowait({"event": "lost", "error": "you read too slowly"})
                queue.put_nowait(None)

    @contextmanager
    def watched(self) -> Iterator[AsyncIterator[Row]]:
        """The changes from now on; the iterator ends when the agent stops."""
        queue: asyncio.Queue[Row | None] = asyncio.Queue()
        if self._closed:
            queue.put_nowait(None)
        self._watchers.add(queue)
        try:
            yield self._iterate(queue)
        finally:
            self._watchers.discard(queue)

    def close(self) -> None:
        """End all watching."""
        self._closed = True
        for queue in self._watchers:
            queue.put_nowait(None)
        self._watchers.clear()

    @staticmethod
    async def _iterate(queue: asyncio.Queue[Row | None]) -> AsyncIterator[Row]:
        while (change := await queue.get()) is not None:
            yield change


class Questions:
    """What parts have added. ``routes`` are taken when the control socket opens, as the last part;
    all else can come and go."""

    def __init__(self) -> None:
        self.connections: list[Provider] = []
        """Connections that were moved and still live: each row one."""
        self.sessions: list[Provider] = []
        """Of proxied mode."""
        self.moves: list[Provider] = []
        """Moves that run, and the last ones that ended."""
        self.move_changes = Changes()
        """``publish({"event": ..., "move": id, ...})`` at each step of a move."""
        self.is_draining: Callable[[], bool] = lambda: False
        """May no move come here?"""
        self.routes: list[AbstractRouteDef] = []
        """``web.get("/v1/x", handler)``: authorised, bounded and counted as the others are."""


async def ask(providers: Iterable[Provider]) -> Rows:
    """What all of them answer, together."""
    answers = await asyncio.gather(*(provider() for provider in providers))
    return Rows(
        [row for answer in answers for row in answer.rows],
        [problem for answer in answers for problem in answer.problems],
    )
