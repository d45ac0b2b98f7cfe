"""What a person asks of a node that is to go away, or of moves whose other nodes are gone for ever.

Draining is this agent's business only: no workload comes here any more, and the answer says what
still hangs on this node. Taking the workloads away is their mover's. It outlives the agent: a file
in ``state.directory``.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from aiohttp import web
from pydantic import Field

from mycoproxy.agent.bodies import Body, checked, json_body
from mycoproxy.agent.logs import of_move
from mycoproxy.agent.questions import Provider, Row, ask
from mycoproxy.errors import MycoError
from mycoproxy.moves.engine import Engine

log = logging.getLogger(__name__)

ROWS: Final = 1000
"""Of connections in an answer; all are counted."""


class Resolve(Body):
    """What a participant in doubt is to take for decided."""

    outcome: Literal["live", "undo"]


class Gone(Body):
    """A node that never comes back."""

    node: Annotated[str, Field(min_length=1, max_length=253)]


class Operating:
    """The routes. ``connections``: lists those that are re-homed here."""

    def __init__(self, engine: Engine, directory: Path, connections: list[Provider]) -> None:
        self._engine = engine
        self._file = directory / "draining"
        self._connections = connections
        engine.admission.draining = self._file.exists()
        if engine.admission.draining:
            log.warning("this node is draining; mycoproxy drain --undo ends it")
        self.routes = [
            web.get("/v1/drain", self._left),
            web.post("/v1/drain", self._drain),
            web.post("/v1/moves/{move}/resolve", self._resolve),
            web.post("/v1/moves/{move}/gone", self._gone),
        ]

    async def _left(self, _request: web.Request) -> web.Response:
        return web.json_response(await self._answer())

    async def _drain(self, request: web.Request) -> web.Response:
        undo = request.query.get("undo", "0") != "0"
        try:
            if undo:
                self._file.unlink(missing_ok=True)
            else:
                self._file.touch(mode=0o600)
        except OSError as error:
            raise MycoError(f"state.directory: {self._file}: {error.strerror}") from error
        if self._engine.admission.draining == undo:
            self._engine.admission.draining = not undo
            log.warning("draining was ended" if undo else "draining: no move may come here")
        return web.json_response(await self._answer())

    async def _answer(self) -> Row:
        """What hangs on this node: moves, and connections that pass through it."""
        moves = self._engine.under_way()
        found = await ask(self._connections)
        through = [row for row in found.rows if row.get("through")]
        answer: dict[str, Any] = {
            "draining": self._engine.admission.draining,
            "left": {"moves": len(moves), "connections": len(through)},
            "moves": moves,
            "connections": through[:ROWS],
        }
        return {**answer, "problems": found.problems} if found.problems else answer

    async def _resolve(self, request: web.Request) -> web.Response:
        body = checked(Resolve, await json_body(request))
        with of_move(move := request.match_info["move"]):
            self._engine.resolve(move, live=body.outcome == "live")
        return web.json_response({"move": move, "outcome": body.outcome})

    async def _gone(self, request: web.Request) -> web.Response:
        body = checked(Gone, await json_body(request))
        with of_move(move := request.match_info["move"]):
            self._engine.gone(move, body.node)
        return web.json_response({"move": move, "gone": body.node})
