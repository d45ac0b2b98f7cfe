"""Between TAP devices: read what one has sent, write it to the other when its time has come.

One loop for any number of wires in one process, which sleeps whenever nothing is due. What happens
to a frame meanwhile is the business of the direction's `Line`.
"""

import errno
import os
import select
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from netlab.wire.impairment import Counters

# An IP packet of 64 KiB, Ethernet with a VLAN tag, struct virtio_net_hdr.
_FRAME_BYTES = 65536 + 18 + 10
# Frames read in a row, before the other directions have their turn.
_BATCH = 64


class Line(Protocol):
    """What happens to the frames of one direction: `Schedule`, `DelayLine`. Times are seconds."""

    counters: Counters

    def arrive(self, now: float, packet: bytes) -> None:
        """A frame comes in at ``now``."""

    def leave(self, now: float) -> Iterable[bytes]:
        """Take out the frames that leave until ``now``, in their order."""

    def next_departure(self) -> float | None:
        """When the next frame leaves. None: there is none under way."""


@dataclass
class Direction:
    """One way through a wire. ``source`` and ``sink`` are descriptors of TAP devices."""

    source: int
    sink: int
    line: Line

    def read(self) -> bool:
        """Take in what the source has sent. False: someone has removed the interface."""
        now = time.monotonic()
        arrive, source = self.line.arrive, self.source
        try:
            for _ in range(_BATCH):
                arrive(now, os.read(source, _FRAME_BYTES))
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.EBADFD:
                raise
            return False
        return True

    def write(self) -> None:
        """Put out what is to leave by now."""
        counters = self.line.counters
        for packet in self.line.leave(time.monotonic()):
            try:
                os.write(self.sink, packet)
                counters.delivered += 1
            except OSError:  # EIO: the interface is down. A wire does not mind.
                counters.dropped += 1


def forward(directions: Iterable[Direction], requests: int, serve: Callable[[], bool]) -> None:
    """Forward until there is no wire any more, or ``serve`` says that it is over.

    ``serve`` is called whenever the descriptor ``requests`` can be read. When an interface is
    removed its wire ends, the other end's interface included, as with a veth. All descriptors have
    to be below 1,024 (select(2)).
    """
    by_source = {direction.source: direction for direction in directions}
    while by_source:
        due = None
        for direction in by_source.values():
            departure = direction.line.next_departure()
            if departure is not None and (due is None or departure < due):
                due = departure
        timeout = None if due is None else max(0.0, due - time.monotonic())
        # select and not epoll: epoll's timeouts are whole milliseconds.
        for ready in select.select([*by_source, requests], [], [], timeout)[0]:
            if ready == requests:
                if not serve():
                    return
            elif ready in by_source and not by_source[ready].read():
                os.close(by_source.pop(by_source[ready].sink).source)
                os.close(by_source.pop(ready).source)
        for direction in by_source.values():
            direction.write()


def low_descriptor(inherited: int) -> int:
    """The same descriptor under the lowest number that is free: a parent may have thousands."""
    descriptor = os.dup(inherited)
    os.close(inherited)
    return descriptor
