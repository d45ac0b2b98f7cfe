"""Many connections from the peer's process to the source, and the proof that each one works."""

import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from mycoproxy import tcp
from mycoproxy.errors import MycoError
from netlab.tcp_bench.child import Child
from netlab.tcp_bench.places import MOVING, Places

DEADLINE: Final = 20.0
"""Seconds that any one connection may take to say something."""

_BACKLOG: Final = 4096
_QUESTION: Final = struct.Struct("!IHxx")  # which round, which of the peer's ports


@contextmanager
def connected(places: Places, peer: Child, count: int) -> Iterator[list[socket.socket]]:
    """The source's ends of ``count`` connections, all of which have been used; closed afterwards.

    ``peer`` has the other ends. Raises ``MycoError``, ``OSError``.
    """
    socks: list[socket.socket] = []
    try:
        with places.source.call(socket.create_server, (MOVING, 0), backlog=_BACKLOG) as listener:
            listener.settimeout(DEADLINE)
            peer.start("connect", MOVING, listener.getsockname()[1], count)
            while len(socks) < count:
                socks.append(listener.accept()[0])
                # As nearly every server does.
                socks[-1].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.result()
        peer.start("ask", 0)
        answer(socks)
        peer.result()
        yield socks
    finally:
        for sock in socks:
            sock.close()
        peer.call("close")  # by a reset: no end is left in TIME_WAIT


def read_settings(sock: socket.socket) -> tcp.Settings:
    """What a handover reads of a connection ahead of the hold. Raises ``MycoError``: refused."""
    if (reason := tcp.refusal(sock)) is not None:
        raise MycoError(f"{sock} cannot be moved: {reason}")
    return tcp.options.read(sock, connected=True)


def question(number: int, port: int) -> bytes:
    """What the peer asks in round ``number`` over the connection that has its port ``port``."""
    return _QUESTION.pack(number, port)


def answer_to(asked: bytes) -> bytes:
    """The right answer: every bit the other way round."""
    return bytes(byte ^ 0xFF for byte in asked)


def answer(socks: Sequence[socket.socket], deadline: float = DEADLINE) -> None:
    """Answer one question on each of them. Raises ``MycoError``, ``OSError`` (a timeout is one)."""
    for sock in socks:
        sock.settimeout(deadline)
        asked = sock.recv(_QUESTION.size, socket.MSG_WAITALL)
        if len(asked) != _QUESTION.size:
            raise MycoError(f"{sock.getpeername()} said {asked!r} and not a question")
        sock.sendall(answer_to(asked))
        sock.settimeout(None)
