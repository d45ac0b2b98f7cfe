"""What a migration did, written before it is done: one JSON object a line, one file a side.

The journal is what a person (or the agent, after a crash) reads to learn how far a move came. A
line is written before the action it names starts. It is not synced to a disk: it has to outlive
this process, and need not outlive the kernel, which takes the container with it.
"""

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self


class Journal:
    """Append-only; opened for the whole move."""

    def __init__(self, *paths: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fds = [os.open(path, flags, 0o600) for path in paths]

    def write(self, **entry: str | float | int | None) -> None:
        """Append ``entry`` (with the time, seconds since the epoch) on every side."""
        line = json.dumps({"time": time.time(), **entry}, separators=(",", ":")).encode() + b"\n"
        for fd in self._fds:
            os.write(fd, line)

    def close(self) -> None:
        """Close the files; they stay."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read(path: Path) -> list[dict[str, object]]:
    """The entries of a journal. A last line that was cut by a crash is left out."""
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries
