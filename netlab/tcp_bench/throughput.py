"""Bulk throughput of one connection before it is moved, and two seconds after.

The task stands only during the move itself. Both figures are of the same connection in the same
run. The peer is in a process of its own.

The links have a rate, as real ones do. Without one it is the processor that is measured, and on a
small shared machine a connection that nobody moves has ratios from 0.6 to 1.6 (and with a rate from
0.998 to 1.001). What a rate cannot show, because the round trip is short, is a window that does not
grow: that is what the twin is for.
"""

import socket
import time
from dataclasses import dataclass

from mycoproxy.errors import MycoError
from netlab.tcp_bench.child import Child
from netlab.tcp_bench.connections import DEADLINE, connected
from netlab.tcp_bench.places import Places
from netlab.tcp_bench.series import CHUNK, Series
from netlab.tcp_bench.single_move import SingleMove

RATE = 2.0
"""Gbit/s of each link, each way, unless another is asked for. 0: no limit."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Seconds: bulk data runs for ``warm``, then it is measured for ``width``, then comes the
    move, and ``after`` it the middle of another ``width`` that is measured."""

    warm: float = 0.7
    width: float = 1.0
    after: float = 2.0

    @property
    def before_move(self) -> float:
        """From the beginning to the move."""
        return self.warm + self.width

    @property
    def after_move(self) -> float:
        """From the move to the end."""
        return self.after + self.width / 2 + 0.1


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes per second."""

    before: float
    after: float

    @property
    def ratio(self) -> float:
        """After by before."""
        return self.after / self.before


def to_client(places: Places, peer: Child, windows: Windows) -> Rates:
    """The moved socket sends. Raises ``MycoError`` if a byte is lost, ``OSError``."""
    with connected(places, peer, 1) as socks, SingleMove(places) as single:
        peer.start("receive")
        sent, at = _send_until(socks[0], time.monotonic() + windows.before_move)
        socks[0], live = single.move(socks[0]), time.monotonic()
        more, _ = _send_until(socks[0], live + windows.after_move)
        socks[0].shutdown(socket.SHUT_WR)
        series: Series = peer.result()
        _check(sent + more, series.total)
    return _rates(series, at, live, windows)


def to_server(places: Places, peer: Child, windows: Windows) -> Rates:
    """The moved socket receives. Otherwise as ``to_client``."""
    with connected(places, peer, 1) as socks, SingleMove(places) as single:
        socks[0].settimeout(DEADLINE)
        begin, series = time.monotonic(), Series()
        peer.start("send", windows.before_move + windows.after_move + 0.2)
        series.receive_until(socks[0], begin + windows.before_move)
        at = time.monotonic()
        socks[0], live = single.move(socks[0]), time.monotonic()
        socks[0].settimeout(DEADLINE)
        while series.add(len(socks[0].recv(len(CHUNK)))):
            pass
        _check(peer.result(), series.total)
    return _rates(series, at, live, windows)


def _send_until(sock: socket.socket, end: float) -> tuple[int, float]:
    """How many bytes were written, and when that ended."""
    sock.settimeout(DEADLINE)
    total = 0
    while (now := time.monotonic()) < end:
        total += sock.send(CHUNK)
    return total, now


def _check(sent: int, received: int) -> None:
    if sent != received:
        raise MycoError(f"{sent} bytes were sent over the move, {received} arrived")


def _rates(series: Series, at: float, live: float, windows: Windows) -> Rates:
    middle = live + windows.after
    return Rates(
        before=series.rate(at - windows.width, at),
        after=series.rate(middle - windows.width / 2, middle + windows.width / 2),
    )
