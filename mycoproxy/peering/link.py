"""The client's end of a link: calls."""

import asyncio
import contextlib
import math
import ssl
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mycoproxy.peering.bodies import Body, Outgoing, whole
from mycoproxy.peering.connection import Connection, Local, Phase
from mycoproxy.peering.errors import DeadlineError, LinkLost, PeeringError, RequestError
from mycoproxy.peering.hello import Agreement, Role
from mycoproxy.peering.limits import LONGEST_DEADLINE_MS
from mycoproxy.peering.messages import Data, Failure, Goodbye
from mycoproxy.peering.messages import Reply as ReplyMessage
from mycoproxy.peering.protocol import Event


@dataclass(slots=True)
class Answer:
    """What a call returns. The body comes while it is read, until the call's deadline."""

    result: dict[str, Any]
    body: Body


@dataclass(slots=True)
class _Call:
    method: str
    answer: asyncio.Future[Answer]
    end: float
    body: Body | None = None
    pump: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)

    def stop(self) -> None:
        if self.pump is not None:
            self.pump.cancel()
        if self.timer is not None:
            self.timer.cancel()

    def fail(self, error: PeeringError) -> None:
        self.stop()
        if self.body is not None:
            self.body.fail(error)
        elif not self.answer.done():
            self.answer.set_exception(error)


class ClientLink(Connection):
    """Sends requests. ``up`` is done when the hellos are exchanged, or fails with why not."""

    def __init__(self, local: Local, context: ssl.SSLContext, wanted: str) -> None:
        super().__init__(Role.CLIENT, local, context, wanted=wanted)
        self.up: asyncio.Future[Agreement] = self._loop.create_future()
        self._calls: dict[int, _Call] = {}
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def usable(self) -> bool:
        """A call made now would be sent on it."""
        return self.phase is Phase.UP and not self._protocol.leaving

    async def call(
        self,
        method: str,
        args: Mapping[str, Any] | None = None,
        body: Outgoing = b"",
        *,
        deadline: float,
    ) -> Answer:
        """Have the other node do something; all of it, body included, within ``deadline`` seconds.

        The serving side knows the deadline, and stops then as well. Cancelling the call cancels the
        request there. Raises ``RequestError`` (the other side's error reply), ``DeadlineError``,
        ``LinkLost``, ``FrameError`` (arguments that do not fit a frame; put them in the body);
        ``may_have_run`` of each says whether it can have had an effect. What an iterator that was
        given as the body raises comes out here too.
        """
        end = self._loop.time() + deadline
        request = 0
        try:
            async with asyncio.timeout_at(end):
                await self._turn()
                request = self._request(method, args or {}, body, end)
                return await self._calls[request].answer
        except TimeoutError:
            raise DeadlineError(
                f"{self.peer}: no reply to {method} within {deadline:g} s",
                may_have_run=request > 0,
            ) from None
        finally:
            call = self._calls.get(request)
            if call is not None and (not call.answer.done() or call.answer.cancelled()):
                self._abandon(request)

    def _request(self, method: str, args: Mapping[str, Any], body: Outgoing, end: float) -> int:
        milliseconds = math.ceil((end - self._loop.time()) * 1000)
        limit = min(max(milliseconds, 1), LONGEST_DEADLINE_MS)
        small = whole(body)
        request = self._protocol.request(method, limit, args, body=small != b"")
        call = self._calls[request] = _Call(method, self._loop.create_future(), end)
        self._local.counters.requests_out += 1
        if small and len(small) <= self._protocol.may_send(request):
            self._protocol.data(request, small, last=True)
        elif small != b"":
            call.pump = self._loop.create_task(self._pump(request, call, body))
        self._flush()
        return request

    async def _pump(self, request: int, call: _Call, body: Outgoing) -> None:
        try:
            await self._send_body(request, body)
        except LinkLost:
            return  # the call has failed with it already
        except Exception as error:  # noqa: BLE001 - the caller's own: it is raised where it waits
            if not call.answer.done():
                call.answer.set_exception(error)
            elif call.body is not None:
                call.body.fail(PeeringError(f"the request's body: {error}"))
            call.pump = None
            self._abandon(request)

    def _abandon(self, request: int) -> None:
        """The reply is not wanted any more."""
        call = self._calls.pop(request, None)
        if call is not None:
            call.stop()
            if self.phase is Phase.UP and self._protocol.is_unanswered(request):
                self._protocol.cancel(request)
                self._flush()

    def _expire(self, request: int) -> None:
        """The deadline passed while the reply's body was still coming."""
        call = self._calls[request]
        self._abandon(request)
        call.fail(
            DeadlineError(
                f"{self.peer}: the reply's body to {call.method} was not complete in time",
                may_have_run=True,
            )
        )

    # Whose turn it is.

    async def _turn(self) -> None:
        """Wait until one more request may be sent. Raises ``LinkLost``: none will be."""
        again = False
        while True:
            if not self.usable:
                raise LinkLost(
                    f"{self.peer}: {self.error or 'goodbye was said'}", may_have_run=False
                )
            if self._protocol.may_request and not self._paused and (again or not self._queue):
                return
            waiting = self._loop.create_future()
            self._queue.appendleft(waiting) if again else self._queue.append(waiting)
            try:
                await waiting
            except asyncio.CancelledError:
                if waiting.done() and not waiting.cancelled():
                    self._wake(1)  # its turn goes to the next
                raise
            finally:
                with contextlib.suppress(ValueError):
                    self._queue.remove(waiting)
            again = True

    def _wake(self, turns: int) -> None:
        while self._queue and turns > 0:
            waiting = self._queue.popleft()
            if not waiting.done():
                waiting.set_result(None)
                turns -= 1

    def _on_writable(self) -> None:
        self._next()

    def _next(self) -> None:
        """Let those go on that wait for their turn, as many as may."""
        protocol = self._protocol
        if not self.usable:
            self._wake(len(self._queue))
        elif self._queue and protocol.may_request and not self._paused:
            assert protocol.agreement is not None
            self._wake(protocol.agreement.requests - protocol.open)

    # What comes.

    def data_received(self, data: bytes) -> None:
        """See ``Connection``."""
        super().data_received(data)
        if self.phase is Phase.UP:
            if self._protocol.leaving and not self._protocol.open:
                self._break(self._lost("goodbye was said"))
            elif self._queue:
                self._next()

    def _on_up(self, agreement: Agreement) -> None:
        if not self.up.done():
            self.up.set_result(agreement)

    def _on_event(self, event: Event) -> None:
        assert isinstance(event, ReplyMessage | Failure | Data)
        call = self._calls.get(event.id)
        if call is None:
            return
        match event:
            case ReplyMessage():
                self._answered(event, call)
            case Data():
                assert call.body is not None
                call.body.feed(event.data, last=event.last)
            case Failure():
                self._local.counters.failures_in += 1
                if event.code == "deadline":  # its clock was a little faster
                    call.fail(DeadlineError(f"{self.peer}: {event.message}", may_have_run=True))
                else:
                    call.fail(RequestError(event.code, event.message))
        if not self._protocol.is_unanswered(event.id):
            del self._calls[event.id]
            call.stop()
            self._wake_credit(event.id)

    def _answered(self, event: ReplyMessage, call: _Call) -> None:
        request = event.id
        call.body = Body(lambda size: self._consumed(request, size), ended=not event.body)
        if event.body:
            call.timer = self._loop.call_at(call.end, self._expire, request)
        if not call.answer.done():
            call.answer.set_result(Answer(event.result, call.body))

    def _on_goodbye(self, goodbye: Goodbye | None) -> None:
        if goodbye is not None:
            untaken = LinkLost(
                f"{self.peer} took no more requests: {goodbye.message or 'it closes'}",
                may_have_run=False,
            )
            for request in [request for request in self._calls if request > goodbye.last]:
                self._calls.pop(request).fail(untaken)
        elif not self._protocol.open:
            self._break(self._lost("goodbye was said"))
        self._wake(len(self._queue))

    def _on_over(self, error: PeeringError) -> None:
        if not self.up.done():
            self.up.set_exception(error)
            self.up.exception()  # it need not be waited for
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.fail(LinkLost(str(error), may_have_run=True))
        self._wake(len(self._queue))
