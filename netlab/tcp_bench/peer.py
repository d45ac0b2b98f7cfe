"""The peers: the far ends of all connections, in a process of their own. They never move."""

import socket
import struct
import time

from mycoproxy.errors import MycoError
from netlab.tcp_bench.connections import DEADLINE, answer_to, question
from netlab.tcp_bench.series import CHUNK, Series

_RESET_ON_CLOSE = struct.pack("=ii", 1, 0)  # struct linger


class Peer:
    """What the parent calls; see ``child``."""

    def __init__(self) -> None:
        self._socks: list[socket.socket] = []

    def connect(self, address: str, port: int, count: int) -> None:
        """Open ``count`` connections."""
        for _ in range(count):
            self._socks.append(socket.create_connection((address, port), DEADLINE))

    def ask(self, number: int, deadline: float = DEADLINE) -> None:
        """One question on each connection, all at once. Every answer must be right.

        Raises ``MycoError`` that names the first that is not.
        """
        asked = [question(number, sock.getsockname()[1]) for sock in self._socks]
        for sock, text in zip(self._socks, asked, strict=True):
            sock.sendall(text)
        for sock, text in zip(self._socks, asked, strict=True):
            sock.settimeout(deadline)
            try:
                got = sock.recv(len(text), socket.MSG_WAITALL)
            except OSError as error:
                raise MycoError(f"connection {sock.getsockname()[1]}: {error}") from error
            if got != answer_to(text):
                raise MycoError(f"connection {sock.getsockname()[1]}: {got!r} is a wrong answer")

    def receive(self) -> Series:
        """Read the only connection to its end."""
        return Series.receive(self._only())

    def send(self, seconds: float) -> int:
        """Write to the only connection for ``seconds``, then close its direction. Bytes written."""
        sock, total, end = self._only(), 0, time.monotonic() + seconds
        while time.monotonic() < end:
            total += sock.send(CHUNK)
        sock.shutdown(socket.SHUT_WR)
        return total

    def close(self) -> None:
        """End every connection by a reset."""
        while self._socks:
            sock = self._socks.pop()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            sock.close()

    def _only(self) -> socket.socket:
        (sock,) = self._socks
        return sock
