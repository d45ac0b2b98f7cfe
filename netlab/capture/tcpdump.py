"""Runs tcpdump on one interface for as long as a scenario lasts.

Headers only, a large kernel buffer, nanosecond time stamps. pcap files carry CLOCK_REALTIME; the
rest of the lab measures in CLOCK_MONOTONIC, so the offset between the two is taken at the start and
at the end.
"""

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from mycoproxy.errors import MycoError

SNAPLEN_BYTES = 128
BUFFER_KIB = 32 * 1024
_BLOCK_SECONDS = 1.5

Starter = Callable[..., "subprocess.Popen[bytes]"]
"""Called like ``subprocess.Popen``; starts the child in the wanted network namespace."""

_STATISTICS = re.compile(
    rb"(\d+) packets? captured(?:\n|, )\s*(\d+) packets? received by filter(?:\n|, )"
    rb"\s*(\d+) packets? dropped by kernel"
)


@dataclass(frozen=True)
class ClockOffset:
    """CLOCK_REALTIME minus CLOCK_MONOTONIC at one moment, in nanoseconds."""

    nanoseconds: int

    @classmethod
    def now(cls) -> "ClockOffset":
        """Measured between two readings of the monotonic clock, the closest pair out of a few."""
        best: tuple[int, int] | None = None
        for _ in range(10):
            before = time.monotonic_ns()
            real = time.time_ns()
            after = time.monotonic_ns()
            if best is None or after - before < best[0]:
                best = (after - before, real - (before + after) // 2)
        if best is None:
            raise AssertionError("ten readings, none of them counted")
        return cls(best[1])


@dataclass(frozen=True)
class CaptureStatistics:
    """tcpdump's closing words. ``clock_drift_seconds``: by how much the two clocks moved against
    each other during the capture; more than a millisecond means that somebody set the time."""

    captured: int
    received: int
    dropped: int
    clock_drift_seconds: float


class Capture:
    """tcpdump at work, from the end of the constructor until ``stop``.

    ``start`` starts it in the interface's network namespace. ``path`` should end in ``.pcap``:
    where AppArmor confines tcpdump (Debian's and Ubuntu's profile), other names are refused.
    ``expression`` is a pcap-filter(7) expression. Raises ``MycoError`` if tcpdump does not capture
    within ``seconds``.
    """

    def __init__(
        self,
        start: Starter,
        interface: str,
        path: Path,
        *,
        expression: str = "tcp",
        seconds: float = 10,
    ) -> None:
        self.path = path
        self.interface = interface
        self._said = b""
        # -Z root: as another user it could not write where the lab's files are.
        options = ["-n", "-U", "-s", str(SNAPLEN_BYTES), "-B", str(BUFFER_KIB), "-Z", "root"]
        options += ["--time-stamp-precision=nano"]
        self.process = start(
            ["tcpdump", "-i", interface, *options, "-w", str(path), expression],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            self._wait_for(re.compile(rb"listening on "), seconds, "begin to capture")
        except BaseException:
            self.kill()
            raise
        self.clock = ClockOffset.now()

    def stop(self, seconds: float = 10) -> CaptureStatistics:
        """End it, once it has written all that was received.

        The kernel hands packets over in blocks, up to a second late (tcpdump's time-out for
        pcap_set_timeout(3PCAP)), and those in an unfinished block would be lost at the end. So
        tcpdump is asked for its counters (SIGUSR1) until it has written what was received.
        Raises ``MycoError`` if there are no closing statistics.
        """
        try:
            self._catch_up(time.monotonic() + seconds)
            drift = (ClockOffset.now().nanoseconds - self.clock.nanoseconds) / 1e9
            self.process.send_signal(signal.SIGINT)
            counters = self._wait_for(_STATISTICS, seconds, "report its counters")
            captured, received, dropped = (int(number) for number in counters.groups())
            return CaptureStatistics(captured, received, dropped, drift)
        finally:
            self.kill()

    def kill(self) -> None:
        """End it at once, if it still runs."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(2)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()

    def _catch_up(self, deadline: float) -> None:
        last_captured, moved_at = -1, time.monotonic()
        while (now := time.monotonic()) < deadline:
            self._said = b""
            self.process.send_signal(signal.SIGUSR1)
            found = self._wait_for(_STATISTICS, deadline - now, "tell its counters")
            captured, received, dropped = (int(number) for number in found.groups())
            if captured != last_captured:
                last_captured, moved_at = captured, now
            # On loopback each packet is received twice and written once: there, no news for longer
            # than the hand-over of a block takes has to do.
            if captured + dropped >= received or now - moved_at > _BLOCK_SECONDS:
                break
            time.sleep(0.05)  # between two looks at the condition
        self._said = b""

    def _wait_for(self, pattern: re.Pattern[bytes], seconds: float, wanted: str) -> re.Match[bytes]:
        stderr = self.process.stderr
        if stderr is None or stderr.closed:
            raise MycoError(f"tcpdump on {self.interface} has been stopped already")
        deadline = time.monotonic() + seconds
        while not (found := pattern.search(self._said)):
            left = deadline - time.monotonic()
            readable = left > 0 and select.select([stderr], [], [], left)[0]
            data = os.read(stderr.fileno(), 65536) if readable else b""
            if not data:
                said = self._said.decode(errors="replace").strip() or "nothing"
                what = f"tcpdump on {self.interface} did not {wanted} within {seconds:g} s"
                raise MycoError(f"{what}; it said: {said}")
            self._said += data
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
