"""The gate between runc and CRIU: runc prepares, the mover says when, CRIU works.

runc knows how to describe a container to CRIU (mounts, cgroups, namespaces, its own state file),
and takes time for it that is not CRIU's: starting up, asking for CRIU's version, reading and
writing state (``netlab bench runtime``). All of it can be done while the workload still runs. So
runc is started early, with the stub (``criu_stub.py``) as its ``criu``; its request stops here,
before CRIU has read it, until ``go``. From then on messages are passed on, the request with the
options that this project needs, and notifications can be answered here instead: at
``post-restore`` everything is there and nothing runs, a refusal still aborts the restore, and that
is where connections are handed over.

CRIU resolves a request's ``*_dir_fd`` through the pid of whoever made the socket pair
(``SO_PEERCRED``; ``setup_opts_from_req`` in CRIU's cr-service.c). Here that is CRIU itself and not
runc, so directories are passed by path.
"""

import array
import asyncio
import hmac
import os
import secrets
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from migrate.runtime import criu_rpc
from migrate.runtime.criu_rpc import Option, OptionValue, RequestType
from mycoproxy.check.criu import CriuBinary
from mycoproxy.errors import MycoError

# runc's own reading buffer; a request with hundreds of mounts is some 50 KB.
_PACKET = 1 << 20
_MAX_FDS = 16
_PID = struct.Struct("=i")
_STUB = Path(__file__).with_name("criu_stub.py")

#: Called with a notification's name and pid; False refuses, which aborts a restore up to
#: ``post-restore``.
NotifyHook = Callable[[str, int | None], Awaitable[bool]]


class GateError(MycoError):
    """CRIU or runc failed, or ended, on the other side of the gate."""


class Gate:
    """One runc command's CRIU: opened before runc is started, closed after it ended.

    ``directory`` (private to this gate) gets the stub. ``environment`` is what runc has to be
    started with, in this process's network namespace. CRIU runs in the namespace ``netns``, which
    is the workload's.
    """

    def __init__(self, directory: Path, criu: CriuBinary, *, netns: Path) -> None:
        self._sessions: list[tuple[socket.socket, socket.socket]] = []
        self._closed = False
        directory.mkdir(parents=True)
        bin_directory = directory / "bin"
        bin_directory.mkdir()
        if not os.access(_STUB, os.X_OK):
            raise GateError(f"{_STUB} is not executable; chmod +x it, or install the package again")
        # A link, because a tmpfs is often mounted noexec.
        (bin_directory / "criu").symlink_to(_STUB)
        python = Path(sys.executable).parent
        # An abstract address (unix(7)): no path that could be too long for it. Everybody in this
        # network namespace can see it and connect; only whom we start knows the key.
        self._key = secrets.token_hex(16)
        address = f"mycoproxy-gate-{secrets.token_hex(8)}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        self._listener.bind(f"\0{address}")
        self._listener.listen(4)
        self.environment = {
            **os.environ,
            "PATH": f"{bin_directory}:{python}:{os.environ.get('PATH', os.defpath)}",
            "MYCOPROXY_GATE": address,
            "MYCOPROXY_GATE_KEY": self._key,
            "MYCOPROXY_GATE_NETNS": str(netns),
            "MYCOPROXY_CRIU": str(criu.path),
            "MYCOPROXY_CRIU_PRELOAD": str(criu.preload or ""),
        }
        self._runc: socket.socket | None = None
        self._criu: socket.socket | None = None
        self._request = b""
        self.criu_pid: int | None = None

    async def wait_for_request(self, kind: RequestType) -> None:
        """Serve runc's questions (version, features) until its request of ``kind`` is here.

        The request is kept; CRIU is started and has not seen it.
        """
        while True:
            runc, criu, pid = await self._accept()
            request = await _receive(runc)
            if criu_rpc.request_type(request.data) == kind:
                self._runc, self._criu, self._request, self.criu_pid = runc, criu, request.data, pid
                return
            await _send(criu, request)
            answer = await _receive(criu)
            await _send(runc, answer)
            # One question to a CRIU: it ends when the connection does.
            self._end_session()

    async def go(
        self, options: Mapping[Option, OptionValue], on_notify: NotifyHook | None = None
    ) -> criu_rpc.Response:
        """Let CRIU have the request, with ``options`` set in it; pass messages on until the end.

        A notification goes to runc first and then to ``on_notify``, so runc's own book-keeping is
        done when the hook runs. Returns CRIU's final, successful answer, which runc has as well.
        Raises ``GateError`` if CRIU answers with a failure, or ends, or the hook refused.
        """
        assert self._runc is not None and self._criu is not None, "wait_for_request comes first"
        runc, criu = self._runc, self._criu
        request = criu_rpc.with_options(self._request, options)
        kind = criu_rpc.request_type(request)
        await _send(criu, _Packet(request))
        while True:
            packet = await _receive(criu)
            answer = criu_rpc.response(packet.data)
            await _forward(runc, packet)
            if answer.type != RequestType.NOTIFY or not answer.success:
                if not answer.success:
                    detail = answer.message or os.strerror(answer.errno or 0)
                    raise GateError(f"CRIU's {RequestType(kind).name.lower()} failed: {detail}")
                return answer
            reply = await _receive(runc)
            if on_notify is not None and not await on_notify(answer.script or "", answer.pid):
                reply = _Packet(criu_rpc.notify_reply(success=False))
            await _send(criu, reply)

    def refuse(self) -> None:
        """End CRIU without having asked it for anything; runc's command fails."""
        if self._runc is not None:
            kind = criu_rpc.request_type(self._request)
            with suppress(OSError):
                self._runc.send(criu_rpc.failure(kind))
        self.close()
        self._runc = self._criu = None

    def close(self) -> None:
        """Close every connection: a CRIU that waits for its request, and its runc, end."""
        if not self._closed:
            self._closed = True
            self._end_session()
            self._listener.close()

    def _end_session(self) -> None:
        for runc, criu in self._sessions:
            runc.close()
            criu.close()
        self._sessions.clear()

    async def _accept(self) -> tuple[socket.socket, socket.socket, int]:
        loop = asyncio.get_running_loop()
        stub, _ = await loop.sock_accept(self._listener)
        with stub:
            hello = await _receive(stub)
            key = self._key.encode()
            if len(hello.fds) != 2 or not hmac.compare_digest(hello.data[_PID.size :], key):
                for fd in hello.fds:
                    os.close(fd)
                raise GateError("something else than the CRIU stub came to the gate")
            runc, criu = (socket.socket(fileno=fd) for fd in hello.fds)
            runc.setblocking(False)
            criu.setblocking(False)
            self._sessions.append((runc, criu))
            await _send(stub, _Packet(b"+"))
        (pid,) = _PID.unpack_from(hello.data)
        return runc, criu, pid


@dataclass(frozen=True, slots=True)
class _Packet:
    """A message and the descriptors that came with it (``orphan-pts-master`` has one)."""

    data: bytes
    fds: tuple[int, ...] = ()


async def _receive(sock: socket.socket) -> _Packet:
    while True:
        try:
            data, ancillary, _, _ = sock.recvmsg(
                _PACKET, socket.CMSG_SPACE(_MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            await _ready(sock, write=False)
            continue
        except ConnectionResetError:
            data, ancillary = b"", []
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        if not data:
            raise GateError("the connection between runc and CRIU ended before CRIU's answer")
        return _Packet(data, tuple(fds))


async def _send(sock: socket.socket, packet: _Packet) -> None:
    while True:
        try:
            if packet.fds:
                socket.send_fds(sock, [packet.data], packet.fds)
            else:
                sock.send(packet.data)
        except BlockingIOError:
            await _ready(sock, write=True)
            continue
        except (BrokenPipeError, ConnectionResetError) as error:
            raise GateError("the connection between runc and CRIU ended") from error
        return


async def _forward(sock: socket.socket, packet: _Packet) -> None:
    """Send what was received, and close the descriptors that came with it."""
    try:
        await _send(sock, packet)
    finally:
        for fd in packet.fds:
            os.close(fd)


async def _ready(sock: socket.socket, *, write: bool) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    add, remove = (
        (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
    )
    add(sock, wake)
    try:
        await ready
    finally:
        remove(sock)
