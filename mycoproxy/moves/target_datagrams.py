"""The target's part in the UDP flows of a move: its sockets, and a moment before its tasks run.

When all connections have been let live, and before the tasks are, the source leads the flows, and
passes on what waits. A workload that speaks first then does so by a path that is
led already. Whoever is slow is not waited for: the tasks run after ``_PATIENCE``.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Final

from mycoproxy.errors import MycoError
from mycoproxy.handover.datagram_ends import LocalDatagramTarget
from mycoproxy.handover.datagrams import DatagramEnd
from mycoproxy.namespaces import NamespaceWorker
from mycoproxy.sockets.datagram import Datagram

log = logging.getLogger(__name__)

_PATIENCE: Final = 0.05
"""Seconds. Some milliseconds are needed, and one more for each ten flows."""


class TargetDatagrams:
    """``worker`` is in the workload's new namespace."""

    def __init__(self, worker: NamespaceWorker) -> None:
        self._local = LocalDatagramTarget(worker)
        self._ends: Sequence[DatagramEnd] = ()
        self._released = asyncio.Event()
        self._passed_on = asyncio.Event()
        self._given_up = False
        self._remarks: list[str] = []

    @property
    def is_live(self) -> bool:
        """Have the connections been let live here?"""
        return self._released.is_set() and not self._given_up

    def expect(self, ends: Sequence[DatagramEnd]) -> None:
        """The copy is to have these sockets."""
        self._ends = ends

    async def before_tasks_run(self, init_pid: int, pids: Iterable[int]) -> None:
        """The connections live: make the sockets what they were, and give the source a moment.

        Nothing at all for a workload without UDP sockets. Raises nothing.
        """
        self._released.set()
        if not self._ends:
            return
        self._local.found(init_pid, pids)
        try:
            async with asyncio.timeout(_PATIENCE):
                await asyncio.gather(self._restore(), self._passed_on.wait())
        except TimeoutError:
            log.info("UDP flows are not all led yet: the tasks run without")

    def run(self) -> None:
        """The tasks have been let run before, perhaps by another process."""
        self._released.set()

    async def deliver(self, datagrams: Sequence[Datagram]) -> list[str]:
        """See ``DatagramTarget``; waits until it is live. Returns what could not be done for the
        sockets, in words. Raises ``MycoError``, ``OSError``."""
        await self._wait_live()
        try:
            await self._local.deliver(datagrams)
        finally:
            self._passed_on.set()
        return self._remarks

    def close(self) -> None:
        """The move has ended: whoever waits is told."""
        self._given_up = True
        self._released.set()

    async def _wait_live(self) -> None:
        await self._released.wait()
        if self._given_up:
            raise MycoError("the move has ended")

    async def _restore(self) -> None:
        try:
            self._remarks += await self._local.restore(self._ends)
        except (MycoError, OSError) as error:
            self._remarks.append(f"UDP sockets: their options could not be set again: {error}")
