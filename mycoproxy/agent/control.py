"""The control socket: what ``mycoproxy status`` and the like ask a running agent.

HTTP over a unix socket, so ``curl --unix-socket`` will do. Every answer is JSON; a refusal is
``{"error": ..., "to_do": ...}``. Lists end at ``limit`` rows (1000 unless it is given) and say how
many there are. ``/v1/moves?watch=1`` is a stream, one JSON object a line.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from aiohttp import web
from aiohttp.typedefs import Handler

from mycoproxy.agent.control_socket import Caller, ControlSocket, group_id
from mycoproxy.agent.http_server import HttpServer, application
from mycoproxy.agent.part import Agent, Part
from mycoproxy.agent.questions import Provider, Row, ask
from mycoproxy.errors import MycoError, RefusedError, UsageError

if TYPE_CHECKING:
    from mycoproxy.agent.daemon import Daemon

log = logging.getLogger(__name__)

ROWS: Final = 1000
MOST_ROWS: Final = 100_000
HEARTBEAT: Final = 10.0
"""Seconds of silence after which a watcher is told that all is well."""

NO_SESSIONS: Final = "proxied mode is not there yet; connections are moved directly"


class Control(Part):
    """The last part: it answers once all others have started, and ends before they do."""

    name: ClassVar[str] = "control"

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def start(self, agent: Agent) -> None:
        """Listen on the socket. Raises as ``ControlSocket.open`` and ``group_id`` do."""
        config = agent.config.control
        self._agent = agent
        self._questions = agent.questions
        self._group = group_id(config.group)
        app = application()
        app.middlewares.extend([self._answer, self._authorise, self._in_time])
        app.add_routes(
            [
                web.get("/v1/status", self._status),
                web.get("/v1/config", self._config),
                web.get("/v1/connections", self._connections),
                web.get("/v1/sessions", self._sessions),
                web.get("/v1/moves", self._moves),
                web.post("/v1/reload", self._reload),
                *self._questions.routes,
            ]
        )
        app.on_shutdown.append(self._end_streams)
        self._server = HttpServer(app)
        self._socket = ControlSocket.open(config.socket, mode=config.mode, group=self._group)
        try:
            await self._server.start(self._socket.socket)
        except BaseException:
            self._socket.close()
            raise

    async def stop(self) -> None:
        """Requests that run may end; streams end."""
        # The daemon's own deadline comes a moment later.
        await self._server.stop(grace=self._agent.config.limits.shutdown_seconds * 0.8)
        self._socket.close()

    def status(self) -> dict[str, Any]:
        """Where it listens."""
        return {"socket": str(self._socket.path)}

    # What is asked.

    async def _status(self, _request: web.Request) -> web.Response:
        return web.json_response(self._daemon.status())

    async def _config(self, _request: web.Request) -> web.Response:
        return web.json_response(self._daemon.describe_config())

    async def _connections(self, request: web.Request) -> web.Response:
        return await _rows("connections", self._questions.connections, request)

    async def _sessions(self, request: web.Request) -> web.Response:
        providers = self._questions.sessions
        note = {} if providers else {"note": NO_SESSIONS}
        return await _rows("sessions", providers, request, **note)

    async def _moves(self, request: web.Request) -> web.StreamResponse:
        if not _number(request, "watch", default=0, most=1):
            return await _rows("moves", self._questions.moves, request)
        with self._questions.move_changes.watched() as changes:
            now = await ask(self._questions.moves)
            return await self._stream(request, {"event": "now", "moves": now.rows}, changes)

    async def _reload(self, _request: web.Request) -> web.Response:
        # Whoever asked may go away; half a reload there is not.
        changes = await asyncio.shield(asyncio.ensure_future(self._daemon.reload()))
        return web.json_response(changes.as_dict())

    # How it is answered.

    async def _stream(
        self, request: web.Request, first: Row, changes: AsyncIterator[Row]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        line = first
        following = asyncio.ensure_future(anext(changes))
        try:
            while True:
                # A reader that takes nothing does not hold the stream for ever.
                async with asyncio.timeout(self._agent.config.control.request_seconds):
                    await response.write(json.dumps(line).encode() + b"\n")
                done, _ = await asyncio.wait([following], timeout=HEARTBEAT)
                if not done:
                    line = {"event": "alive"}
                    continue
                line = following.result()
                following = asyncio.ensure_future(anext(changes))
        except (StopAsyncIteration, TimeoutError, ConnectionError):
            pass
        finally:
            following.cancel()
        return response

    async def _end_streams(self, _app: web.Application) -> None:
        self._questions.move_changes.close()

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Whatever happens becomes an answer, and is counted."""
        resource = request.match_info.route.resource
        route = resource.canonical if resource else "other"
        metrics, begin = self._agent.metrics, time.monotonic()
        try:
            response = await handler(request)
        except Exception as error:  # noqa: BLE001 - one request must not end the agent
            response = self._failure(request, error)
        metrics.requests.labels(route, response.status).inc()
        if isinstance(response, web.Response):
            metrics.request_seconds.labels(route).observe(time.monotonic() - begin)
        return response

    def _failure(self, request: web.Request, error: Exception) -> web.Response:
        match error:
            case web.HTTPNotFound() | web.HTTPMethodNotAllowed():
                status = error.status
                text = f"no such question: {request.method} {request.path}"
                to_do = "ask one of: " + ", ".join(self._routes(request))
            case web.HTTPRequestEntityTooLarge():
                status, text = error.status, "the request's body is too large"
                to_do = "send 64 KiB at most"
            case web.HTTPException():
                status, text = error.status, error.reason
                to_do = "see docs/agent.md"
            case UsageError():
                status, text, to_do = 422, str(error), "mend it, and ask again; nothing was changed"
            case RefusedError():
                status, text, to_do = 409, str(error), "nothing was changed"
            case MycoError():
                status, text, to_do = 500, str(error), "see the agent's log"
            case TimeoutError():
                status, text = 504, "it took longer than control.request_seconds"
                to_do = "ask again, for less, or allow more time"
            case _:
                log.error("%s %s failed", request.method, request.path, exc_info=error)
                status, text = 500, f"a fault in the agent: {type(error).__name__}"
                to_do = "see the agent's log, and report it"
        return web.json_response({"error": text, "to_do": to_do}, status=status)

    @staticmethod
    def _routes(request: web.Request) -> Sequence[str]:
        return sorted(
            f"{route.method} {route.resource.canonical}"
            for route in request.app.router.routes()
            if route.resource is not None and route.method != "HEAD"
        )

    @web.middleware
    async def _authorise(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The file's permissions keep others out; this does too, should somebody change those."""
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the connection is gone")
        caller = Caller.of(transport.get_extra_info("socket").fileno())
        if not caller.may_ask(self._group):
            log.warning("control: refused user %d (process %d)", caller.uid, caller.pid)
            group = self._agent.config.control.group
            allowed = f"root or a member of group {group}" if group else "root"
            return web.json_response(
                {
                    "error": f"user {caller.uid} may not ask this agent",
                    "to_do": f"ask as {allowed} (control.group says who else may)",
                },
                status=403,
            )
        return await handler(request)

    @web.middleware
    async def _in_time(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if "watch" in request.query:
            return await handler(request)
        async with asyncio.timeout(self._agent.config.control.request_seconds):
            return await handler(request)


async def _rows(
    name: str, providers: Sequence[Provider], request: web.Request, **more: str
) -> web.Response:
    limit = _number(request, "limit", default=ROWS, most=MOST_ROWS)
    found = await ask(providers)
    answer: dict[str, Any] = {name: found.rows[:limit], "total": len(found.rows), **more}
    if found.problems:
        answer["problems"] = found.problems
    return web.json_response(answer)


def _number(request: web.Request, name: str, *, default: int, most: int) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) > most:
        raise UsageError(f"?{name}=: a number from 0 to {most} is wanted, found {text!r}")
    return int(text)
