"""Connections that the workload had closed before it was frozen, with bytes still on their way.

close(2) returns at once; the kernel goes on delivering what is queued, and the FIN after it. Such a
socket belongs to no descriptor, so nothing can take its state and move it. It does not have to: its
bytes are complete, and so is its path. It stays with the source, whose namespace has to be left
standing, and its packets be let pass, until it is done.
"""

import asyncio
import time
from collections.abc import Sequence

from mycoproxy.addresses import FourTuple
from mycoproxy.namespaces import NamespaceWorker
from mycoproxy.socktable import addresses_in_use
from mycoproxy.tcp import TcpConnectionState

_UNFINISHED = (
    TcpConnectionState.FIN_WAIT1,
    TcpConnectionState.CLOSING,
    TcpConnectionState.LAST_ACK,
)
_NOBODYS = 0  # the inode of a socket that no descriptor refers to
_POLL = 0.02  # seconds; looking through the kernel's table takes milliseconds


def orphans() -> list[FourTuple]:
    """Those of the calling thread's network namespace that still have to be acknowledged."""
    return [
        FourTuple(one.local, one.remote)
        for one in addresses_in_use()
        if one.remote is not None and one.inode == _NOBODYS and one.state in _UNFINISHED
    ]


async def until_finished(worker: NamespaceWorker, *, timeout: float) -> Sequence[FourTuple]:
    """Wait until none is left; returns those that are after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while left := await worker.run(orphans):
        if time.monotonic() > deadline:
            return left
        await asyncio.sleep(_POLL)
    return []
