"""The connections of a move, moved by the agents of its two nodes.

The mover has the tasks; the agents have the connections, and the last word: the mover is a driver
of both (docs/agent.md). ``AgentMove`` holds the two control sockets and what was ordered;
``AgentSource``, ``AgentTarget``, ``AgentHandover`` and ``AgentDatagrams`` stand where in one
process ``LocalSource``, ``LocalTarget``, ``Handover`` and ``LocalDatagrams`` do.
"""

import asyncio
import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import aiohttp

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.errors import MycoError
from mycoproxy.handover import HandoverError, Known, Rehomed
from mycoproxy.netfilter.paths import Path as Way

_AGAIN: Final = 0.1  # seconds between attempts to reach an agent that went away
_SETTLE: Final = 30.0  # seconds that the agents get to come to an end once the tasks are settled


@dataclass(frozen=True, slots=True)
class MoveOf:
    """What both agents are told."""

    move: str
    source: str
    target: str
    source_netns: Path
    target_netns: Path
    init_pid: int
    addresses: Mapping[str, str]
    follow: float


class AgentClient:
    """One agent's control socket, and the orders that it gives for one move."""

    def __init__(self, socket: Path, move: str) -> None:
        self._socket = socket
        self._move = move
        self._session: aiohttp.ClientSession | None = None
        self._reading: asyncio.Task[None] | None = None
        self._given: dict[str, int] = {}
        self._changed = asyncio.Condition()
        self.unknown = False
        """The agent knows nothing of the move any more."""

    async def post(self, path: str, **body: object) -> dict[str, Any]:
        """Ask. Raises ``MycoError``: refused, or nobody answers."""
        try:
            async with self._http().post(f"http://agent/v1/moves{path}", json=body) as response:
                answer: dict[str, Any] = await response.json()
        except (aiohttp.ClientError, OSError) as error:
            raise MycoError(f"the agent at {self._socket} does not answer: {error}") from error
        if response.status != 200:
            raise MycoError(f"the agent at {self._socket}: {answer.get('error')}")
        return answer

    def follow_orders(self) -> None:
        """Begin to read them."""
        self._reading = asyncio.create_task(self._read())

    @property
    def follows(self) -> bool:
        """Whether the agent knows of the move, so that it may have orders."""
        return self._reading is not None

    async def order(self, *wanted: str) -> str:
        """Wait for one of these orders; "" if the agent knows nothing of the move any more."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: self.unknown or any(name in self._given for name in wanted)
            )
            return next((name for name in wanted if name in self._given), "")

    async def answer(self, order: str, answer: str) -> None:
        """Say how an order went; nothing if it is not open.

        An agent that went away meanwhile asks again when it comes back.
        """
        number = self._given.pop(order, None)
        if number is not None:
            with contextlib.suppress(MycoError):
                await self.post(f"/{self._move}/orders/{number}", answer=answer, error="")

    async def answer_all(self, answers: Mapping[str, str]) -> None:
        """Answer these orders as they come, until the agent knows nothing of the move any more."""
        while order := await self.order(*answers):
            await self.answer(order, answers[order])

    async def close(self) -> None:
        """End reading."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})
        if self._session is not None:
            await self._session.close()

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(path=str(self._socket)),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5.0),
            )
        return self._session

    async def _read(self) -> None:
        url = f"http://agent/v1/moves/{self._move}/orders?watch=1"
        while not self.unknown:
            try:
                async with self._http().get(url) as response:
                    if response.status == 404:
                        self.unknown = True
                    else:
                        self._given.clear()  # of an agent's life before
                        await self._read_lines(response)
            except (aiohttp.ClientError, OSError, ValueError):
                await asyncio.sleep(_AGAIN)
            await self._tell()

    async def _read_lines(self, response: aiohttp.ClientResponse) -> None:
        async for line in response.content:
            order = json.loads(line)
            if "order" in order:
                self._given[order["order"]] = order["number"]
                await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class AgentMove:
    """A move between two agents."""

    def __init__(self, what: MoveOf, source: Path, target: Path) -> None:
        self.what = what
        self.source = AgentClient(source, what.move)
        self.target = AgentClient(target, what.move)
        self.handing: asyncio.Task[dict[str, Any]] | None = None
        self.telling: asyncio.Task[dict[str, Any]] | None = None
        self._running: asyncio.Task[None] | None = None
        self.report: dict[str, Any] = {}

    async def open(self) -> None:
        """Both agents make ready, and all the others that they know. Raises ``MycoError``."""
        what = self.what
        await self.target.post(
            "", role="target", move=what.move, source=what.source, netns=str(what.target_netns)
        )
        self.target.follow_orders()
        await self.source.post(
            "",
            role="source",
            move=what.move,
            netns=str(what.source_netns),
            init_pid=what.init_pid,
            target=what.target,
            addresses=dict(what.addresses),
            follow=what.follow,
        )
        self.source.follow_orders()

    def hand_over(self) -> None:
        """Begin. What comes of it is ordered; the report comes when all is over."""
        path = f"/{self.what.move}/hand-over?watch=1"
        self.handing = asyncio.create_task(self.source.post(path))

    async def told(self) -> None:
        """Until the target's agent knows of the copy. Raises ``MycoError``."""
        if self.telling is not None:
            await self.telling

    def runs(self) -> None:
        """The copy runs, whoever asks from now on."""
        self._running = asyncio.create_task(
            self.target.answer_all({"resume": "running", "run": "done"})
        )

    async def close(self) -> None:
        """Say what has become of the tasks, and wait until the agents are done with them."""
        settling = [asyncio.create_task(self.source.answer_all({"thaw": "done", "remove": "done"}))]
        if self._running is None:
            dead = {"kill": "done", "resume": "dead"}
            settling.append(asyncio.create_task(self.target.answer_all(dead)))
        else:
            settling.append(self._running)
        try:
            async with asyncio.timeout(_SETTLE):
                if self.handing is not None:
                    with contextlib.suppress(MycoError):
                        self.report = (await self.handing)["report"]
                elif self.source.follows:
                    with contextlib.suppress(MycoError):  # given up already
                        await self.source.post(f"/{self.what.move}/abort")
                if self.source.follows:
                    await asyncio.wait(settling)
        except TimeoutError:
            pass  # the agents have it in their journals, and end it when they can
        finally:
            for task in (*settling, *([self.handing] if self.handing else ())):
                task.cancel()
            await asyncio.gather(*settling, return_exceptions=True)
            await self.source.close()
            await self.target.close()


class AgentSource:
    """The source's node. See ``LocalSource``."""

    def __init__(self, move: AgentMove) -> None:
        self._move = move

    async def prepare(self) -> None:
        """Both agents make ready."""
        await self._move.open()

    async def collect(self) -> Sequence[Known]:
        """The tasks stand. The agent keeps the names to itself."""
        await self._move.source.post(f"/{self._move.what.move}/collect")
        return ()

    async def silence(self) -> None:
        """The copy runs: the agents go on from there."""
        self._move.runs()

    async def close(self) -> None:
        """The tasks are settled."""
        await self._move.close()


class AgentTarget:
    """The target's node. See ``LocalTarget``."""

    def __init__(self, move: AgentMove) -> None:
        self._move = move

    async def prepare(self) -> None:
        """The source's part does it for both, in the right order."""

    def collect(self, init_pid: int, pids: Iterable[int]) -> None:
        """The copy is there and stands; does not wait."""
        self._move.telling = asyncio.create_task(
            self._move.target.post(
                f"/{self._move.what.move}/restored", init_pid=init_pid, pids=list(pids)
            )
        )

    async def close(self) -> None:
        """Nothing is open here."""


class AgentDatagrams:
    """UDP flows: the agents move them as well, and say in the end what came of it. See
    ``LocalDatagrams``."""

    def __init__(self, move: AgentMove) -> None:
        self._move = move

    @property
    def remarks(self) -> tuple[str, ...]:
        """What could not be kept, and what went wrong, once all is over."""
        return tuple(self._said().get("remarks", ()))

    @property
    def flows(self) -> int:
        """How many there were."""
        return int(self._said().get("flows", 0))

    @property
    def delivered(self) -> int:
        """How many datagrams were passed on to the new place."""
        return int(self._said().get("passed_on", 0))

    async def prepare(self) -> None:
        """The agents do it, as all that follows."""

    async def survey(self) -> None:
        """Nothing."""

    async def collect(self) -> None:
        """Nothing."""

    async def restore(self, init_pid: int, pids: Iterable[int]) -> None:
        """Nothing."""

    async def deliver(self) -> None:
        """Nothing."""

    async def follow(self, ended: asyncio.Event) -> None:
        """Nothing."""

    async def close(self) -> None:
        """Nothing."""

    def _said(self) -> Mapping[str, Any]:
        said: Mapping[str, Any] = self._move.report.get("datagrams", {})
        return said


class AgentHandover:
    """The handover as the agents do it. See ``Handover``."""

    def __init__(self, move: AgentMove) -> None:
        self._move = move

    @property
    def count(self) -> int:
        """How many connections there were, once all is over."""
        return int(self._move.report.get("connections", 0))

    @property
    def rehomed(self) -> list[Rehomed]:
        """What each node did for each connection."""
        return [
            Rehomed(one["peer"], _name(one["name"]), Way(one["path"]))
            for one in self._move.report.get("rehomed", ())
        ]

    @property
    def replayed(self) -> int:
        """Segments that were lost meanwhile, and delivered."""
        return int(self._move.report.get("replayed", 0))

    @property
    def welcomed(self) -> int:
        """New connections that were passed on."""
        return int(self._move.report.get("welcomed", 0))

    @property
    def remarks(self) -> tuple[str, ...]:
        """What could not be kept, in words."""
        return tuple(self._move.report.get("remarks", ()))

    @property
    def steps_ms(self) -> dict[str, float]:
        """How long each step took, in milliseconds."""
        marks = list(self._move.report.get("marks", {}).items())
        return {step: (end - begin) * 1e3 for (_, begin), (step, end) in pairwise(marks)}

    async def survey(self, names: Sequence[Known]) -> None:
        """The agent has done so."""

    async def ready(self) -> None:
        """Returns when all agents have agreed. Raises ``HandoverError``: they gave up."""
        await self._move.told()
        self._move.hand_over()
        resumed = asyncio.create_task(self._move.target.order("resume", "kill"))
        given_up = asyncio.create_task(self._move.source.order("thaw"))
        try:
            await asyncio.wait({resumed, given_up}, return_when=asyncio.FIRST_COMPLETED)
            if resumed.done() and resumed.result() == "resume":
                return
        finally:
            resumed.cancel()
            given_up.cancel()
        raise HandoverError("the agents gave the handover up; see their logs")

    async def commit(self) -> None:
        """They have, when they are ready."""

    async def go_live(self) -> None:
        """The copy is past all that can fail. Returns when its tasks may run."""
        target = self._move.target
        # A target's agent that was restarted asks again from the beginning.
        while (order := await target.order("run", "resume", "kill")) == "resume":
            await target.answer("resume", "done")
        if order != "run":
            raise HandoverError("the target's agent did not let the copy run")

    async def follow(self) -> int:
        """The source's agent does it."""
        return 0

    async def finish(self) -> None:
        """Until the source may be removed."""
        await self._move.source.order("remove")

    async def undo(self) -> None:
        """The copy is dead. Returns when the source's tasks may go on."""
        move = self._move
        await move.target.answer("resume", "dead")
        aborting = asyncio.create_task(move.source.post(f"/{move.what.move}/abort?watch=1"))
        thawing = asyncio.create_task(move.source.order("thaw"))
        killing = asyncio.create_task(move.target.order("kill"))
        try:
            while not thawing.done():
                await asyncio.wait(
                    {one for one in (aborting, thawing, killing) if not one.done()},
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if killing.done():
                    await move.target.answer("kill", "done")
                if aborting.done() and aborting.exception() is None:
                    return
        finally:
            for task in (aborting, thawing, killing):
                task.cancel()
            await asyncio.gather(aborting, thawing, killing, return_exceptions=True)


def _name(plain: Sequence[Any]) -> FourTuple:
    address, port, other, other_port = plain
    return FourTuple(Endpoint(address, port), Endpoint(other, other_port))
