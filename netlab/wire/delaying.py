"""``python -m netlab.wire.delaying LISTENER SECONDS LEFT RIGHT [SECONDS LEFT RIGHT ...]``: the
process of a lab's delayed links, all of them.

LISTENER, LEFT and RIGHT are descriptors it has inherited: a Unix socket that listens, and for each
link two TAP devices. Whoever connects gets the `Counters` of every link as one JSON message, and
nothing can be said to it. It goes on in the background, as the lab's process and nobody's child:
its command ends as soon as it forwards.

It ends with the last of its interfaces, or when it is killed (the interfaces go then).
"""

import gc
import json
import os
import socket
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from netlab.wire.delay import DelayLine
from netlab.wire.forwarding import Direction, forward, low_descriptor

#: What ps(1) and ``netlab down`` call it.
NAME = "netlab-wire"


def main(listener_fd: str, *links: str) -> None:
    """Fork, and in the child forward until there is no link any more."""
    listener = socket.socket(fileno=low_descriptor(int(listener_fd)))
    directions = []
    for seconds, left, right in zip(*(iter(links),) * 3, strict=True):
        ends = low_descriptor(int(left)), low_descriptor(int(right))
        directions += [
            Direction(source, sink, DelayLine(float(seconds)))
            for source, sink in (ends, ends[::-1])
        ]
    pairs = list(zip(directions[::2], directions[1::2], strict=True))

    def serve() -> bool:
        counters = [asdict(one.line.counters + other.line.counters) for one, other in pairs]
        # An error is that whoever asked has gone.
        with suppress(OSError), listener.accept()[0] as asking:
            asking.send(json.dumps({"pid": os.getpid(), "links": counters}).encode())
        return True

    if os.fork():
        os._exit(0)
    os.chdir("/")
    Path("/proc/self/comm").write_text(NAME)
    Path("/proc/self/timerslack_ns").write_text("1")  # timers may be 50 us late otherwise
    gc.disable()  # no cycles are made, and a hundred thousand frames may be under way
    forward(directions, listener.fileno(), serve)


if __name__ == "__main__":
    main(*sys.argv[1:])
