"""An aiohttp application on a socket that is bound already, within bounds whoever connects.

So many connections are open at most, each has to say what it wants within some seconds, and when
the server stops, requests that run may end.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

CONNECTIONS: Final = 64
"""Open at once. One more is closed as soon as it is there."""

FIRST_REQUEST: Final = 10.0
"""Seconds from the connection to the end of its first request's header."""

KEPT: Final = 15.0
"""Seconds from one request to the end of the next one's header."""

LARGEST_BODY: Final = 64 * 1024


def application() -> web.Application:
    """An application that takes small requests only."""
    return web.Application(client_max_size=LARGEST_BODY)


class HttpServer:
    """Serves one application. ``socket_`` belongs to the server from the start on."""

    def __init__(self, app: web.Application) -> None:
        # Connections that have asked nothing yet; each leaves when it does, or is checked.
        self._silent: set[web.RequestHandler] = set()
        app.middlewares.insert(0, self._heard)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            keepalive_timeout=KEPT,
            lingering_time=1.0,
        )
        self._server: asyncio.Server | None = None

    async def start(self, bound: socket.socket) -> None:
        """Listen on a socket that is bound."""
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        if bound.family == socket.AF_UNIX:
            self._server = await loop.create_unix_server(self._connection, sock=bound)
        else:
            self._server = await loop.create_server(self._connection, sock=bound)

    async def stop(self, grace: float) -> None:
        """Take nothing new; requests that run may end within ``grace`` seconds."""
        if self._server is not None:
            self._server.close()
            self._server = None
        # The application's on_shutdown ends what would never end by itself.
        self._runner._shutdown_timeout = grace
        await self._runner.cleanup()

    def _connection(self) -> asyncio.Protocol:
        server = self._runner.server
        if server is None or len(server.connections) >= CONNECTIONS:
            return _Refusal()
        protocol = server()
        self._silent.add(protocol)
        asyncio.get_running_loop().call_later(FIRST_REQUEST, self._check, protocol)
        return protocol

    def _check(self, protocol: web.RequestHandler) -> None:
        if protocol in self._silent:
            self._silent.discard(protocol)
            if protocol.transport is not None:
                protocol.transport.abort()

    @web.middleware
    async def _heard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._silent.discard(request.protocol)
        return await handler(request)


class _Refusal(asyncio.Protocol):
    """Closes the connection that it is made for."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()
