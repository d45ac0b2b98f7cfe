"""The target of a handover: another process, as it would be another machine.

Its sockets are made beforehand, as CRIU makes them, and the shield stands.
"""

import gc
import socket
import time
from dataclasses import dataclass

from mycoproxy import tcp
from mycoproxy.netfilter.nft import Nft
from mycoproxy.netfilter.shield import Shield
from netlab.tcp_bench.connections import answer


@dataclass(frozen=True, slots=True)
class TookOver:
    """When (``time.monotonic``) which part was done; and what could not be kept, in words."""

    decoded: float
    established: float
    released: float
    not_kept: frozenset[str]


class Target:
    """What the parent calls; see ``child``. Its only thread lives in the target's namespace."""

    def __init__(self) -> None:
        self._shield = Shield(Nft(), "bench")
        self._socks: list[socket.socket] = []

    def prepare(self, count: int) -> None:
        """Raise the shield and make ``count`` closed sockets."""
        self._shield.raise_()
        self._socks = [socket.socket() for _ in range(count)]
        gc.collect()
        gc.disable()

    def take_over(self, encoded: list[bytes]) -> TookOver:
        """Decode and establish all, lift the shield, release all. Raises ``TcpError``."""
        states = [tcp.decode(each) for each in encoded]
        decoded = time.monotonic()
        not_kept: set[str] = set()
        for sock, state in zip(self._socks, states, strict=True):
            not_kept.update(tcp.establish(sock, state))
        established = time.monotonic()
        self._shield.lift()
        for sock, state in zip(self._socks, states, strict=True):
            not_kept.update(tcp.release(sock, state))
        released = time.monotonic()
        gc.enable()
        return TookOver(decoded, established, released, frozenset(not_kept))

    def answer(self, deadline: float) -> None:
        """Answer a question on each connection, each in ``deadline`` seconds."""
        answer(self._socks, deadline)

    def close(self) -> None:
        """Close all; the peers have ended by then."""
        while self._socks:
            self._socks.pop().close()
