"""The other nodes' part in the UDP flows of a move, as the source's agent sees it.

Best effort: an agent that does not answer in time is left out from then on, and it is said. What
goes over the wire is in ``methods``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from mycoproxy.addresses import FourTuple
from mycoproxy.errors import MycoError
from mycoproxy.handover import datagram_plain, plain
from mycoproxy.handover.datagram_routes import FlowOffer, FlowTask
from mycoproxy.handover.datagrams import DatagramEnd
from mycoproxy.moves.methods import Method
from mycoproxy.moves.remote import Call
from mycoproxy.peering import Answer
from mycoproxy.sockets.datagram import Datagram

# Seconds for an answer. The first is while the workload runs, the others while clients wait.
_SURVEY: Final = 10.0
_ASK: Final = 1.0
_LEAD: Final = 2.0
_DELIVER: Final = 2.0


class RemoteDatagramPeer:
    """See ``DatagramPeer``. ``name`` is the node's; ``move`` what the move is called there."""

    def __init__(self, call: Call, name: str, move: str) -> None:
        self.name = name
        self.failure = ""
        """Why it is left out, in words."""
        self._call = call
        self._move = move

    async def survey(
        self, addresses: Mapping[str, str], ports: Sequence[int], *, home: bool
    ) -> Sequence[FlowOffer]:
        """See ``DatagramPeer``. ``home`` is another node."""
        assert not home
        args = {"addresses": dict(addresses), "ports": list(ports)}
        return await self._offers(Method.DATAGRAM_SURVEY, args, b"", _SURVEY)

    async def ask(
        self, flows: Sequence[FourTuple], addresses: Mapping[str, str], *, home: bool
    ) -> Sequence[FlowOffer]:
        """See ``DatagramPeer``."""
        assert not home
        args = {"addresses": dict(addresses)}
        return await self._offers(Method.DATAGRAM_ASK, args, plain.names_to_bytes(flows), _ASK)

    async def lead(self, tasks: Sequence[FlowTask]) -> None:
        """See ``DatagramPeer``."""
        body = datagram_plain.tasks_to_bytes(tasks)
        await self._ask(Method.DATAGRAM_LEAD, {}, body, _LEAD)

    async def _offers(
        self, method: Method, args: Mapping[str, Any], body: bytes, deadline: float
    ) -> Sequence[FlowOffer]:
        data = await self._ask(method, args, body, deadline)
        if data is None:
            return ()
        try:
            return datagram_plain.offers_from_bytes(data)
        except MycoError as error:
            self._fail(error)
            return ()

    async def _ask(
        self, method: Method, args: Mapping[str, Any], body: bytes, deadline: float
    ) -> bytes | None:
        """The body of the answer; None if there is none."""
        if self.failure:
            return None
        try:
            answer = await self._call(
                self.name, method.value, {"move": self._move, **args}, body, deadline=deadline
            )
            return await answer.body.read()
        except (MycoError, OSError) as error:
            self._fail(error)
            return None

    def _fail(self, error: Exception) -> None:
        self.failure = f"UDP flows that pass {self.name} are left as they are: {error}"


class RemoteDatagramTarget:
    """See ``DatagramTarget``. ``remarks``: what it could not do, in words."""

    def __init__(self, call: Call, name: str, move: str) -> None:
        self.name = name
        self.remarks: dict[str, None] = {}
        self._call = call
        self._move = move
        self._expects = True

    async def restore(self, ends: Sequence[DatagramEnd]) -> Sequence[str]:
        """See ``DatagramTarget``; it keeps them until its connections live. Then the tasks wait a
        little for flows to be led; remarks come with the answer to ``deliver``."""
        body = datagram_plain.ends_to_bytes(ends)
        await self._ask(Method.DATAGRAM_RESTORE, body, _DELIVER)
        return ()

    async def deliver(self, datagrams: Sequence[Datagram]) -> None:
        """See ``DatagramTarget``. The first one says also that the flows are led."""
        if not datagrams and not self._expects:
            return
        self._expects = False
        for part in datagram_plain.datagrams_to_parts(datagrams):
            answer = await self._ask(Method.DATAGRAM_DELIVER, part, _DELIVER)
            remarks = datagram_plain.remarks_from_plain(answer.result.get("remarks"))
            self.remarks |= dict.fromkeys(remarks)

    async def _ask(self, method: Method, body: bytes, deadline: float) -> Answer:
        return await self._call(
            self.name, method.value, {"move": self._move}, body, deadline=deadline
        )
