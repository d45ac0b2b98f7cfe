"""``python -m netlab.wire LEFT RIGHT CONTROL SEED``: the process between a wire's two ends.

The first three are descriptors it has inherited: two TAP devices, and a socket (SOCK_SEQPACKET) on
which a request is a JSON object, the fields of the `Impairment` that holds from now on, or
``null`` to change nothing; the answer is the `Counters` of both directions together. Nothing is
forwarded before the first request.

It ends when the other end of that socket is closed (nobody has to be alive to end it), or when an
interface is removed. It prints nothing.
"""

import errno
import json
import os
import select
import socket
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass

from netlab.wire.impairment import Impairment, Schedule

# An IP packet of 64 KiB, Ethernet with a VLAN tag, struct virtio_net_hdr.
_FRAME_BYTES = 65536 + 18 + 10
# Frames read in a row, before the other direction has its turn.
_BATCH = 64
_REQUEST_BYTES = 4096


class _CutError(Exception):
    """Someone has removed an interface: there is no wire any more."""


@dataclass
class _Direction:
    """One way through the wire. ``source`` and ``sink`` are descriptors of TAP devices."""

    source: int
    sink: int
    schedule: Schedule

    def read(self) -> None:
        """Take in what the source has sent."""
        now = time.monotonic()
        try:
            for _ in range(_BATCH):
                self.schedule.arrive(now, os.read(self.source, _FRAME_BYTES))
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.EBADFD:
                raise
            raise _CutError from error

    def write(self) -> None:
        """Put out what is to leave by now."""
        counters = self.schedule.counters
        for packet in self.schedule.leave(time.monotonic()):
            try:
                os.write(self.sink, packet)
                counters.delivered += 1
            except OSError:  # EIO: the interface is down. A wire does not mind.
                counters.dropped += 1


def _answer(control: socket.socket, directions: list[_Direction]) -> bool:
    """Serve one request. False: there is none any more."""
    try:
        request = control.recv(_REQUEST_BYTES)
        if not request:
            return False
        fields = json.loads(request)
        if fields is not None:
            impairment = Impairment(**fields)
            for direction in directions:
                direction.schedule.impairment = impairment
        left, right = (direction.schedule.counters for direction in directions)
        control.send(json.dumps(asdict(left + right)).encode())
    except ConnectionError:
        return False
    return True


def _forward(directions: list[_Direction], control: socket.socket) -> None:
    by_source = {direction.source: direction for direction in directions}
    sources = [*by_source, control.fileno()]
    while True:
        departures = [direction.schedule.next_departure() for direction in directions]
        due = min((each for each in departures if each is not None), default=None)
        timeout = None if due is None else max(0.0, due - time.monotonic())
        # select and not epoll: epoll's timeouts are whole milliseconds.
        for source in select.select(sources, [], [], timeout)[0]:
            if source in by_source:
                by_source[source].read()
            elif not _answer(control, directions):
                return
        for direction in directions:
            direction.write()


def main(left: str, right: str, control: str, seed: str) -> None:
    """Forward until the parent closes the control socket."""
    # Low numbers: the parent may have thousands of descriptors, and select takes 1024.
    left_tap, right_tap, requests_fd = (_lower(int(each)) for each in (left, right, control))
    directions = [
        _Direction(left_tap, right_tap, Schedule(Impairment(), f"{seed} to the right")),
        _Direction(right_tap, left_tap, Schedule(Impairment(), f"{seed} to the left")),
    ]
    with socket.socket(fileno=requests_fd) as requests:
        if _answer(requests, directions):
            with suppress(_CutError):
                _forward(directions, requests)


def _lower(inherited: int) -> int:
    """The same descriptor under the lowest number that is free."""
    descriptor = os.dup(inherited)
    os.close(inherited)
    return descriptor


if __name__ == "__main__":
    main(*sys.argv[1:])
