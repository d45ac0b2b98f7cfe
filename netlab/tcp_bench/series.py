"""How many bytes had arrived, and when."""

import socket
import time
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Final, Self

CHUNK: Final = bytes(256 * 1024)
"""What one call writes, and at most reads."""

_STEP: Final = 0.002  # seconds between two entries


@dataclass(slots=True)
class Series:
    """Times (``time.monotonic``) and the bytes that had arrived by then."""

    times: list[float] = field(default_factory=list)
    totals: list[int] = field(default_factory=list)
    total: int = 0

    @classmethod
    def receive(cls, sock: socket.socket) -> Self:
        """Read ``sock`` to the end of its stream. Raises ``OSError``."""
        series = cls()
        while series.add(len(sock.recv(len(CHUNK)))):
            pass
        return series

    def receive_until(self, sock: socket.socket, end: float) -> None:
        """Read ``sock`` until the time is ``end``. Raises ``OSError``."""
        while time.monotonic() < end and self.add(len(sock.recv(len(CHUNK)))):
            pass

    def add(self, count: int) -> int:
        """``count`` more have arrived just now; returns ``count``."""
        now = time.monotonic()
        self.total += count
        if not self.times or now - self.times[-1] >= _STEP:
            self.times.append(now)
            self.totals.append(self.total)
        return count

    def rate(self, start: float, end: float) -> float:
        """Bytes per second between two times, both within the series."""
        return (self._total_at(end) - self._total_at(start)) / (end - start)

    def _total_at(self, when: float) -> int:
        place = bisect_right(self.times, when)
        return self.totals[place - 1] if place else 0
