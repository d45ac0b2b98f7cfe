"""Two connections between the same two namespaces, with the same history. One of them is moved.

After the move there has to be more data than a window holds: it is by that, on a path as short as
this one, that the receiver's estimate of the round trip begins (``tcp_rcv_rtt_measure``,
net/ipv4/tcp_input.c), without which no receive buffer grows.
"""

import fcntl
import select
import socket
import struct
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Final, NamedTuple, Self

from mycoproxy.errors import MycoError
from netlab import twin
from netlab.tcp_bench.connections import DEADLINE
from netlab.tcp_bench.places import MOVING, STAYING, Places
from netlab.tcp_bench.single_move import SingleMove

_SIOCOUTQ: Final = 0x5411  # include/uapi/linux/sockios.h
_PIECE: Final = 1 << 16
_POLL: Final = 0.001  # seconds
_SIZE: Final = 24 << 20  # bytes

_OWNERS: Final = {
    "TCP_NODELAY": 1,
    "TCP_USER_TIMEOUT": 45_000,  # milliseconds
    "TCP_NOTSENT_LOWAT": 256 * 1024,  # bytes
    "SO_KEEPALIVE": 1,
    "TCP_KEEPIDLE": 60,  # seconds
    "TCP_KEEPINTVL": 10,
    "TCP_KEEPCNT": 5,
    "IP_TOS": 0x10,
}


class Ends(NamedTuple):
    """The two ends of a connection."""

    client: socket.socket
    server: socket.socket


class Twins:
    """``moved`` and ``stayed``; they are twins until ``move``.

    The servers' owner has set a few options, to see them again.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        with ExitStack() as stack:
            self.moved, self.stayed = (
                self._connect(stack, address) for address in (MOVING, STAYING)
            )
            self._single = stack.enter_context(SingleMove(places))
            self._stack = stack.pop_all()

    def _connect(self, stack: ExitStack, address: str) -> Ends:
        with self._places.source.call(socket.create_server, (address, 0)) as listener:
            listener.settimeout(DEADLINE)
            client = stack.enter_context(
                self._places.client.call(socket.create_connection, listener.getsockname(), DEADLINE)
            )
            server = stack.enter_context(listener.accept()[0])
        for name, value in _OWNERS.items():
            server.setsockopt(*twin.OPTIONS[name], value)
        return Ends(client, server)

    def move(self) -> None:
        """Move ``moved`` from the source to the target."""
        server = self._single.move(self.moved.server)
        self._stack.push(server)
        self.moved = self.moved._replace(server=server)

    def traffic(self, *, rounds: int = 30, size: int = _SIZE) -> None:
        """The same on both: questions and answers, then ``size`` bytes each way.

        Returns when all is acknowledged. Raises ``MycoError``.
        """
        for ends in (self.stayed, self.moved):
            for _ in range(rounds):
                _transfer(ends.client, ends.server, 100)
                _transfer(ends.server, ends.client, 1000)
            _transfer(ends.server, ends.client, size)
            _transfer(ends.client, ends.server, size)
        for sock in (*self.stayed, *self.moved):
            _wait_until_acknowledged(sock)

    def server_rows(self) -> list[twin.Row]:
        """The servers' ends, side by side; the moved one is at the target."""
        places = self._places
        return twin.side_by_side(
            twin.read(places.source, self.stayed.server),
            twin.read(places.target, self.moved.server),
        )

    def client_rows(self) -> list[twin.Row]:
        """The clients' ends, neither of which was moved."""
        return twin.side_by_side(
            *(twin.read(self._places.client, ends.client) for ends in (self.stayed, self.moved))
        )

    def close(self) -> None:
        """Close all, undo the move's path."""
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


def _transfer(sender: socket.socket, receiver: socket.socket, size: int) -> None:
    """``size`` bytes, by one thread, and all of them acknowledged."""
    end = time.monotonic() + DEADLINE
    to_send, to_receive = size, size
    sender.setblocking(False)
    receiver.setblocking(False)
    while to_send or to_receive:
        writers = [sender] if to_send else []
        readable, writable, _ = select.select([receiver], writers, [], end - time.monotonic())
        if not readable and not writable:
            raise MycoError(f"{to_receive} of {size} bytes did not arrive in {DEADLINE:g} s")
        if writable:
            to_send -= sender.send(bytes(min(to_send, _PIECE)))
        if readable:
            got = len(receiver.recv(_PIECE))
            if not got:
                raise MycoError(f"the connection ended, {to_receive} of {size} bytes missing")
            to_receive -= got


def _wait_until_acknowledged(sock: socket.socket) -> None:
    end = time.monotonic() + DEADLINE
    while any(fcntl.ioctl(sock, _SIOCOUTQ, bytes(struct.calcsize("i")))):
        if time.monotonic() > end:
            raise MycoError(f"not acknowledged within {DEADLINE:g} s: what {sock} sent")
        time.sleep(_POLL)
