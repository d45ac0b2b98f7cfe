"""Python's garbage collector stands still while connections do.

With the states of 10,000 connections in memory one full collection takes 0.1 s, and they come one
after the other while more states are read: a quarter of the target's time in a handover. What is
not in a cycle is freed as ever.
"""

import asyncio
import gc
from typing import Final

_LONGEST_SECONDS: Final = 20.0


class CollectorPause:
    """Of this process, from one event loop."""

    def __init__(self) -> None:
        self._end: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Begin it, or begin it anew. It ends by itself in the end: a move may be in doubt for
        days."""
        if self._end is not None:
            self._end.cancel()
        self._end = asyncio.get_running_loop().call_later(_LONGEST_SECONDS, self.end)
        gc.disable()

    def end(self) -> None:
        """Nothing stands still any more."""
        if self._end is not None:
            self._end.cancel()
            self._end = None
            gc.enable()
