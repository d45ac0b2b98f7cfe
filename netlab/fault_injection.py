"""Doing it: an agent is killed and restarted, stopped, cut off from the others, or its disk full.

What lasts ends when its time is up, or as soon as the move it was meant for is over everywhere: a
fault that nobody can meet any more says nothing, and costs time.
"""

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from netlab.agents import PORT, LabAgents
from netlab.fault_plan import Fault
from netlab.lab import Lab
from netlab.services import apply

_POLL: Final = 0.02
_CHUNK: Final = 1 << 16


class Injection:
    """One fault, once. ``reach`` is told of each step of the move; ``end`` comes after the move.

    All on one event loop.
    """

    def __init__(self, lab: Lab, agents: LabAgents, fault: Fault, victim: str) -> None:
        self._lab, self._agents = lab, agents
        self._fault, self._victim = fault, victim
        self._task: asyncio.Task[None] | None = None
        self._over = asyncio.Event()

    @property
    def begun(self) -> bool:
        """Whether the move came to the fault's step."""
        return self._task is not None

    def reach(self, step: str) -> None:
        """The move has come to ``step``; does not wait."""
        if step == self._fault.step.value and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._inject())

    async def end(self) -> None:
        """The move has ended for its driver. Returns when the fault is over.

        Raises what went wrong with it, ``MycoError`` if an agent did not come up again.
        """
        if self._task is None:
            return
        while not self._task.done():
            if not any(self._agents.journals(node) for node in self._agents.nodes):
                self._over.set()
            await asyncio.wait({self._task}, timeout=_POLL)
        await self._task

    async def _inject(self) -> None:
        await asyncio.sleep(self._fault.delay_ms / 1e3)
        match self._fault.kind:
            case "kill":
                await asyncio.to_thread(self._kill)
            case "stop":
                self._agents.signal(self._victim, signal.SIGSTOP)
                await self._last(lambda: self._agents.signal(self._victim, signal.SIGCONT))
            case "cut":
                self._apply(_CUT)
                await self._last(lambda: self._apply(_HEAL))
            case "full":
                filler = self._agents.state(self._victim) / "filler"
                await asyncio.to_thread(_fill, filler)
                await self._last(lambda: filler.unlink(missing_ok=True))

    async def _last(self, undo: Callable[[], None]) -> None:
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._fault.seconds):
                    await self._over.wait()
        finally:
            undo()

    def _kill(self) -> None:
        self._agents.kill(self._victim)
        self._agents.start_one(self._victim)
        self._agents.wait_ready(self._victim)

    def _apply(self, rules: str) -> None:
        self._lab.node(self._victim).worker.call(apply, rules)


def _fill(path: Path) -> None:
    """Write until there is no room for a byte more."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(_CHUNK)):
            pass


_AGENTS: Final = f"tcp dport {PORT} drop; tcp sport {PORT} drop;"
_CUT: Final = f"""\
table inet netlab-cut {{
  chain in {{ type filter hook input priority -400; {_AGENTS} }}
  chain out {{ type filter hook output priority -400; {_AGENTS} }}
}}
"""
_HEAL: Final = "delete table inet netlab-cut\n"
