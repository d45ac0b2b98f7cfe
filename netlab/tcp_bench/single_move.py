"""One connection from the source to the target, with all that a move has: hold, taps, shield.

In one process, whose threads live in both namespaces.
"""

import socket
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from mycoproxy import tcp
from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.netfilter.hold import Hold
from mycoproxy.netfilter.nft import Nft
from mycoproxy.netfilter.shield import Shield
from netlab.tcp_bench.places import Places


class SingleMove:
    """The hold and the shield of one move, ready. The shield stands until ``move`` lifts it."""

    def __init__(self, places: Places) -> None:
        self._places = places
        source, target = places.source, places.target
        with ExitStack() as stack:
            here, there = source.call(Nft), target.call(Nft)
            stack.callback(source.call, here.close)
            stack.callback(target.call, there.close)
            self._hold = Hold(here, "bench-single")
            stack.callback(source.call, self._hold.release)
            source.call(self._hold.install)
            self._shield = Shield(there, "bench-single")
            stack.callback(target.call, self._shield.lift)
            target.call(self._shield.raise_)
            self._there = target.call(tcp.Tap)
            stack.callback(target.call, self._there.close)
            self._stack = stack.pop_all()

    def move(self, sock: socket.socket) -> socket.socket:
        """Move the connection of ``sock``, which is closed. Returns its new socket.

        Raises ``TcpError`` and ``NetfilterError``.
        """
        places = self._places
        moved: socket.socket = places.target.call(socket.socket)
        here, state = places.source.call(self._capture, sock)
        places.lead_to_target()
        lost = places.source.call(here.lost, [state])
        places.target.call(self._go_live, moved, tcp.decode(tcp.encode(state)), lost)
        sock.close()
        return moved

    def close(self) -> None:
        """Lift hold and shield, lead the client to the source again."""
        self._stack.close()
        self._places.lead_to_source()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _capture(self, sock: socket.socket) -> tuple[tcp.Tap, tcp.TcpState]:
        name = FourTuple(Endpoint(*sock.getsockname()), Endpoint(*sock.getpeername()))
        tap = tcp.Tap()  # only now: it would overflow with what arrives before
        self._stack.callback(self._places.source.call, tap.close)
        self._hold.hold([name])
        return tap, tcp.capture(sock)

    def _go_live(
        self, moved: socket.socket, state: tcp.TcpState, lost: tuple[tcp.Segment, ...]
    ) -> None:
        tcp.establish(moved, state)
        self._shield.lift()
        tcp.release(moved, state)
        tcp.inject([*lost, *self._there.lost([state])])
