"""A load client from the outside: started in a client's namespace, waited for, stopped, read."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from mycoproxy.errors import MycoError
from netlab.load.summary import ClientSummary

Starter = Callable[..., "subprocess.Popen[bytes]"]
"""Called like ``subprocess.Popen``; starts the child in the wanted network namespace."""


class LoadProcess:
    """One load client. ``arguments`` is what follows ``python -m netlab.load``.

    The client gets a pipe as standard input and ends when that pipe does: if the lab is killed, its
    clients end by themselves. ``log`` takes its standard error.
    """

    def __init__(self, start: Starter, arguments: Sequence[str], *, log: Path) -> None:
        self.arguments = tuple(arguments)
        self.log = log
        self._said = b""
        with log.open("wb") as stderr:
            self.process = start(
                [sys.executable, "-m", "netlab.load", *arguments, "--stdin-stops"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )

    @property
    def pid(self) -> int:
        """The client's process id."""
        return self.process.pid

    def wait_ready(self, seconds: float = 20) -> None:
        """Wait until the client's connections stand and have been answered.

        Raises ``MycoError`` if it ends before, or is not ready within ``seconds``.
        """
        line = self._read_line(time.monotonic() + seconds, "become ready")
        try:
            ready = json.loads(line).get("state") == "ready"
        except (ValueError, AttributeError):
            ready = False
        if not ready:
            raise MycoError(f"{self} ended before it was ready: {line.decode(errors='replace')}")

    def stop(self, seconds: float = 40) -> ClientSummary:
        """Ask the client to end (close its standard input), and read its summary.

        A client may need a while: it waits for what is still unanswered. Raises ``MycoError`` if
        there is no summary within ``seconds``. The process is gone afterwards in any case.
        """
        try:
            self._close_stdin()
            deadline = time.monotonic() + seconds
            while True:
                line = self._read_line(deadline, "report")
                if b'"state": "ready"' not in line[:40]:
                    return ClientSummary.from_json(line)
        finally:
            self.kill()

    def kill(self) -> None:
        """End the process at once, without a summary. Does nothing if it has ended."""
        self._close_stdin()
        try:
            self.process.wait(1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _close_stdin(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()

    def _read_line(self, deadline: float, wanted: str) -> bytes:
        stdout = self.process.stdout
        if stdout is None or stdout.closed:
            raise MycoError(f"{self} has been stopped already")
        while b"\n" not in self._said:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([stdout], [], [], left)[0]:
                raise MycoError(f"{self} did not {wanted} in time; its log is {self.log}")
            data = os.read(stdout.fileno(), 65536)
            if not data:
                last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
                said = " ".join(last) or "no message"
                raise MycoError(f"{self} ended and did not {wanted}: {said} (log: {self.log})")
            self._said += data
        line, self._said = self._said.split(b"\n", 1)
        return line

    def __str__(self) -> str:
        return f"load client {' '.join(self.arguments[:1])} (pid {self.process.pid})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
