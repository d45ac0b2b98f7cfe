"""A checkpoint on its way from the source node to the target node, while it is being written.

CRIU writes its images to a tmpfs on the source. The memory pages are nearly all of it, and they
are written first to last: so they are sent while CRIU is still at work, and what is left to be sent
when the dump is done is the tail and some small files. The target has reserved the room for them
(pages of its tmpfs, allocated and mapped before the freeze), so that all it does in the freeze is
copy.

CRIU's own page server would save the source's copy, but costs more than that: it moves 64 KiB at a
time, into pages that it has to allocate (docs/measurements.md).

One connection, one direction: messages of a length, a msgpack array ``[name, length]`` and so many
bytes of that file, in order; an empty name ends it, with a table of all lengths and checksums as
its bytes. The answer is one byte.
"""

import asyncio
import mmap
import os
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import MappingProxyType

import msgpack

from mycoproxy.errors import MycoError

_LENGTH = struct.Struct("!I")
_MAX_HEADER = 4096
_MAX_TABLE = 16 << 20
_CHUNK = 4 << 20  # bytes in a message
_POLL = 0.0005  # seconds between two looks at a file that grows
_RESERVED = "reserved"

Rewrite = Callable[[bytes], bytes]


class TransferError(MycoError):
    """A checkpoint did not arrive whole on the target node."""


class ImageStream:
    """Sends the images of ``source`` to ``target`` over ``channel`` (ours, theirs).

    ``reserve`` and ``start`` before the dump, ``finish`` after it, ``close`` in any case. One
    stream for one checkpoint. ``rewrite``: what small images are to be on the target, by name.
    """

    def __init__(
        self,
        source: Path,
        target: Path,
        channel: tuple[socket.socket, socket.socket],
        *,
        rewrite: Mapping[str, Rewrite] = MappingProxyType({}),
    ) -> None:
        self._channel = channel
        self._dumped = threading.Event()
        self._sender = _Sender(source, channel[0], self._dumped, rewrite)
        self._receiver = _Receiver(target, channel[1])
        self._reserving: list[asyncio.Future[None]] = []
        self._running: list[asyncio.Future[None]] = []

    async def reserve(self, size: int) -> None:
        """Make room for ``size`` bytes of pages on the target. Raises ``TransferError``."""
        reserving = asyncio.ensure_future(asyncio.to_thread(self._receiver.reserve, size))
        self._reserving.append(reserving)
        # A thread cannot be cancelled: ``close`` waits for it, or the room would never be let go.
        await asyncio.shield(reserving)

    def start(self) -> None:
        """Begin to send what is there, and what comes."""
        self._running = [
            asyncio.ensure_future(asyncio.to_thread(self._sender.run)),
            asyncio.ensure_future(asyncio.to_thread(self._receiver.run)),
        ]

    async def finish(self) -> int:
        """The dump is complete: send the rest, and wait until all has arrived and been checked.

        Returns the bytes sent. Raises ``TransferError``.
        """
        self._dumped.set()
        done, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_EXCEPTION)
        for end in done:
            end.result()
        return self._sender.sent

    async def close(self) -> None:
        """End both threads, whatever they are doing."""
        self._dumped.set()
        for end in self._channel:
            with suppress(OSError):  # the peer may have shut it down already
                end.shutdown(socket.SHUT_RDWR)
        if threads := self._reserving + self._running:
            await asyncio.wait(threads)
            for thread in threads:
                if not thread.cancelled():
                    thread.exception()  # seen: whoever finished the stream has had it
        self._receiver.close()
        for end in self._channel:
            end.close()


class _Sender:
    def __init__(
        self,
        directory: Path,
        sock: socket.socket,
        dumped: threading.Event,
        rewrite: Mapping[str, Rewrite],
    ) -> None:
        self._directory = directory
        self._sock = sock
        self._dumped = dumped
        self._rewrite = rewrite
        self.sent = 0

    def run(self) -> None:
        try:
            with ExitStack() as stack:
                self._run(stack)
            if self._sock.recv(1) != b"+":
                raise TransferError("the target node did not acknowledge the images")
        except OSError as error:
            raise TransferError(f"sending the images to the target node: {error}") from error

    def _run(self, stack: ExitStack) -> None:
        growing: dict[str, tuple[int, int]] = {}  # pages images: descriptor, bytes sent
        while True:
            last_look = self._dumped.is_set()
            for path in self._directory.glob("pages-*.img"):
                if path.name not in growing:
                    handle = stack.enter_context(path.open("rb"))
                    growing[path.name] = (handle.fileno(), 0)
            idle = True
            for name, (fd, offset) in growing.items():
                size = os.fstat(fd).st_size
                if size > offset:
                    growing[name] = (fd, self._send_range(name, fd, offset, size))
                    idle = False
            if last_look and idle:
                break
            if idle:
                time.sleep(_POLL)
        for name, (_, sent) in growing.items():
            if not sent:  # nothing of it was sent, so the target has not heard of it
                self._send_header(name, 0)
        table: list[list[object]] = [[name, sent, None] for name, (_, sent) in growing.items()]
        for path in sorted(self._directory.glob("*.img")):
            if path.name not in growing:
                body = path.read_bytes()
                if path.name in self._rewrite:
                    body = self._rewrite[path.name](body)
                self._send_header(path.name, len(body))
                self._sock.sendall(body)
                self.sent += len(body)
                table.append([path.name, len(body), zlib.crc32(body)])
        packed = msgpack.packb(table)
        self._send_header("", len(packed))
        self._sock.sendall(packed)

    def _send_range(self, name: str, fd: int, offset: int, size: int) -> int:
        while offset < size:
            length = min(_CHUNK, size - offset)
            self._send_header(name, length)
            end = offset + length
            while offset < end:
                sent = os.sendfile(self._sock.fileno(), fd, offset, end - offset)
                if not sent:
                    raise TransferError(f"{name} became shorter while it was being sent")
                offset += sent
            self.sent += length
        return offset

    def _send_header(self, name: str, length: int) -> None:
        header = msgpack.packb([name, length])
        self._sock.sendall(_LENGTH.pack(len(header)) + header)


class _Receiver:
    def __init__(self, directory: Path, sock: socket.socket) -> None:
        self._directory = directory
        self._sock = sock
        self._reserved: mmap.mmap | None = None
        self._reserved_for = ""
        self._lengths: dict[str, int] = {}
        self._checksums: dict[str, int] = {}

    def reserve(self, size: int) -> None:
        """Allocate and map ``size`` bytes: for the first pages image, mostly the only large one."""
        path = self._directory / _RESERVED
        try:
            with path.open("w+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)
                flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
                self._reserved = mmap.mmap(file.fileno(), size, flags)
        except OSError as error:
            raise TransferError(
                f"no room for {size >> 20} MiB of images in {self._directory}: {error.strerror}"
            ) from error

    def run(self) -> None:
        try:
            while True:
                name, size = self._read_header()
                if name == "":
                    self._end(size)
                    return
                if os.sep in name or not name.endswith(".img"):
                    raise TransferError(f"{name!r} is no name of a CRIU image")
                self._take(name, size)
        except (ValueError, TypeError) as error:
            raise TransferError(f"what the source node sent is damaged: {error}") from error
        except OSError as error:
            raise TransferError(f"receiving the images on the target node: {error}") from error

    def _read_header(self) -> tuple[str, int]:
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        if length > _MAX_HEADER:
            raise TransferError(f"a header of {length} bytes; at most {_MAX_HEADER} are taken")
        name, size = msgpack.unpackb(self._read(length))
        if not isinstance(name, str) or not isinstance(size, int) or size < 0:
            raise TypeError(f"a name and a length were wanted, {name!r} and {size!r} found")
        return name, size

    def _take(self, name: str, size: int) -> None:
        offset = self._lengths.get(name, 0)
        self._lengths[name] = offset + size
        if self._reserved is not None and not self._reserved_for and name.startswith("pages-"):
            self._reserved_for = name
            (self._directory / _RESERVED).rename(self._directory / name)
        if name == self._reserved_for and self._reserved is not None:
            inside = max(0, min(size, len(self._reserved) - offset))
            with memoryview(self._reserved) as whole, whole[offset : offset + inside] as view:
                self._fill(view)
            offset, size = offset + inside, size - inside
        if size:
            self._write(name, offset, size)

    def _write(self, name: str, offset: int, size: int) -> None:
        fd = os.open(self._directory / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while size:
                body = self._read(min(size, _CHUNK))
                size -= len(body)
                self._checksums[name] = zlib.crc32(body, self._checksums.get(name, 0))
                while body:
                    written = os.pwrite(fd, body, offset)
                    body, offset = body[written:], offset + written
        finally:
            os.close(fd)

    def _end(self, size: int) -> None:
        if size > _MAX_TABLE:
            raise TransferError(f"a table of {size} bytes; at most {_MAX_TABLE} are taken")
        table = msgpack.unpackb(self._read(size))
        lengths = {name: length for name, length, _ in table}
        for name, length, checksum in table:
            found = self._lengths.get(name)
            if found != length:
                raise TransferError(f"{name} has {length} bytes, {found} arrived")
            if checksum is not None and self._checksums.get(name, 0) != checksum:
                raise TransferError(f"{name} arrived damaged on the target node")
        if self._lengths.keys() != lengths.keys():
            raise TransferError("the source node does not know of all files that arrived")
        if self._reserved_for:
            os.truncate(self._directory / self._reserved_for, self._lengths[self._reserved_for])
        else:
            (self._directory / _RESERVED).unlink(missing_ok=True)
        for name in lengths.keys() - self._checksums.keys() - {self._reserved_for}:
            (self._directory / name).touch()  # an image without a byte
        self._sock.sendall(b"+")

    def _read(self, length: int) -> bytes:
        data = bytearray(length)
        with memoryview(data) as view:
            self._fill(view)
        return bytes(data)

    def _fill(self, view: memoryview) -> None:
        filled = 0
        while filled < len(view):
            got = self._sock.recv_into(view[filled:], 0, socket.MSG_WAITALL)
            if not got:
                raise TransferError(f"the connection ended {len(view) - filled} bytes early")
            filled += got

    def close(self) -> None:
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None
