"""``python -m netlab.wire LEFT RIGHT CONTROL SEED``: the process between a wire's two ends.

The first three are descriptors it has inherited: two TAP devices, and a socket (SOCK_SEQPACKET) on
which a request is a JSON object, the fields of the `Impairment` that holds from now on, or
``null`` to change nothing; the answer is the `Counters` of both directions together. Nothing is
forwarded before the first request.

It ends when the other end of that socket is closed (nobody has to be alive to end it), or when an
interface is removed. It prints nothing.
"""

import json
import socket
import sys
from dataclasses import asdict

from netlab.wire.forwarding import Direction, forward, low_descriptor
from netlab.wire.impairment import Impairment, Schedule

_REQUEST_BYTES = 4096


def _answer(control: socket.socket, schedules: tuple[Schedule, Schedule]) -> bool:
    """Serve one request. False: there is none any more."""
    try:
        request = control.recv(_REQUEST_BYTES)
        if not request:
            return False
        fields = json.loads(request)
        if fields is not None:
            impairment = Impairment(**fields)
            for schedule in schedules:
                schedule.impairment = impairment
        left, right = schedules
        control.send(json.dumps(asdict(left.counters + right.counters)).encode())
    except ConnectionError:
        return False
    return True


def main(left: str, right: str, control: str, seed: str) -> None:
    """Forward until the parent closes the control socket."""
    left_tap, right_tap, requests_fd = (low_descriptor(int(e)) for e in (left, right, control))
    to_right = Schedule(Impairment(), f"{seed} to the right")
    to_left = Schedule(Impairment(), f"{seed} to the left")
    directions = [
        Direction(left_tap, right_tap, to_right),
        Direction(right_tap, left_tap, to_left),
    ]
    with socket.socket(fileno=requests_fd) as requests:

        def serve() -> bool:
            return _answer(requests, (to_right, to_left))

        if serve():
            forward(directions, requests_fd, serve)


if __name__ == "__main__":
    main(*sys.argv[1:])
