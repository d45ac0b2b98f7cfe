"""One large value, on its way for seconds, over one connection: a download that reads slowly,
an upload that writes slowly. A move in the middle must not change a byte of it.

The transfer is repeated over the same connection until the client is stopped, so that every move
of a series has one in flight. What is under way at the stop is brought to its end at full speed.
"""

import asyncio
import fcntl
import hashlib
import socket
import struct
import termios
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from typing import Any

from netlab.load import resp
from netlab.load.content import content, count_wrong
from netlab.load.lifetime import Lifetime, say_ready
from netlab.load.samples import SampleWriter
from netlab.load.summary import ClientSummary, LostConnection

_PIECE_BYTES = 64 * 1024
_PAUSE_SECONDS = 0.004
_LONGEST_HEADER = 64
# How much of a delay a transfer may catch up. With more, the rest of a transfer would be one burst
# after a freeze.
_CATCH_UP_SECONDS = 0.1


@dataclass(frozen=True)
class TransferOptions:
    """``rate`` is bytes per second. ``buffer_bytes`` bounds a download's receive buffer
    (SO_RCVBUF): with a small one a freeze is soon felt; 0 leaves it to the kernel."""

    host: str
    port: int
    size: int
    rate: float
    name: str
    group: str
    seed: int = 0
    buffer_bytes: int = 256 * 1024
    drain_seconds: float = 20.0
    repeat: bool = True


@dataclass(frozen=True)
class Transfer:
    """One whole value, moved and compared. Times are monotonic seconds."""

    bytes: int
    sha256: str
    right: bool
    started: float
    ended: float


class _EndOfStreamError(Exception):
    """The server closed the connection."""


class Pace:
    """Says how many bytes may be moved now; pure in its clock, which is passed in."""

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self._last = now
        self._allowance = 0.0

    def allow(self, now: float) -> int:
        """Bytes that may be moved at ``now``."""
        self._allowance += (now - self._last) * self.rate
        self._allowance = min(self._allowance, self.rate * _CATCH_UP_SECONDS)
        self._last = now
        return int(self._allowance)

    def moved(self, size: int) -> None:
        """``size`` bytes have been moved."""
        self._allowance -= size


class _Stream:
    """The client's connection, and what was counted on it."""

    def __init__(self, options: TransferOptions, lifetime: Lifetime, out: SampleWriter) -> None:
        self.options = options
        self.lifetime = lifetime
        self.out = out
        self.key = f"large:{options.name}".encode()
        self.value = content(self.key, options.size, options.seed)
        self.sha256 = hashlib.sha256(self.value).hexdigest()
        self.transfers: list[Transfer] = []
        self.checked = 0
        self.wrong_bytes = 0
        self.wrong: list[str] = []
        self.moved = 0
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        self.pace = Pace(options.rate, time.monotonic())

    async def connect(self) -> None:
        await asyncio.get_running_loop().sock_connect(
            self.socket, (self.options.host, self.options.port)
        )

    async def send(self, data: bytes | memoryview) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def receive(self, size: int) -> bytes:
        data: bytes = await asyncio.get_running_loop().sock_recv(self.socket, size)
        if not data:
            raise _EndOfStreamError
        return data

    async def allowance(self) -> int:
        """Wait until a piece may be moved; after the stop there is no bound any more."""
        while not self.lifetime.stopping.is_set():
            allowed = self.pace.allow(time.monotonic())
            if allowed >= min(_PIECE_BYTES, self.options.rate * _CATCH_UP_SECONDS / 2):
                return min(allowed, _PIECE_BYTES)
            await asyncio.sleep(_PAUSE_SECONDS)
        return _PIECE_BYTES

    def count(self, size: int, *, unacknowledged: int = 0) -> None:
        self.moved += size
        self.pace.moved(size)
        self.out.progress(self.moved, max(self.moved - unacknowledged, 0))

    def compare(self, expected: bytes | memoryview, found: bytes | memoryview, what: str) -> None:
        self.checked += len(expected)
        if expected != found:
            self.wrong_bytes += count_wrong(expected, found)
            if len(self.wrong) < 10:
                self.wrong.append(
                    f"{what}: {bytes(expected[:40])!r} expected, {bytes(found[:40])!r} found"
                )

    async def expect(self, answer: bytes, what: str) -> None:
        """Read one short answer and compare it."""
        found = b""
        while (end := resp.reply_end(found)) < 0:
            found += await self.receive(_PIECE_BYTES)
        self.compare(answer, found[:end], what)
        if surplus := found[end:]:
            self.compare(b"", surplus, f"behind the {what}")

    async def read_value(self, *, paced: bool) -> Transfer:
        """GET the value and compare it, piece by piece as it comes, and its SHA-256."""
        started = time.monotonic()
        await self.send(resp.command(b"GET", self.key))
        header = b"$%d\r\n" % len(self.value)
        found = b""
        while (line_end := found.find(b"\r\n")) < 0 and len(found) < _LONGEST_HEADER:
            found += await self.receive(_LONGEST_HEADER)
        if found[: line_end + 2] != header:
            raise resp.ProtocolError(f"{header!r} expected, {found[:_LONGEST_HEADER]!r} found")
        digest = hashlib.sha256()
        expected = memoryview(self.value + b"\r\n")
        whole, offset = len(self.value), 0
        piece = found[line_end + 2 :]
        while True:
            self.compare(expected[offset : offset + len(piece)], piece, f"byte {offset} ff.")
            digest.update(piece[: max(whole - offset, 0)])
            offset += len(piece)
            if paced:
                self.count(len(piece))
            if offset >= len(expected):
                break
            allowed = await self.allowance() if paced else _PIECE_BYTES
            piece = await self.receive(min(allowed, len(expected) - offset))
        found_sha256 = digest.hexdigest()
        right = found_sha256 == self.sha256
        return Transfer(whole, found_sha256, right, started, time.monotonic())

    async def write_value(self, *, paced: bool) -> None:
        """SET the value."""
        value = memoryview(self.value)
        await self.send(
            b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(self.key), self.key, len(value))
        )
        offset = 0
        while offset < len(value):
            allowed = await self.allowance() if paced else _PIECE_BYTES
            piece = value[offset : offset + allowed]
            await self.send(piece)
            offset += len(piece)
            if paced:
                self.count(len(piece), unacknowledged=_unacknowledged(self.socket))
        await self.send(b"\r\n")
        await self.expect(resp.OK, "answer to SET")


def _unacknowledged(connection: socket.socket) -> int:
    # SIOCOUTQ (linux/sockios.h; same number as TIOCOUTQ): bytes in the send queue that the other
    # end has not acknowledged, tcp(7).
    raw = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0" * 4)
    (size,) = struct.unpack("i", raw)
    return int(size)


async def download(
    options: TransferOptions, lifetime: Lifetime, out: SampleWriter
) -> ClientSummary:
    """SET the large value, then GET it again and again, reading at ``rate``."""

    async def work(stream: _Stream) -> None:
        await stream.write_value(paced=False)
        say_ready()
        while not lifetime.stopping.is_set():
            stream.transfers.append(await stream.read_value(paced=True))
            if not options.repeat:
                lifetime.stop("one transfer was asked for")

    return await _run("download", options, lifetime, out, work)


async def upload(options: TransferOptions, lifetime: Lifetime, out: SampleWriter) -> ClientSummary:
    """SET the large value at ``rate``, GET it back at full speed and compare; again and again."""

    async def work(stream: _Stream) -> None:
        await stream.send(resp.command(b"PING"))
        await stream.expect(b"+PONG\r\n", "answer to PING")
        say_ready()
        while not lifetime.stopping.is_set():
            await stream.write_value(paced=True)
            stream.transfers.append(await stream.read_value(paced=False))
            if not options.repeat:
                lifetime.stop("one transfer was asked for")

    return await _run("upload", options, lifetime, out, work)


async def _run(
    client: str,
    options: TransferOptions,
    lifetime: Lifetime,
    out: SampleWriter,
    work: Callable[[_Stream], Coroutine[Any, Any, None]],
) -> ClientSummary:
    started = time.monotonic()
    lost: list[LostConnection] = []
    stream = _Stream(options, lifetime, out)
    if options.buffer_bytes and client == "download":
        # Before connect, so that the window scale follows from it.
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options.buffer_bytes)
    local_port = 0
    with stream.socket, lifetime.watched():
        try:
            await stream.connect()
            local_port = stream.socket.getsockname()[1]
            task = asyncio.ensure_future(work(stream))
            if not await lifetime.until_stopping(task, options.drain_seconds):
                reason = f"the transfer did not end within {options.drain_seconds:g} s of the stop"
                lost.append(LostConnection(0, reason, time.monotonic()))
        except _EndOfStreamError:
            lost.append(LostConnection(0, "end of stream", time.monotonic()))
        except (OSError, resp.ProtocolError) as error:
            reason = f"{type(error).__name__}: {error}"
            lost.append(LostConnection(0, reason, time.monotonic()))
    for transfer in stream.transfers:
        if not transfer.right:
            stream.wrong.append(f"SHA-256 {stream.sha256} expected, {transfer.sha256} found")
    return ClientSummary(
        client=client,
        name=options.name,
        group=options.group,
        connections=1,
        local_ports=(local_port,),
        lost=tuple(lost),
        requests=len(stream.transfers),
        bytes_checked=stream.checked,
        bytes_wrong=stream.wrong_bytes,
        wrong=tuple(stream.wrong),
        longest_wait_s=(),
        started=started,
        ended=time.monotonic(),
        stopped_by=lifetime.stopped_by or "the connection was lost",
        details={
            "size": options.size,
            "rate": options.rate,
            "sha256": stream.sha256,
            "transfers": [asdict(transfer) for transfer in stream.transfers],
        },
    )
