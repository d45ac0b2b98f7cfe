"""The UDP flows of a move, driven from the node that the workload leaves.

One task beside the handover of connections, which tells it how far it is and never waits for it,
but at the very end. So nobody who is slow, and nothing that fails in here, costs connections
anything; and between the hold and the release of them it has nothing to do. What it does when is
in ``mycoproxy.handover.datagrams``.

Nothing of it is written down: a source whose agent was restarted does without.
"""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from mycoproxy.handover import Nodes
from mycoproxy.handover.datagram_ends import LocalDatagramSource
from mycoproxy.handover.datagrams import Datagrams
from mycoproxy.moves.node_datagrams import NodeDatagrams
from mycoproxy.moves.remote_datagrams import RemoteDatagramPeer, RemoteDatagramTarget

_FOLLOW: Final = 0.005  # seconds between looks at what has come to the old place
_FOLLOW_LATER: Final = 0.1  # when it has been there for long: the driver does not remove it
_LONG: Final = 5.0
_PATIENCE: Final = 3.0  # seconds that the workload's freeze waits for the first survey
_LAST: Final = 2.0  # seconds for what is left when the tasks of the source are gone


class SourceDatagrams:
    """``open``, ``stands``, ``lives`` as the move comes to these points; ``end`` when the source is
    removed; ``close``."""

    def __init__(
        self,
        source: LocalDatagramSource,
        target: RemoteDatagramTarget,
        home: NodeDatagrams,
        peers: Sequence[RemoteDatagramPeer],
        *,
        addresses: Mapping[str, str],
    ) -> None:
        self._source, self._target = source, target
        self._home, self._peers = home, tuple(peers)
        nodes = Nodes(home.name, target.name)
        self._all = Datagrams(source, target, (home, *peers), addresses=addresses, nodes=nodes)
        self._failures: dict[str, None] = {}
        self._surveyed, self._stands, self._lives, self._ends = (asyncio.Event() for _ in range(4))
        self._task: asyncio.Task[None] | None = None

    @property
    def home(self) -> NodeDatagrams:
        """This node's own part."""
        return self._home

    def report(self) -> dict[str, Any]:
        """How many flows there were, how many datagrams were passed on, and what was not kept."""
        remarks = [
            *self._all.remarks,
            *self._target.remarks,
            *(peer.failure for peer in self._peers if peer.failure),
            *self._failures,
        ]
        return {"flows": self._all.flows, "passed_on": self._all.delivered, "remarks": remarks}

    async def open(self) -> None:
        """All nodes are ready, and the workload runs: it is found out what flows there are.

        Returns when that is done, or takes too long; then it goes on until the tasks stand.
        """
        self._task = asyncio.get_running_loop().create_task(self._run())
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await self._surveyed.wait()

    def stands(self) -> None:
        """The tasks stand, and the connections have been looked at."""
        self._stands.set()

    def lives(self) -> None:
        """The connections are live on the target, and what they had lost is delivered."""
        self._lives.set()

    async def end(self) -> None:
        """The source is removed: nothing comes to it any more."""
        self._lives.set()
        self._ends.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=_LAST)

    async def close(self) -> None:
        """Stop, wherever it is. What is led stays led."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await self._source.close()
        await self._home.close()

    async def _run(self) -> None:
        if not await self._until(self._stands, self._all.survey()):
            self._failures["UDP flows: not all were found in time"] = None
        self._surveyed.set()
        await self._stands.wait()
        await self._tried(self._all.collect())
        if not self._all.has_sockets:
            return
        await self._until(self._lives, self._all.restore())
        await self._lives.wait()
        await self._tried(self._all.deliver())
        await self._tried(self._all.survey())
        await self._follow()
        await self._tried(self._all.deliver())
        await self._tried(self._all.count_drops())

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        while not self._ends.is_set():
            await self._tried(self._all.deliver())
            seconds = _FOLLOW if loop.time() < begin + _LONG else _FOLLOW_LATER
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._ends.wait()

    async def _until(self, event: asyncio.Event, step: Coroutine[Any, Any, None]) -> bool:
        """Do it, but no longer than until ``event``. Returns whether it was done."""
        doing = asyncio.ensure_future(self._tried(step))
        waiting = asyncio.ensure_future(event.wait())
        try:
            await asyncio.wait({doing, waiting}, return_when=asyncio.FIRST_COMPLETED)
            return doing.done() and doing.result()
        finally:
            doing.cancel()
            waiting.cancel()
            await asyncio.wait({doing, waiting})

    async def _tried(self, step: Coroutine[Any, Any, object]) -> bool:
        try:
            await step
        except Exception as error:  # noqa: BLE001 - of whatever kind, it must not cost the move
            self._failures[f"UDP flows: {error}"] = None
            return False
        return True
