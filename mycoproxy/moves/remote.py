"""The other nodes' part of a handover, as the source's agent sees it: calls to their agents.

Names of methods, and what goes over the wire in each, are in ``methods``.
"""

from collections.abc import AsyncIterable, Collection, Mapping, Sequence
from typing import Any, Protocol

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.handover import Offer, Task, WentLive, plain
from mycoproxy.moves.methods import MOST_BYTES, Method
from mycoproxy.peering import Answer
from mycoproxy.peering.bodies import Outgoing
from mycoproxy.tcp import Segment


class Call(Protocol):
    """``mycoproxy.peering.Peers.call``."""

    async def __call__(
        self,
        node: str,
        method: str,
        args: Mapping[str, Any] | None = None,
        body: Outgoing = b"",
        *,
        deadline: float,
    ) -> Answer:
        """See there."""


class RemotePeer:
    """A peer node. ``name`` is the node's; ``move`` what the move is called on every node."""

    def __init__(self, call: Call, name: str, move: str, *, deadline: float) -> None:
        self.name = name
        self._call = call
        self._move = move
        self._deadline = deadline
        self._id = ""
        self._lost: list[Segment] = []

    async def prepare(self) -> int:
        """Have it make ready. Returns the life of its agent."""
        answer = await self._ask(Method.OPEN, {})
        return int(answer.result["life"])

    def begun(self, move_id: str) -> None:
        """From now on it is asked for this move."""
        self._id = move_id

    async def survey(
        self, connections: Sequence[FourTuple], addresses: Mapping[str, str], *, home: bool
    ) -> Sequence[Offer]:
        """See ``Peer``."""
        if not connections:
            return ()
        args = {"addresses": dict(addresses), "home": home}
        answer = await self._ask(Method.SURVEY, args, plain.names_to_bytes(connections))
        return plain.offers_from_bytes(await answer.body.read(MOST_BYTES))

    async def stage(self, tasks: Sequence[Task]) -> None:
        """See ``Peer``. The move has begun."""
        await self._ask(Method.STAGE, {"id": self._id}, plain.tasks_to_bytes(tasks))

    async def rehome(self, tasks: Sequence[Task], without: Collection[FourTuple] = ()) -> None:
        """See ``Peer``."""
        body = plain.rehoming_to_bytes(tasks, without)
        answer = await self._ask(Method.REHOME, {"id": self._id}, body)
        self._lost += plain.segments_from_bytes(await answer.body.read(MOST_BYTES))

    async def lost_segments(self) -> Sequence[Segment]:
        """See ``Peer``: what came with the answer to ``rehome``."""
        lost, self._lost = self._lost, []
        return lost

    async def undo(self) -> None:
        """Nothing: it does so when it hears the decision."""

    async def finish(self) -> None:
        """Nothing: it does so when it hears that the target lives."""

    async def _ask(self, method: Method, args: Mapping[str, Any], body: bytes = b"") -> Answer:
        return await self._call(
            self.name, method.value, {"move": self._move, **args}, body, deadline=self._deadline
        )


class RemoteTarget:
    """The target's node."""

    def __init__(self, call: Call, name: str, move: str, *, deadline: float) -> None:
        self.name = name
        self._call = call
        self._move = move
        self._deadline = deadline
        self._id = ""
        self.live = WentLive(0, ())

    def begun(self, move_id: str) -> None:
        """From now on it is asked for this move."""
        self._id = move_id

    async def establish(self, parts: AsyncIterable[bytes], addresses: Mapping[str, str]) -> None:
        """See ``Target``. ``parts``: what ``plain.ConnectionReader`` takes, to its end."""
        await self._ask(Method.ESTABLISH, {"addresses": dict(addresses)}, parts)

    async def deliver(self, lost: Sequence[Segment]) -> None:
        """What was lost meanwhile, once it is live; waits for that."""
        answer = await self._ask(Method.DELIVER, {}, plain.segments_to_bytes(lost))
        self.live = plain.went_live_from_plain(answer.result["live"])

    async def welcome(
        self,
        syns: Sequence[Segment],
        addresses: Mapping[str, str],
        via: Mapping[FourTuple, Endpoint],
    ) -> None:
        """See ``Target``; waits until it is live."""
        args = {"addresses": dict(addresses), "via": plain.via_to_plain(via)}
        await self._ask(Method.WELCOME, args, plain.segments_to_bytes(syns))

    async def _ask(self, method: Method, args: Mapping[str, Any], body: Outgoing = b"") -> Answer:
        return await self._call(
            self.name,
            method.value,
            {"move": self._move, "id": self._id, **args},
            body,
            deadline=self._deadline,
        )
