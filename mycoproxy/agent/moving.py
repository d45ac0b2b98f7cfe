"""The part that moves connections: the engine of ``mycoproxy.moves``, and its routes for drivers.

A driver is the process on this node that has the tasks (a mover). It opens a move, says how far
the tasks are, reads its orders as a stream of JSON lines, and answers each; see docs/agent.md.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from aiohttp import web
from pydantic import Field

from mycoproxy.agent.bodies import Body, checked, json_body
from mycoproxy.agent.config import Config
from mycoproxy.agent.logs import of_move
from mycoproxy.agent.move_history import MoveHistory
from mycoproxy.agent.move_metrics import MoveMetrics, Seen
from mycoproxy.agent.moved_connections import MovedConnections
from mycoproxy.agent.operating import Operating
from mycoproxy.agent.part import Agent, Part
from mycoproxy.agent.peer_links import PeerLinks
from mycoproxy.agent.questions import Rows
from mycoproxy.agreement import Journal, Moves
from mycoproxy.agreement import Limits as AgreementLimits
from mycoproxy.errors import UsageError
from mycoproxy.moves.driver import Answer, Channel
from mycoproxy.moves.engine import Engine
from mycoproxy.moves.limits import Limits
from mycoproxy.moves.namespaces import NodeNamespaces
from mycoproxy.moves.source import SourcePlace
from mycoproxy.moves.target import TargetPlace

log = logging.getLogger(__name__)

_HEARTBEAT = 10.0  # seconds between lines of a stream that has nothing to say
_LOOK = 0.2  # seconds between looks whether its reader is still there

MoveName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
Pid = Annotated[int, Field(ge=1, le=1 << 22)]


class OpenSource(Body):
    """The workload is on this node."""

    role: Literal["source"]
    move: MoveName
    netns: str
    init_pid: Pid
    target: str
    addresses: dict[str, str]
    follow: Annotated[float, Field(ge=0, le=60)] = 0.2


class OpenTarget(Body):
    """Its new place is on this node, and empty."""

    role: Literal["target"]
    move: MoveName
    source: str
    netns: str


class Restored(Body):
    """The copy is there and stands."""

    init_pid: Pid
    pids: Annotated[tuple[Pid, ...], Field(max_length=100_000)]


class Answered(Body):
    """An order was carried out, or was not."""

    answer: Answer
    error: Annotated[str, Field(max_length=2000)] = ""


class Moving(Part):
    """Moves from, to and by this node."""

    name: ClassVar[str] = "moves"

    def __init__(self, links: PeerLinks, connections: MovedConnections) -> None:
        self._links = links
        self._connections = connections
        self._namespaces: NodeNamespaces
        self._journal: Journal
        self._moves: Moves
        self._engine: Engine

    async def start(self, agent: Agent) -> None:
        """Take up what the journal holds. Raises ``JournalError``."""
        config = agent.config
        self._namespaces = NodeNamespaces(config.namespaces.node, config.namespaces.pods)
        self._journal = Journal(config.state.directory / "journal")
        self._moves = Moves(
            config.node.name,
            self._journal,
            limits=AgreementLimits(votes=config.limits.move_seconds),
            clock=asyncio.get_running_loop().time,
        )
        self._engine = Engine(
            self._moves,
            self._links.call,
            self._namespaces,
            known=self._links.addresses.all,
            behind=config.namespaces.behind,
            limits=_limits(config),
        )
        self._admit(config)
        self._links.handler = self._engine.handle
        self._connections.is_quiet = lambda: not len(self._engine.entries)
        metrics = MoveMetrics(agent.metrics.registry, self._seen)
        self._engine.acts.ended += [self._connections.ended, metrics.ended]
        operating = Operating(self._engine, config.state.directory, agent.questions.connections)
        agent.questions.is_draining = lambda: self._engine.admission.draining
        self._history = MoveHistory(
            self._moves, agent.questions.move_changes, name_of=self._engine.name_of
        )
        self._engine.acts.over.append(self._history.over)
        self._engine.acts.stepped.append(self._history.step)
        agent.questions.moves.append(self._rows)
        agent.questions.routes += [
            web.post("/v1/moves", self._open),
            web.post("/v1/moves/{move}/collect", self._collect),
            web.post("/v1/moves/{move}/restored", self._restored),
            web.post("/v1/moves/{move}/hand-over", self._hand_over),
            web.post("/v1/moves/{move}/abort", self._abort),
            web.get("/v1/moves/{move}/orders", self._orders),
            web.post("/v1/moves/{move}/orders/{number}", self._answered),
            *operating.routes,
        ]
        await self._engine.start()

    async def reload(self, config: Config) -> None:
        """Other limits for moves that begin from now on."""
        self._admit(config)

    def _admit(self, config: Config) -> None:
        self._engine.admission.most_moves = config.limits.moves
        self._engine.admission.most_connections = config.limits.connections

    async def stop(self) -> None:
        """The journal has what is under way: the next agent goes on with it."""
        await self._engine.stop()
        self._journal.close()
        await asyncio.to_thread(self._namespaces.close)

    def status(self) -> dict[str, Any]:
        """How many moves are open; namespaces with translations that are looked after."""
        return {
            "open": len(self._moves.status()),
            "looked_after": len(self._engine.caretaker.places),
            "translations_ended": self._engine.caretaker.removed,
        }

    def _seen(self) -> Seen:
        links = self._links.status()
        return Seen(
            under_way=Counter(one["role"] for one in self._engine.under_way()),
            refused=self._engine.admission.refused | Counter(agreement=self._engine.acts.refused),
            translations_ended=self._engine.caretaker.removed,
            journal_bytes=self._journal.size(),
            journal_failures=self._moves.unwritten,
            peers_known=links["known"],
            linked={"in": len(links.get("links_in", ())), "out": len(links.get("links_out", ()))},
            draining=self._engine.admission.draining,
        )

    async def _rows(self) -> Rows:
        return Rows(self._history.rows())

    # --- routes -----------------------------------------------------------------------------

    async def _open(self, request: web.Request) -> web.Response:
        data = await json_body(request)
        role = data.get("role")
        if role == "source":
            source = checked(OpenSource, data)
            with of_move(source.move):
                await self._engine.open_source(SourcePlace(**source.model_dump(exclude={"role"})))
        elif role == "target":
            target = checked(OpenTarget, data)
            with of_move(target.move):
                await self._engine.open_target(TargetPlace(**target.model_dump(exclude={"role"})))
        else:
            raise UsageError(f'role: "source" or "target" is wanted, found {role!r}')
        return web.json_response({})

    async def _collect(self, request: web.Request) -> web.Response:
        with of_move(name := request.match_info["move"]):
            await self._engine.collect(name)
        return web.json_response({})

    async def _restored(self, request: web.Request) -> web.Response:
        body = checked(Restored, await json_body(request))
        self._engine.restored(request.match_info["move"], body.init_pid, body.pids)
        return web.json_response({})

    async def _hand_over(self, request: web.Request) -> web.Response:
        with of_move(name := request.match_info["move"]):
            moved, report = await self._engine.hand_over(name)
        return web.json_response({"moved": moved, "report": report.to_plain()})

    async def _abort(self, request: web.Request) -> web.Response:
        with of_move(name := request.match_info["move"]):
            await self._engine.abort(name)
        return web.json_response({})

    async def _orders(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["move"]
        if not self._engine.knows(name):
            return web.json_response(
                {
                    "error": f"no move {name} here: it was never committed here, or all is done",
                    "to_do": "unless told otherwise before: the source goes on, the copy is killed",
                },
                status=404,
            )
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        await _stream(request, response, self._engine.channel(name), self._engine.knows, name)
        return response

    async def _answered(self, request: web.Request) -> web.Response:
        body = checked(Answered, await json_body(request))
        number = request.match_info["number"]
        if not number.isascii() or not number.isdigit():
            raise UsageError(f"the number of an order is wanted, found {number!r}")
        channel = self._engine.channel(request.match_info["move"])
        channel.answer(int(number), body.answer, body.error)
        return web.json_response({})


async def _stream(
    request: web.Request,
    response: web.StreamResponse,
    channel: Channel,
    knows: Callable[[str], bool],
    name: str,
) -> None:
    orders = channel.orders()
    following = asyncio.ensure_future(anext(orders))
    silent = 0.0
    try:
        # A reader that has gone says nothing: it is looked for. When the move is over it is told.
        while knows(name) and request.transport is not None and not request.transport.is_closing():
            done, _ = await asyncio.wait([following], timeout=_LOOK)
            silent += _LOOK
            line: dict[str, object] = {}
            if done:
                given = following.result()
                line = {"number": given.number, "order": given.order.value}
                following = asyncio.ensure_future(anext(orders))
            if done or silent >= _HEARTBEAT:
                silent = 0.0
                await response.write(json.dumps(line).encode() + b"\n")
    except (StopAsyncIteration, ConnectionError):
        pass
    finally:
        following.cancel()


def _limits(config: Config) -> Limits:
    return Limits(
        call=config.limits.handover_seconds,
        votes=config.limits.move_seconds,
        queues=config.limits.queue_memory,
    )
