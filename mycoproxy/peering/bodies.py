"""The bodies of requests and replies: they come as they are read, and go as they are taken."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Final

from mycoproxy.peering.errors import PeeringError
from mycoproxy.peering.limits import LARGEST_CHUNK

Outgoing = bytes | Sequence[bytes] | AsyncIterable[bytes]
"""A body that is to be sent. What is handed over must not be changed until it has been sent."""

_JOINED: Final = 64 * 1024


class Body:
    """A body that comes from the other side: ``async for chunk in body``, or ``await body.read()``.

    What is not read is not credited, so that the other side stops after one window. It is for one
    reader. Reading raises what has ended the exchange: ``LinkLost``, ``DeadlineError``,
    ``RequestError``, or ``asyncio.CancelledError`` in a handler that is stopped.
    """

    def __init__(self, consumed: Callable[[int], None], *, ended: bool = False) -> None:
        self._consumed = consumed
        self._chunks: deque[bytes | bytearray] = deque()
        self._ended = ended
        self._error: PeeringError | None = None
        self._waiting: asyncio.Future[None] | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._waiting = asyncio.get_running_loop().create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        chunk = self._chunks.popleft()
        self._consumed(len(chunk))
        return bytes(chunk)

    async def read(self, limit: int = 16 * 1024 * 1024) -> bytes:
        """All of it. ``PeeringError`` if it is longer than ``limit`` bytes."""
        chunks, size = [], 0
        async for chunk in self:
            size += len(chunk)
            if size > limit:
                raise PeeringError(f"a body of more than {limit} bytes")
            chunks.append(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    # For the link.

    def feed(self, data: bytes, *, last: bool) -> None:
        """The next bytes. Small ones are joined, as each would cost more than its size."""
        if data:
            if self._chunks and len(self._chunks[-1]) + len(data) <= _JOINED:
                if type(self._chunks[-1]) is bytes:
                    self._chunks[-1] = bytearray(self._chunks[-1])
                self._chunks[-1] += data
            else:
                self._chunks.append(data)
        self._ended |= last
        self._wake()

    def fail(self, error: PeeringError) -> None:
        """It breaks off here, unless it is complete. What has come is let go."""
        if not self._ended:
            self._error = error
            self._chunks.clear()
            self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


def whole(body: Outgoing) -> bytes | None:
    """The body in one piece if it is small enough to go in one frame."""
    if isinstance(body, bytes):
        return body if len(body) <= LARGEST_CHUNK else None
    if isinstance(body, AsyncIterable) or sum(map(len, body)) > LARGEST_CHUNK:
        return None
    return b"".join(body)


def cut(chunk: bytes) -> list[memoryview]:
    """A chunk in pieces that each go in one frame, not copied."""
    view = memoryview(chunk)
    return [view[start : start + LARGEST_CHUNK] for start in range(0, len(view), LARGEST_CHUNK)]


async def chunks(body: Outgoing) -> AsyncGenerator[bytes, None]:
    """The body's chunks, as they were given; closes the iterator that it was given as."""
    if isinstance(body, AsyncGenerator):
        async with aclosing(body):
            async for chunk in body:
                yield chunk
    elif isinstance(body, AsyncIterable):
        async for chunk in body:
            yield chunk
    else:
        for chunk in (body,) if isinstance(body, bytes) else body:
            yield chunk
