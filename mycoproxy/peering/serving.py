"""The server's end of a link: requests go to the handler, each in a task of its own."""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from mycoproxy.errors import MycoError
from mycoproxy.peering.bodies import Body, Outgoing, whole
from mycoproxy.peering.connection import Connection, Local, Phase
from mycoproxy.peering.errors import PeeringError, RequestError
from mycoproxy.peering.hello import Agreement, Role
from mycoproxy.peering.messages import Cancel, Data, Goodbye, Request
from mycoproxy.peering.protocol import Event

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Reply:
    """What a handler returns."""

    result: dict[str, Any] = field(default_factory=dict)
    body: Outgoing = b""


Handler = Callable[[str, str, dict[str, Any], Body], Awaitable[Reply]]
"""``await handler(peer, method, args, body)``: ``peer`` is the node that the certificate names.

It is cancelled at the request's deadline, when the client cancels, and when the link is lost; what
must not be cut short belongs in a task of its own (``asyncio.shield``). ``MycoError`` becomes an
error reply with its message, ``RequestError`` with its code; anything else is logged, and the
client is told ``internal`` and no more.
"""

agreement: ContextVar[Agreement] = ContextVar("agreement")
"""In a handler: version and features of the link that the request came on."""


@dataclass(slots=True)
class _Serving:
    body: Body
    task: asyncio.Task[None]
    timer: asyncio.TimerHandle
    stopped: tuple[str, str] = ("cancelled", "the handler was cancelled")


class ServerLink(Connection):
    """Answers requests. The callbacks are told when it has come up, and when it is over."""

    def __init__(
        self,
        local: Local,
        context: ssl.SSLContext,
        handler: Handler,
        *,
        on_connected: Callable[["ServerLink"], None],
        on_up: Callable[["ServerLink"], None],
        on_closed: Callable[["ServerLink"], None],
    ) -> None:
        super().__init__(Role.SERVER, local, context)
        self._handler = handler
        self._on_connected = on_connected
        self._when_up = on_up
        self._on_closed = on_closed
        self._serving: dict[int, _Serving] = {}
        self._held: list[tuple[int, str, str]] = []
        self.address = ""

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """The handlers that run."""
        return [serving.task for serving in self._serving.values()]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``Connection``."""
        name = transport.get_extra_info("peername")
        self.address = name[0] if name else ""
        super().connection_made(transport)
        self._on_connected(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``Connection``."""
        super().connection_lost(exc)
        self._on_closed(self)

    def _on_up(self, agreement: Agreement) -> None:  # noqa: ARG002
        self._when_up(self)

    def _on_event(self, event: Event) -> None:
        match event:
            case Request():
                self._begin(event)
            case Data():
                self._serving[event.id].body.feed(event.data, last=event.last)
            case Cancel():
                self._stop(event.id, "cancelled", "the client cancelled the request")

    def _on_goodbye(self, goodbye: Goodbye | None) -> None:
        """The client closes when it has its replies."""

    def _begin(self, event: Request) -> None:
        request = event.id
        self._local.counters.requests_in += 1
        body = Body(lambda size: self._consumed(request, size), ended=not event.body)
        task = self._loop.create_task(self._serve(event, body), name=f"{self.peer}: {event.method}")
        task.add_done_callback(lambda task: self._served(request, task))
        self._serving[request] = _Serving(
            body,
            task,
            self._loop.call_later(
                event.deadline_ms / 1000,
                self._stop,
                request,
                "deadline",
                f"{event.method} was not done within {event.deadline_ms} ms",
            ),
        )

    def _stop(self, request: int, code: str, message: str) -> None:
        serving = self._serving.get(request)
        if serving is not None:
            serving.stopped = (code, message)
            serving.task.cancel()

    async def _serve(self, event: Request, body: Body) -> None:
        request = event.id
        assert self._protocol.agreement is not None
        agreement.set(self._protocol.agreement)
        try:
            reply = await self._handler(self.peer, event.method, event.args, body)
            await self._reply(request, reply)
        except RequestError as error:
            self._fail(request, error.code, str(error))
        except MycoError as error:
            self._fail(request, "failed", str(error))
        except Exception:
            log.exception("%s: %s failed", self.peer, event.method)
            self._fail(request, "internal", f"{event.method} failed; {self._local.node} logged why")

    def _served(self, request: int, task: asyncio.Task[None]) -> None:
        """The task is done; one that was cancelled may not even have begun."""
        serving = self._serving.pop(request)
        serving.timer.cancel()
        if task.cancelled():
            self._fail(request, *serving.stopped)

    async def _reply(self, request: int, reply: Reply) -> None:
        # Not before the other side takes what is sent: else replies would pile up here.
        await self._writable()
        small = whole(reply.body)
        self._protocol.reply(request, reply.result, body=small != b"")
        if small and len(small) <= self._protocol.may_send(request):
            self._protocol.data(request, small, last=True)
        self._flush()
        if self._protocol.is_sending(request):
            await self._send_body(request, reply.body)

    def _fail(self, request: int, code: str, message: str) -> None:
        if self.phase is not Phase.UP or not self._protocol.is_unanswered(request):
            return
        if self._paused:
            # As in _reply. The exchange stays open, so there are not many.
            self._held.append((request, code, message))
        else:
            self._local.counters.failures_out += 1
            self._protocol.fail(request, code, message)
            self._flush()

    def _on_writable(self) -> None:
        held, self._held = self._held, []
        for failure in held:
            self._fail(*failure)

    def _on_over(self, error: PeeringError) -> None:
        for request, serving in list(self._serving.items()):
            serving.body.fail(error)
            self._stop(request, "lost", str(error))
