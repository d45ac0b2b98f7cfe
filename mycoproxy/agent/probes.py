"""The part that answers Prometheus and the kubelet: /metrics, /healthz, /readyz."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from aiohttp import web

from mycoproxy.agent.config_types import Listen
from mycoproxy.agent.http_server import HttpServer, application
from mycoproxy.agent.metrics import CONTENT_TYPE
from mycoproxy.agent.part import Agent, Part
from mycoproxy.errors import MycoError

Reasons = Callable[[], Sequence[tuple[str, str]]]
"""Part and reason of everything that keeps the agent from being ready."""


class Probes(Part):
    """The first part: whoever waits for the others can ask what is missing."""

    name: ClassVar[str] = "metrics"

    def __init__(self, reasons: Reasons) -> None:
        self._reasons = reasons
        self._listening: Listen | None = None

    async def start(self, agent: Agent) -> None:
        """Listen. ``MycoError`` if the port is taken."""
        self._agent = agent
        wanted = agent.config.metrics.listen
        app = application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        self._server = HttpServer(app)
        family = socket.AF_INET6 if ":" in wanted.address else socket.AF_INET
        try:
            bound = socket.create_server(wanted, family=family)
        except OSError as error:
            raise MycoError(
                f"metrics.listen: cannot listen on {wanted}: {error.strerror}; end what listens "
                f"there, or set another address"
            ) from error
        self._listening = Listen(*bound.getsockname()[:2])
        await self._server.start(bound)

    async def stop(self) -> None:
        """A scrape takes milliseconds."""
        await self._server.stop(grace=1.0)

    def status(self) -> dict[str, Any]:
        """Where it listens."""
        return {"listen": str(self._listening)} if self._listening else {}

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._agent.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.json_response({"healthy": True})

    async def _readyz(self, _request: web.Request) -> web.Response:
        reasons = [{"part": part, "reason": reason} for part, reason in self._reasons()]
        return web.json_response(
            {"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200
        )
