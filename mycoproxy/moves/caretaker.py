"""Sees to it that translations live exactly as long as their connections, on all of this node.

A namespace is looked after from the end of a move that may have left translations in it (and from
the agent's start) until there are none; then its thread ends, which would keep it alive. So is what
anchored connections need in it.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mycoproxy.errors import MycoError
from mycoproxy.moves.led_flows import LedFlows
from mycoproxy.namespaces import NamespaceWorker
from mycoproxy.netfilter.anchor_lifetimes import AnchorLifetimes
from mycoproxy.netfilter.lifetimes import TranslationLifetimes

log = logging.getLogger(__name__)

_LOOK_SECONDS = 2.0


class Caretaker:
    """``moving``: addresses, old and new, of the workloads that are being moved right now."""

    def __init__(self, moving: Callable[[], frozenset[str]]) -> None:
        self._moving = moving
        self._tasks: dict[Path, asyncio.Task[None]] = {}
        self._again: set[Path] = set()
        self.removed = 0
        """How many translations had ended, so far."""

    def look_after(self, path: Path) -> None:
        """Something may be translated in the namespace at ``path`` now."""
        self._again.add(path)
        task = self._tasks.get(path)
        if task is None or task.done():
            self._tasks[path] = asyncio.get_running_loop().create_task(self._attend(path))

    @property
    def places(self) -> list[Path]:
        """The namespaces that are looked after."""
        return [path for path, task in self._tasks.items() if not task.done()]

    async def stop(self) -> None:
        """Let go of all. The next agent begins with all that there are."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _attend(self, path: Path) -> None:
        try:
            worker = await asyncio.to_thread(NamespaceWorker, path)
        except (MycoError, OSError):  # it is gone, and with it what was in it
            return
        lifetimes = TranslationLifetimes(worker, moving=self._moving)
        anchors = AnchorLifetimes(worker, moving=self._moving)
        led = LedFlows(worker)
        inode = worker.call(_own_inode)
        try:
            await lifetimes.open()
            await anchors.open()
            while (
                path in self._again
                or led.remain
                or lifetimes.remaining
                or anchors.remaining
                or self._moving()
            ):
                if path in self._again:
                    self._again.discard(path)
                    await lifetimes.sweep()
                    led.begin()
                    await anchors.sweep()
                await anchors.look()
                if not self._moving():
                    await led.look()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await lifetimes.attend()
                if not path.exists() or path.stat().st_ino != inode:
                    break
        except (MycoError, OSError) as error:
            log.warning("translations in %s are not looked after: %s", path, error)
        finally:
            self.removed += lifetimes.removed.total()
            await anchors.close()
            await lifetimes.close()
            await asyncio.to_thread(worker.close)


def _own_inode() -> int:
    return Path("/proc/thread-self/ns/net").stat().st_ino
