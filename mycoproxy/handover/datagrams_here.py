"""The UDP flows of a move inside one machine: never a reason for the move to fail.

What goes wrong is told in ``remarks``, like what cannot be kept.
"""

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from contextlib import suppress

from mycoproxy.handover.datagram_ends import LocalDatagramSource, LocalDatagramTarget
from mycoproxy.handover.datagram_peer import LocalDatagramPeer
from mycoproxy.handover.datagrams import Datagrams
from mycoproxy.handover.leading import Nodes

_FOLLOW_SECONDS = 0.005  # between looks at what has come to the old place


class LocalDatagrams:
    """``prepare`` while the workload runs; then as ``Datagrams``; ``close`` in the end."""

    def __init__(
        self,
        source: LocalDatagramSource,
        target: LocalDatagramTarget,
        peers: Sequence[LocalDatagramPeer],
        *,
        addresses: Mapping[str, str],
        nodes: Nodes,
    ) -> None:
        self._source = source
        self._target = target
        self._peers = peers
        self._all = Datagrams(source, target, peers, addresses=addresses, nodes=nodes)
        self._failures: dict[str, None] = {}

    @property
    def remarks(self) -> tuple[str, ...]:
        """What could not be kept, and what went wrong."""
        return *self._all.remarks, *self._failures

    @property
    def flows(self) -> int:
        """How many there were."""
        return self._all.flows

    @property
    def delivered(self) -> int:
        """How many datagrams were passed on to the new place."""
        return self._all.delivered

    async def prepare(self) -> None:
        """Open what is needed."""
        for peer in self._peers:
            await self._tried(peer.prepare())

    async def survey(self) -> None:
        """See ``Datagrams``."""
        await self._tried(self._all.survey())

    async def collect(self) -> None:
        """See ``Datagrams``."""
        await self._tried(self._all.collect())

    async def restore(self, init_pid: int, pids: Iterable[int]) -> None:
        """See ``Datagrams``. ``init_pid`` and ``pids``: see ``LocalTarget.collect``."""
        self._target.found(init_pid, pids)
        await self._tried(self._all.restore())

    async def deliver(self) -> None:
        """See ``Datagrams``."""
        await self._tried(self._all.deliver())

    async def follow(self, ended: asyncio.Event) -> None:
        """Once the workload runs: lead what has begun meanwhile, and pass on what comes to the old
        place, until ``ended``."""
        await self.survey()
        while not ended.is_set():
            await self.deliver()
            with suppress(TimeoutError):
                async with asyncio.timeout(_FOLLOW_SECONDS):
                    await ended.wait()
        await self.deliver()
        await self.count_drops()

    async def count_drops(self) -> None:
        """See ``Datagrams``."""
        await self._tried(self._all.count_drops())

    async def close(self) -> None:
        """Close it again."""
        await self._source.close()
        for peer in self._peers:
            await peer.close()

    async def _tried(self, step: Awaitable[object]) -> None:
        try:
            await step
        except Exception as error:  # noqa: BLE001 - of whatever kind, it must not cost the move
            self._failures[f"UDP flows: {error}"] = None
