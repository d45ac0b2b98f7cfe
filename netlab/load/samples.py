"""The sample file: what a client saw, one fixed-size record per event.

The file begins with one line of JSON (``format``, ``kind``, ``name``, ``group``); little-endian
records follow. A run of a minute with a hundred connections is some 10 MB. A file may be read while
it is being written; a last, incomplete record is left out. Writing needs no numpy, so that a client
starts fast; `netlab.load.series` reads.
"""

import json
import struct
import time
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Self

FORMAT = "netlab-samples-1"

# connection, bytes of the answer, time sent, time answered, verdict
REQUEST_RECORD = struct.Struct("<IIddB7x")
# time, bytes moved so far, bytes acknowledged by the other end so far
PROGRESS_RECORD = struct.Struct("<dQQ")

_FLUSH_SECONDS = 0.2


class Verdict(IntEnum):
    """What became of a request."""

    RIGHT = 0
    WRONG = 1
    UNANSWERED = 2


class SampleWriter:
    """Writes a sample file. ``kind`` is "requests" or "progress"; ``path`` None writes nothing."""

    def __init__(self, path: Path | None, *, kind: str, name: str, group: str) -> None:
        self._file = None if path is None else path.open("wb", buffering=1 << 20)
        self._next_flush = 0.0
        if self._file is not None:
            header = {"format": FORMAT, "kind": kind, "name": name, "group": group}
            self._file.write(json.dumps(header).encode() + b"\n")
            self._file.flush()

    def request(
        self, connection: int, sent: float, answered: float, verdict: Verdict, size: int
    ) -> None:
        """One request: when it was sent and when its answer was complete, in monotonic seconds.

        For an unanswered one ``answered`` is the moment at which waiting for it ended.
        """
        self._write(REQUEST_RECORD.pack(connection, size, sent, answered, verdict), answered)

    def progress(self, moved: int, acknowledged: int) -> None:
        """How many bytes of payload have been moved by now."""
        now = time.monotonic()
        self._write(PROGRESS_RECORD.pack(now, moved, acknowledged), now)

    def _write(self, record: bytes, now: float) -> None:
        if self._file is None:
            return
        self._file.write(record)
        if now >= self._next_flush:
            self._file.flush()
            self._next_flush = now + _FLUSH_SECONDS

    def close(self) -> None:
        """Write what is left and close the file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
