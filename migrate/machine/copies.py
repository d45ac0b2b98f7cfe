"""The copy: the target's restore, from a runc that waits at the gate to tasks that run."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TypeVar

from migrate.machine.places import Places
from migrate.machine.plan import Side
from migrate.runtime.cgroup import Cgroup
from migrate.runtime.criu_rpc import Option, OptionValue, RequestType, Response
from migrate.runtime.gate import Gate
from migrate.runtime.runc import Job, Runc, RuncError
from migrate.runtime.waiting import first_of
from mycoproxy.check.criu import CriuBinary
from mycoproxy.errors import MycoError

T = TypeVar("T")


class CopyError(MycoError):
    """The copy did not come to be."""


class RestoringCopy:
    """One restore. ``prepare``, ``restore``, ``resume``, ``let_run``, ``running``; or ``kill``."""

    def __init__(self, side: Side, places: Places, criu: CriuBinary) -> None:
        self._side = side
        self._places = places
        self._runc = Runc(side.runc_root)
        self._gate = Gate(places.restore_gate, criu, netns=side.pod_netns)
        self._job: Job | None = None
        self._cgroup: Cgroup | None = None
        self._going: asyncio.Task[Response] | None = None
        loop = asyncio.get_running_loop()
        self._restored: asyncio.Future[int] = loop.create_future()
        self._go: asyncio.Future[bool] = loop.create_future()
        self._resuming: asyncio.Future[None] = loop.create_future()
        self._may_run: asyncio.Future[None] = loop.create_future()
        self._resumed_at = 0.0
        self.ran = False

    async def prepare(self) -> None:
        """Bring runc and CRIU up to the point where only the images are missing."""
        self._job = await self._runc.restore(
            self._side.container_id,
            bundle=self._side.bundle,
            images=self._places.target_images,
            environment=self._gate.environment,
        )
        await first_of(
            self._gate.wait_for_request(RequestType.RESTORE), self._job.fail_when_ended()
        )
        assert self._gate.criu_pid is not None
        # runc has put CRIU into the container's cgroup, and the tasks will be born there.
        self._cgroup = Cgroup(self._gate.criu_pid)

    async def restore(self, options: Mapping[Option, OptionValue]) -> int:
        """Restore up to ``post-restore``: everything is there, nothing runs.

        Returns the pid of the copy's init. Raises ``MycoError``.
        """
        self._going = asyncio.create_task(self._gate.go(options, self._on_notify))
        return await first_of(self._restored, self._failure())

    def pids(self) -> list[int]:
        """The processes in the copy's cgroup: its tasks, and CRIU."""
        return [] if self._cgroup is None else self._cgroup.pids()

    async def resume(self) -> None:
        """Let CRIU go on to ``pre-resume``: past all that can fail, nothing has run yet."""
        self._go.set_result(True)
        await first_of(self._resuming, self._failure())

    def let_run(self) -> None:
        """Let the tasks run."""
        self.ran = True
        self._resumed_at = time.monotonic()  # until CRIU says so itself, a moment later
        if not self._may_run.done():
            self._may_run.set_result(None)

    async def running(self) -> None:
        """Wait until they do, and runc has ended. Raises ``MycoError``."""
        assert self._going is not None and self._job is not None
        await self._going
        await self._job.wait(timeout=10.0)

    @property
    def resumed_at(self) -> float:
        """When the tasks began to run (``CLOCK_MONOTONIC``, seconds): when CRIU said so."""
        return self._resumed_at

    async def kill(self, *, timeout: float) -> None:
        """Make sure that there is no copy. Raises ``MycoError`` if that cannot be made sure.

        May be called again.
        """
        if self._going is not None:
            if not self._go.done():
                self._go.set_result(False)
            await asyncio.wait({self._going}, timeout=timeout / 2)
        else:
            self._gate.refuse()
            if self._job is not None:
                await self._job.end(timeout=timeout / 2)
        if self._cgroup is not None:
            await asyncio.to_thread(self._cgroup.kill, timeout=timeout)
        # There is no copy any more. What follows is tidying, and may fail.
        await self.close()
        if self._job is not None:
            await self._job.end(timeout=timeout)
            with suppress(RuncError):
                await self._runc.delete(self._side.container_id, timeout=timeout)

    async def close(self) -> None:
        """Close the gate, whatever has become of the copy."""
        if self._going is not None:
            self._going.cancel()
            await asyncio.wait({self._going})
            if not self._going.cancelled():
                self._going.exception()  # seen: whoever waited for the restore has it
        self._gate.close()

    async def _on_notify(self, script: str, pid: int | None) -> bool:
        if script == "post-restore":
            assert pid is not None
            _settle(self._restored, pid)
            return await self._go
        if script == "pre-resume":
            _settle(self._resuming, None)
            await self._may_run
        if script == "post-resume":
            self._resumed_at = time.monotonic()
        return True

    async def _failure(self) -> None:
        """Raises when the restore ends; it must not while something else is waited for."""
        assert self._going is not None
        await asyncio.wait({self._going})
        self._going.result()
        raise CopyError("CRIU's restore ended before its time")


def _settle(future: "asyncio.Future[T]", value: T) -> None:
    """Set the result, unless nobody waits for it any more."""
    if not future.done():
        future.set_result(value)
