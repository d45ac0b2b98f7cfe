"""A body that is sent while it comes about."""

import asyncio
from collections.abc import AsyncIterator


class Stream:
    """Parts in their order. Whoever puts them in does not wait for the link."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()

    def put(self, part: bytes) -> None:
        """One more."""
        self._queue.put_nowait(part)

    def end(self) -> None:
        """That was the last one."""
        self._queue.put_nowait(None)

    async def parts(self) -> AsyncIterator[bytes]:
        """Wait for each of them, until the end."""
        while (part := await self._queue.get()) is not None:
            yield part
