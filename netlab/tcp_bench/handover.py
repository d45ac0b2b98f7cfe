"""A whole handover, from the beginning of the hold to the end of the last release.

Everything is there beforehand: the hold (empty), the shield, the target's sockets, and a route to
the peers whose neighbours are known. What the owner has set on its sockets is read beforehand too,
as a handover does it while CRIU dumps: it takes no hold. In between no garbage is collected, as in
``migrate``. Then every peer asks on its connection, and gets the right answer from the target.
"""

import gc
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Self

from mycoproxy import tcp
from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.netfilter.hold import Hold
from mycoproxy.netfilter.nft import Nft
from netlab.tcp_bench.child import Child
from netlab.tcp_bench.connections import DEADLINE, connected, read_settings
from netlab.tcp_bench.places import Places
from netlab.tcp_bench.target import Target, TookOver


@dataclass(frozen=True, slots=True)
class Handover:
    """Seconds. ``total_s`` is the sum of the others, except ``options_s``, which is ahead of the
    hold: to ask for a refusal, and to read what the owner has set. ``codec_s`` is encoding, sending
    to the other process, decoding; ``rehome_s`` one route at the client; ``release_s`` begins with
    lifting the shield."""

    connections: int
    options_s: float
    total_s: float
    hold_s: float
    capture_s: float
    codec_s: float
    rehome_s: float
    establish_s: float
    release_s: float
    not_kept: frozenset[str]

    @property
    def per_connection_us(self) -> float:
        """Microseconds."""
        return self.total_s / self.connections * 1e6

    def parts(self) -> dict[str, float]:
        """The parts of the total by name, seconds."""
        return {
            name: round(value, 6)
            for name, value in asdict(self).items()
            if name.endswith("_s") and name not in ("total_s", "options_s")
        }


class Handovers:
    """Handovers between the processes of one ``Places``, one after the other.

    ``deadline``: seconds that a connection may take to answer afterwards.
    """

    def __init__(self, places: Places, peer: Child, *, deadline: float = DEADLINE) -> None:
        self._deadline = deadline
        self._places = places
        self._peer = peer
        with ExitStack() as stack:
            self._target = stack.enter_context(Child(places.target, Target))
            nft = places.source.call(Nft)
            stack.callback(places.source.call, nft.close)
            self._hold = Hold(nft, "bench")
            stack.callback(places.source.call, self._hold.release)
            places.source.call(self._hold.install)
            self._stack = stack.pop_all()

    def run(self, count: int) -> Handover:
        """Hand over ``count`` live, idle connections.

        Raises ``MycoError`` if any step fails, or any connection afterwards.
        """
        self._places.lead_to_source()
        self._target.start("prepare", count)
        with connected(self._places, self._peer, count) as socks:
            self._target.result()
            try:
                handover = self._places.source.call(self._hand_over, socks)
                self._peer.start("ask", 1, self._deadline)
                self._target.call("answer", self._deadline)
                self._peer.result()
            finally:
                # In repair mode this is silent.
                while socks:
                    socks.pop().close()
                self._places.source.call(self._hold.install)
        self._target.call("close")
        return handover

    def close(self) -> None:
        """End the target's process, remove the hold."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _hand_over(self, socks: Sequence[socket.socket]) -> Handover:
        flows = [
            FourTuple(Endpoint(*sock.getsockname()), Endpoint(*sock.getpeername()))
            for sock in socks
        ]
        gc.collect()
        gc.disable()
        try:
            before = time.monotonic()
            settings = [read_settings(sock) for sock in socks]
            begin = time.monotonic()
            self._hold.hold(flows)
            held = time.monotonic()
            states = [
                tcp.capture(sock, settings=each) for sock, each in zip(socks, settings, strict=True)
            ]
            captured = time.monotonic()
            self._places.lead_to_target()
            rehomed = time.monotonic()
            self._target.start("take_over", [tcp.encode(state) for state in states])
            taken: TookOver = self._target.result()
        finally:
            gc.enable()
        return Handover(
            connections=len(socks),
            options_s=begin - before,
            total_s=taken.released - begin,
            hold_s=held - begin,
            capture_s=captured - held,
            rehome_s=rehomed - captured,
            codec_s=taken.decoded - rehomed,
            establish_s=taken.established - taken.decoded,
            release_s=taken.released - taken.established,
            not_kept=taken.not_kept,
        )
