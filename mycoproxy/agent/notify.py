"""What systemd is told: sd_notify(3), a datagram to the socket that $NOTIFY_SOCKET names."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import MutableMapping
from dataclasses import dataclass

log = logging.getLogger(__name__)


@dataclass
class Notifier:
    """Tells systemd, if it listens. ``watchdog``: seconds in which it wants a sign of life."""

    address: str | None = None
    watchdog: float | None = None

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Notifier:
        """Takes the variables away: they are not meant for child processes."""
        address = environment.pop("NOTIFY_SOCKET", None) or None
        interval = environment.pop("WATCHDOG_USEC", "")
        pid = environment.pop("WATCHDOG_PID", "")
        meant = not pid or pid == str(os.getpid())
        watchdog = int(interval) / 1e6 if interval.isdigit() and int(interval) and meant else None
        return cls(address, watchdog)

    def ready(self, text: str) -> None:
        """Started, or done with a reload."""
        self._send("READY=1", f"STATUS={text}")

    def reloading(self) -> None:
        """A reload begins; ``ready`` ends it."""
        self._send(
            "RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
        )

    def stopping(self) -> None:
        """The end begins."""
        self._send("STOPPING=1", "STATUS=stopping")

    def alive(self) -> None:
        """A sign of life."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if self.address is None:
            return
        # "@" stands for the NUL that an abstract name begins with.
        name = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto("\n".join(lines).encode(), name)
        except OSError as error:
            log.warning("cannot tell systemd: %s: %s", self.address, error.strerror)
