"""How a checkpoint gets from the source node to the target node: over their own network.

Two TCP connections, both made before the freeze. On one CRIU's dump sends the memory pages, as it
reads them out of the tasks, to a CRIU page server that writes them to the target's tmpfs; so
sending costs next to nothing beyond the dump itself. On the other goes what is left afterwards:
some hundred kilobytes of images.
"""

import asyncio
import os
import socket
import struct
import subprocess
import zlib
from contextlib import suppress
from pathlib import Path

import msgpack

from mycoproxy.check.criu import CriuBinary
from mycoproxy.errors import MycoError, RefusedError
from mycoproxy.namespaces import NamespaceWorker

_LENGTH = struct.Struct("!I")
_MAX_MANIFEST = 16 << 20
_CHUNK = 1 << 20

# CRIU corks the socket (connect_to_page_server in its page-xfer.c) and never uncorks it for its
# last words, so these wait for the kernel's 200 ms cork timeout (tcp(7), TCP_CORK). Setting
# TCP_NODELAY pushes out what is corked.
_PUSH_INTERVAL = 0.002  # seconds


class TransferError(MycoError):
    """A checkpoint did not arrive whole on the target node."""


def connect(
    source: NamespaceWorker, target: NamespaceWorker, address: str, *, timeout: float = 3.0
) -> tuple[socket.socket, socket.socket]:
    """A TCP connection from the source node to ``address`` of the target node; (ours, theirs).

    Raises ``RefusedError`` if the target cannot be reached within ``timeout`` seconds.
    """
    try:
        listener = target.call(
            socket.create_server,
            (address, 0),
            family=socket.AF_INET6 if ":" in address else socket.AF_INET,
            backlog=1,
        )
    except OSError as error:
        raise RefusedError(f"{address} is no address of the target node: {error}") from error
    with listener:
        listener.settimeout(timeout)
        where = listener.getsockname()[:2]
        try:
            ours = source.call(socket.create_connection, where, timeout=timeout)
            try:
                theirs = _accept(listener, ours)
            except OSError:
                ours.close()
                raise
        except OSError as error:
            raise RefusedError(
                f"target node unreachable: no connection to {address} from the source node "
                f"({error or 'timed out'})"
            ) from error
    for end in (ours, theirs):
        end.settimeout(None)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ours, theirs


def _accept(listener: socket.socket, ours: socket.socket) -> socket.socket:
    """The other end of ``ours``, and of nobody else's connection."""
    while True:
        theirs, _ = listener.accept()
        if theirs.getpeername() == ours.getsockname():
            return theirs
        theirs.close()


class PageServer:
    """A CRIU page server on the target node, waiting on a connection that is already there."""

    def __init__(self, process: asyncio.subprocess.Process, ours: socket.socket, log: Path) -> None:
        self._process = process
        self._ours = ours
        self._log = log

    @classmethod
    async def start(
        cls,
        criu: CriuBinary,
        *,
        source: NamespaceWorker,
        target: NamespaceWorker,
        address: str,
        images: Path,
    ) -> "PageServer":
        """Start it, writing to ``images``. Raises ``RefusedError`` if the target is unreachable."""
        ours, theirs = await asyncio.to_thread(connect, source, target, address)
        log = images / "page-server.log"
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *[str(criu.path), "page-server", "--images-dir", str(images)],
                    *["--ps-socket", str(theirs.fileno()), "-v1", "-o", log.name],
                    env=criu.environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                )
            except BaseException:
                ours.close()
                raise
        return cls(process, ours, log)

    def fileno(self) -> int:
        """The source's end of the connection, for CRIU to inherit."""
        return self._ours.fileno()

    async def keep_pushing(self) -> None:
        """Run beside the dump: push out what CRIU leaves corked. Ends by being cancelled."""
        while True:
            await asyncio.sleep(_PUSH_INTERVAL)
            with suppress(OSError):  # the other end has closed: nothing is left to push
                self._ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def wait(self, *, timeout: float) -> None:
        """Wait until every page is written. Raises ``TransferError``."""
        try:
            status = await asyncio.wait_for(self._process.wait(), timeout)
        except TimeoutError:
            raise TransferError(f"CRIU's page server did not end within {timeout:g} s") from None
        if status != 0:
            raise TransferError(
                f"CRIU's page server failed with exit status {status}; see {self._log}"
            )

    @property
    def pid(self) -> int:
        """The page server's process, in our PID namespace."""
        return self._process.pid

    async def close(self) -> None:
        """End it, whatever it is doing."""
        self._ours.close()
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


async def send_images(
    source: Path, target: Path, channel: tuple[socket.socket, socket.socket]
) -> int:
    """Send every image of ``source`` over ``channel`` into ``target``; returns the bytes sent.

    Each file's length and CRC-32 are checked on arrival. Raises ``TransferError``.
    """
    ours, theirs = channel
    sending = asyncio.ensure_future(asyncio.to_thread(_send, source, ours))
    receiving = asyncio.ensure_future(asyncio.to_thread(_receive, target, theirs))
    try:
        done, _ = await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        return sending.result()
    finally:
        # Whatever ended this early: a thread that still waits for the other end must not.
        for end in channel:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        await asyncio.wait({sending, receiving})
        for task in (sending, receiving):
            task.exception()  # seen: the first one has been raised


def _send(directory: Path, sock: socket.socket) -> int:
    try:
        bodies = {path.name: path.read_bytes() for path in sorted(directory.glob("*.img"))}
        files = [[name, len(body), zlib.crc32(body)] for name, body in bodies.items()]
        manifest = msgpack.packb(files)
        sock.sendall(_LENGTH.pack(len(manifest)) + manifest)
        for body in bodies.values():
            sock.sendall(body)
        if sock.recv(1) != b"+":
            raise TransferError("the target node did not acknowledge the images")
    except OSError as error:
        raise TransferError(f"sending the images to the target node: {error}") from error
    return sum(map(len, bodies.values()))


def _receive(directory: Path, sock: socket.socket) -> None:
    try:
        (length,) = _LENGTH.unpack(_read(sock, _LENGTH.size))
        if length > _MAX_MANIFEST:
            raise TransferError(f"a manifest of {length} bytes; at most {_MAX_MANIFEST} are taken")
        for name, size, checksum in msgpack.unpackb(_read(sock, length)):
            if os.sep in name or not name.endswith(".img"):
                raise TransferError(f"{name!r} is no name of a CRIU image")
            body = _read(sock, size)
            if zlib.crc32(body) != checksum:
                raise TransferError(f"{name} arrived damaged on the target node")
            (directory / name).write_bytes(body)
        sock.sendall(b"+")
    except OSError as error:
        raise TransferError(f"receiving the images on the target node: {error}") from error
    except (ValueError, TypeError) as error:
        raise TransferError(f"the list of images is damaged: {error}") from error


def _read(sock: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = sock.recv(min(_CHUNK, length - len(data)))
        if not piece:
            raise TransferError(f"the connection ended {length - len(data)} bytes early")
        data += piece
    return bytes(data)
