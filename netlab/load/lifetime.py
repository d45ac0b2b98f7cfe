"""When a client ends, and how it talks to whoever started it."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from netlab.load.summary import ClientSummary

DRAIN_SECONDS = 5.0


class Lifetime:
    """Set from the outside: ``stopping`` is set by SIGTERM, SIGINT, the end of standard input or
    the passing of ``seconds``; ``stopped_by`` says which. A client may set it as well."""

    def __init__(self, *, seconds: float, stdin_stops: bool) -> None:
        self.seconds = seconds
        self.stdin_stops = stdin_stops
        self.stopping = asyncio.Event()
        self.stopped_by = ""

    def stop(self, why: str) -> None:
        """Ask the client to end. Only the first reason counts."""
        if not self.stopping.is_set():
            self.stopped_by = why
            self.stopping.set()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch signals, standard input and the clock for as long as the context lasts."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop, number.name)
        bound = loop.call_later(self.seconds, self.stop, "--seconds")
        if self.stdin_stops:
            loop.add_reader(0, self._read_stdin)
        try:
            yield
        finally:
            bound.cancel()
            if self.stdin_stops:
                loop.remove_reader(0)
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _read_stdin(self) -> None:
        if not os.read(0, 4096):
            asyncio.get_running_loop().remove_reader(0)
            self.stop("end of standard input")

    async def until_stopping(self, work: asyncio.Task[Any], drain: float = DRAIN_SECONDS) -> bool:
        """Let ``work`` run until it ends, or until ``drain`` seconds after the stop.

        True if it came to its end; otherwise it was cancelled. Its exceptions are passed on.
        """
        stopped = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await asyncio.wait({work}, timeout=drain)
            if work.done():
                await work
                return True
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            return False
        finally:
            stopped.cancel()


def say_ready() -> None:
    """Tell the parent that all connections stand and have been answered."""
    _line('{"state": "ready"}')


def say_summary(summary: ClientSummary) -> None:
    """Print the summary, the last thing a client does."""
    _line(summary.to_json())


def _line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
