"""A lab's delayed links: starting their process, and asking it what it has done.

The process is the lab's, not its starter's: it is found by the network namespace that it is started
in, as whatever runs in a lab is, and answers anyone on a Unix socket.

It moves some 200,000 frames a second, and several Gbit/s in frames of 64 KiB, on one processor. A
sender that is faster fills first the device's queue (20,000 frames; ``links.overflow`` counts what
finds no room), then the process's memory (64 MiB for each direction of each link; `Counters`).
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mycoproxy.errors import MycoError
from netlab.wire.impairment import Counters

_START_SECONDS = 10.0
_ANSWER_SECONDS = 1.0
_ANSWER_BYTES = 1 << 20


class DelayedLink(NamedTuple):
    """Two TAP devices (descriptors, of `open_tap`) and the one-way delay in seconds."""

    delay: float
    left: int
    right: int


class Answer(NamedTuple):
    """What the process says: its id, and the counters of each link, both directions together."""

    pid: int
    links: tuple[Counters, ...]


def start(links: Sequence[DelayedLink], control: Path, log: Path) -> None:
    """Start the process in the calling thread's network namespace; it forwards when this returns.

    ``control`` is made, a socket for `ask`; ``log`` gets what goes wrong. The caller closes its
    copies of the descriptors, as the devices last as long as any is open. Raises ``MycoError``.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, log.open("ab") as errors:
        listener.bind(str(control))
        listener.listen()
        listener.setblocking(False)
        arguments = [str(word) for link in links for word in link]
        passed = [listener.fileno(), *(tap for link in links for tap in link[1:])]
        try:
            subprocess.run(
                [sys.executable, "-m", "netlab.wire.delaying", str(listener.fileno()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=passed,
                start_new_session=True,  # it outlives the terminal
                timeout=_START_SECONDS,
                check=True,
            )
        except subprocess.SubprocessError as error:
            last = log.read_text().strip().splitlines()[-1:]
            raise MycoError(
                f"the wire of the delayed links does not start: {last or error}"
            ) from error


def ask(control: Path) -> Answer | None:
    """What the process has done until now. None: it does not answer, or there is none."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
            asking.settimeout(_ANSWER_SECONDS)
            asking.connect(os.fspath(control))
            answer = asking.recv(_ANSWER_BYTES)
    except OSError:
        return None
    if not answer:
        return None
    said = json.loads(answer)
    return Answer(said["pid"], tuple(Counters(**each) for each in said["links"]))
