"""A TCP connection between two agents: TLS, the hellos, and all that ends it in time.

It is an asyncio protocol of its own over plain TCP, and does TLS itself (``tls.py``). What requests
mean is left to its two kinds, ``ClientLink`` and ``ServerLink``. Everything happens in the event
loop's thread.

Deadlines: TLS' handshake, the hello, silence (ping, then the end), a peer that takes nothing of
what waits for it, the time that closing may take. The kernel's own (TCP_USER_TIMEOUT, keep-alive)
are set as well. A link whose peer is no longer let in ends, too.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import cast

from mycoproxy.errors import MycoError
from mycoproxy.peering.bodies import Outgoing, chunks, cut
from mycoproxy.peering.counters import Counters
from mycoproxy.peering.errors import HandshakeError, LinkLost, PeeringError, ProtocolError
from mycoproxy.peering.hello import Agreement, Introduction, Role
from mycoproxy.peering.limits import LinkLimits
from mycoproxy.peering.messages import Credit, Goodbye, Ping, Pong
from mycoproxy.peering.protocol import Event, LinkProtocol
from mycoproxy.peering.tls import TlsStream

Identify = Callable[[ssl.SSLObject], str]
"""The node that the peer's certificate names. ``MycoError``: it is not, or no longer, let in.

OpenSSL has verified the certificate in the handshake. It is asked again from time to time as long
as the link is up: so it has to look at the certificate's end, and at revocations.
"""


@dataclass
class Local:
    """This node, as it shows itself on its links, whichever side opened them."""

    node: str
    identify: Identify
    features: frozenset[str] = frozenset()
    limits: LinkLimits = field(default_factory=LinkLimits)
    counters: Counters = field(default_factory=Counters)


class Phase(Enum):
    """How far a connection is."""

    TLS = auto()
    HELLO = auto()
    UP = auto()
    CLOSED = auto()


class Connection(asyncio.Protocol):
    """What both ends of a link have in common.

    ``peer`` is the other node's name once its certificate has been checked; ``error`` why the
    link is over.
    """

    def __init__(
        self, role: Role, local: Local, context: ssl.SSLContext, *, wanted: str | None = None
    ) -> None:
        self.role = role
        self.phase = Phase.TLS
        self.peer = wanted or ""
        self.error: PeeringError | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._local = local
        self._context = context
        self._limits = local.limits
        self._wanted = wanted
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._tls: TlsStream | None = None  # a server's is made once there is something to read
        self._protocol: LinkProtocol
        self._timer: asyncio.TimerHandle | None = None
        self._heard = self._ticked = self._loop.time()
        self._frames_counted = 0
        self._paused = False
        self._stalled_since = 0.0
        self._stalled_size = 0
        self._pong_due = False
        self._resumed: list[asyncio.Future[None]] = []
        self._credited: dict[int, asyncio.Future[None]] = {}

    # What the kinds of links fill in.

    def _on_up(self, agreement: Agreement) -> None:
        """The hellos are exchanged."""

    def _on_event(self, event: Event) -> None:
        """A message of an exchange."""
        raise NotImplementedError

    def _on_goodbye(self, goodbye: Goodbye | None) -> None:
        """The other side begins nothing new; without an argument: this side does not."""

    def _on_writable(self) -> None:
        """The other side takes again what is sent."""

    def _on_over(self, error: PeeringError) -> None:
        """The link is over; nothing can be sent any more."""

    # asyncio's calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TCP's connection is there."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not derived from it
        _set_options(self._transport.get_extra_info("socket"), self._limits)
        self._transport.set_write_buffer_limits(high=self._limits.write_buffer)
        if self.role is Role.CLIENT:
            self._tls = TlsStream(self._context, server=False)
        self._timer = self._loop.call_later(self._limits.handshake, self._handshake_late, "TLS")
        self._flush()

    def data_received(self, data: bytes) -> None:
        """asyncio reads at most 256 KiB at once; nothing of it is kept but what credit allows."""
        if self.phase is Phase.CLOSED:
            return
        self._heard = self._loop.time()
        self._local.counters.bytes_in += len(data)
        tls = self._tls
        if tls is None:
            tls = self._tls = TlsStream(self._context, server=True)
        try:
            tls.feed(data)
            if tls.ready:
                if self.phase is Phase.TLS:
                    self._authenticated(tls)
                self._read(tls)
        except PeeringError as error:
            self._break(error)
        else:
            self._flush()

    def _read(self, tls: TlsStream) -> None:
        protocol = self._protocol
        before = protocol.frames_in
        try:
            for plain in tls.plaintext():
                if not plain:
                    raise self._gone()
                for event in protocol.receive(plain):
                    self._dispatch(event)
                if self.phase is Phase.CLOSED:
                    return
        finally:
            self._local.counters.frames_in += protocol.frames_in - before

    def eof_received(self) -> None:
        """The other side sends no more; asyncio closes the transport."""

    def pause_writing(self) -> None:
        """The other side does not take what is sent as fast as it comes."""
        self._paused = True
        self._stalled_since = self._loop.time()
        self._stalled_size = self._transport.get_write_buffer_size()

    def resume_writing(self) -> None:
        """It does again."""
        self._paused = False
        if self.phase is Phase.CLOSED:
            return
        if self._pong_due:
            self._pong_due = False
            self._protocol.pong()
            self._flush()
        self._wake_writers()
        self._on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        """TCP's connection is gone."""
        self._end(self._lost(str(exc)) if exc else self._gone())
        if self._timer is not None:
            self._timer.cancel()
        if not self.closed.done():
            self.closed.set_result(None)

    # The way up.

    def _authenticated(self, tls: TlsStream) -> None:
        """TLS' handshake is done. A client's peer has to be the node that it wanted."""
        try:
            self.peer = self._local.identify(tls.ssl_object)
        except MycoError as error:
            raise HandshakeError("identity", str(error)) from error
        if self._wanted is not None and self.peer != self._wanted:
            raise HandshakeError(
                "identity", f"{self._wanted} was wanted; the certificate is that of {self.peer}"
            )
        if tls.ssl_object.session_reused:
            # Its certificate was checked some time ago, and not now.
            raise HandshakeError("tls", f"{self.peer} resumed an old TLS session")
        introduction = Introduction(
            self._local.node, self._limits, self._local.features, self._wanted
        )
        self._protocol = LinkProtocol(self.role, introduction, self.peer)
        self.phase = Phase.HELLO
        self._arm(self._limits.hello, self._handshake_late, "the hello")

    def _handshake_late(self, what: str) -> None:
        limit = self._limits.handshake if self.phase is Phase.TLS else self._limits.hello
        self._break(HandshakeError("deadline", f"{what} was not done within {limit:g} s"))

    def _dispatch(self, event: Event) -> None:
        if self.phase is Phase.CLOSED:
            return
        match event:
            case Agreement():
                self.phase = Phase.UP
                self._local.counters.established += 1
                self._ticked = self._loop.time()
                self._arm(self._tick_length(), self._tick)
                self._on_up(event)
            case Ping():
                if not self._paused:
                    self._protocol.pong()
                elif self._pong_due:
                    raise ProtocolError(f"{self.peer}: a second ping before the first one's pong")
                else:
                    self._pong_due = True
            case Pong():
                pass
            case Goodbye():
                self._received_goodbye(event)
            case Credit():
                self._wake_credit(event.id)
            case _:
                self._on_event(event)

    def _received_goodbye(self, goodbye: Goodbye) -> None:
        if self.phase is Phase.HELLO:
            raise HandshakeError(goodbye.code or "goodbye", f"{self.peer}: {goodbye.message}")
        self._on_goodbye(goodbye)
        if goodbye.code:
            raise self._lost(f"it ended the link: {goodbye.message or goodbye.code}")

    # Time.

    def _arm(self, delay: float, callback: Callable[..., None], *args: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay, callback, *args)

    def _tick_length(self) -> float:
        return min(self._limits.idle, self._limits.stall) / 4

    def _tick(self) -> None:
        self._arm(self._tick_length(), self._tick)
        now = self._loop.time()
        if now - self._ticked > 2 * self._tick_length():
            # This process itself stood still: the silence is not the other side's.
            self._heard = max(self._heard, now - self._limits.idle)
        self._ticked = now
        silence = now - self._heard
        if silence > 2 * self._limits.idle:
            self._break(self._lost(f"nothing was heard of it for {silence:.1f} s"))
            return
        try:
            assert self._tls is not None
            if self._local.identify(self._tls.ssl_object) != self.peer:
                raise HandshakeError("identity", "its certificate is another node's now")
        except MycoError as error:
            self.refuse("identity", str(error))
            return
        if self._paused:
            size = self._transport.get_write_buffer_size()
            if size < self._stalled_size:
                self._stalled_since = now
            elif now - self._stalled_since > self._limits.stall:
                self._break(self._lost(f"it took nothing for {now - self._stalled_since:.1f} s"))
                return
            self._stalled_size = size
        if silence > self._limits.idle:
            self._protocol.ping()
            self._flush()

    # Sending.

    def _flush(self) -> None:
        """Everything that is to be sent, in one write."""
        if self.phase is Phase.CLOSED:
            return
        self._push()

    def _push(self) -> None:
        if self._tls is None:
            return
        if self.phase in (Phase.HELLO, Phase.UP):
            plain = self._protocol.to_send()
            if plain:
                self._tls.write(plain)
                frames, before = self._protocol.frames_out, self._frames_counted
                self._local.counters.frames_out += frames - before
                self._frames_counted = frames
        data = self._tls.to_send()
        if data:
            self._local.counters.bytes_out += len(data)
            self._transport.write(data)

    async def _writable(self) -> None:
        """Wait until the other side takes what is sent. Raises ``LinkLost``."""
        while self._paused and self.phase is not Phase.CLOSED:
            waiting = self._loop.create_future()
            self._resumed.append(waiting)
            await waiting
        if self.phase is Phase.CLOSED:
            raise LinkLost(str(self.error), may_have_run=True)

    def _wake_writers(self) -> None:
        resumed, self._resumed = self._resumed, []
        for waiting in resumed:
            if not waiting.done():
                waiting.set_result(None)

    def _wake_credit(self, request: int) -> None:
        waiting = self._credited.get(request)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    async def _send_body(self, request: int, body: Outgoing) -> None:
        """Send a body as the other side takes it; returns early if it is not wanted any more."""
        protocol = self._protocol
        async with contextlib.aclosing(chunks(body)) as given:
            async for chunk in given:
                for piece in cut(chunk):
                    if not await self._send_piece(request, piece):
                        return
        if protocol.is_sending(request):
            protocol.data(request, b"", last=True)
            self._flush()

    async def _send_piece(self, request: int, piece: memoryview) -> bool:
        protocol = self._protocol
        while piece:
            await self._writable()
            if not protocol.is_sending(request):
                return False
            size = min(len(piece), protocol.may_send(request))
            if size:
                protocol.data(request, piece[:size], last=False)
                self._flush()
                piece = piece[size:]
                continue
            waiting = self._credited[request] = self._loop.create_future()
            try:
                await waiting
            finally:
                del self._credited[request]
        return True

    def _consumed(self, request: int, size: int) -> None:
        if self.phase is Phase.UP:
            self._protocol.consumed(request, size)
            self._flush()

    # The end.

    async def close(self, grace: float) -> None:
        """Say goodbye, let what is open end within ``grace`` seconds, then close."""
        if self.phase is Phase.UP:
            self._protocol.goodbye()
            self._flush()
            self._on_goodbye(None)
        elif self.phase is not Phase.CLOSED:
            self._break(HandshakeError("closing", "this side closes"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await asyncio.shield(self.closed)
        self.abort("this side closed the link")
        await asyncio.shield(self.closed)

    def abort(self, reason: str, *, refused: str = "") -> None:
        """Close at once; what was not sent is not sent. ``refused``: the word to count it under."""
        self._end(HandshakeError(refused, reason) if refused else self._lost(reason))
        self._transport.abort()

    def refuse(self, code: str, message: str) -> None:
        """End the link and say why."""
        self._protocol.goodbye(code, message)
        self._break(HandshakeError(code, message))

    def _break(self, error: PeeringError) -> None:
        """Say what is to be said, and close."""
        if self.phase is Phase.CLOSED:
            return
        self._push()
        if self._tls is not None:
            self._tls.close()
            self._push()
        self._end(error)
        self._transport.close()
        self._arm(self._limits.linger, self._transport.abort)

    def _end(self, error: PeeringError) -> None:
        if self.phase is Phase.CLOSED:
            return
        up, self.phase = self.phase is Phase.UP, Phase.CLOSED
        if up and isinstance(error, HandshakeError) and error.reason == "tls":
            error = self._lost(str(error))
        self.error = error
        counters = self._local.counters
        if isinstance(error, HandshakeError):
            counters.refused[error.reason] += 1
        elif not up:
            counters.refused["protocol" if isinstance(error, ProtocolError) else "lost"] += 1
        elif not (self._protocol.leaving and not self._protocol.open):
            counters.lost += 1
        self._wake_writers()
        for request in self._credited:
            self._wake_credit(request)
        self._on_over(error)

    def _gone(self) -> LinkLost:
        if self.phase in (Phase.TLS, Phase.HELLO):
            return self._lost("it closed the connection before its hello; its log says why")
        return self._lost("it closed the connection")

    def _lost(self, why: str) -> LinkLost:
        name = f"link with {self.peer}" if self.peer else "connection of a stranger"
        return LinkLost(f"{name}: {why}", may_have_run=True)


def _set_options(sock: socket.socket, limits: LinkLimits) -> None:
    """No delay for small messages; a dead host is noticed about when silence would be."""
    patience = 2 * limits.idle
    every = max(1, int(limits.idle / 4))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(patience * 1000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, every)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, every)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
