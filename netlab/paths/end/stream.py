"""One end of one connection: what it sends and when, what it receives, how long it waited.

Both ends begin with the same twelve bytes: who the connection is and how much each of its ends
sends at each beat. Then each sends its stream. An end that sends nothing of its own answers with as
many bytes as it was sent.
"""

import errno
import hashlib
import socket
import struct
from typing import Final, TypedDict

from netlab.paths.end.content import count_wrong, piece, start_of

_HELLO: Final = struct.Struct("!4sIHH")  # magic, connection, bytes a beat of opener and acceptor
_MAGIC: Final = b"PATH"
_READ_BYTES: Final = 1 << 16
_QUESTION_BYTES: Final = 64


class Report(TypedDict):
    """What an end knows of its connection. Times are CLOCK_MONOTONIC seconds.

    ``gap`` is the longest time between two receipts since ``begin``, and ``gap_at`` its beginning;
    of a connection on which nothing is sent, the time from the question to the whole answer.
    ``error`` is why it ended early, with ``reset`` if that was a reset; "" if it did not.
    """

    connection: int
    opener: bool
    local: str
    peer: str
    open: bool
    sent: int
    received: int
    wrong: int
    sent_sha256: str
    received_sha256: str
    gap: float
    gap_at: float
    reset: bool
    error: str


class StrangerError(Exception):
    """What came is not the beginning of one of our connections."""


class Stream:
    """One end. Everything it does it does at once: its socket does not block."""

    def __init__(
        self, connection: socket.socket, *, hello: tuple[int, int, int] | None = None
    ) -> None:
        """``hello`` is the opener's: connection, its bytes a beat, the acceptor's."""
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connection
        self.opener = hello is not None
        self.number = -1
        self.ended = False
        self._greeted = False  # our hello is sent
        self._met = False  # theirs is here
        self._beginning = b""
        self._hello = hello
        self._bytes_a_beat = self._other_bytes_a_beat = 0
        self._starts = (0, 0)
        self._sent = self._received = self._wrong = 0
        self._sent_digest = hashlib.sha256()
        self._received_digest = hashlib.sha256()
        self._stopped = False
        self._spoil = False
        self._asked = 0.0
        self._last = self._gap = self._gap_at = 0.0
        self._reset = False
        self._error = ""
        self._local = self._peer = ""
        if hello is not None:
            self._agree(*hello)

    @property
    def open(self) -> bool:
        """Both ends know each other."""
        return self._met and self._greeted

    @property
    def quiet(self) -> bool:
        """Nothing is sent by itself."""
        return self._bytes_a_beat == 0 and self._other_bytes_a_beat == 0

    def greet(self) -> None:
        """Say who we are: the opener once it is connected, the acceptor when it knows."""
        if self._hello is not None and not self._greeted and not self.ended:
            self._greeted = self._put(_HELLO.pack(_MAGIC, *self._hello)) == _HELLO.size

    def _agree(self, number: int, opener_bytes: int, acceptor_bytes: int) -> None:
        self.number = number
        self._hello = (number, opener_bytes, acceptor_bytes)
        ours, theirs = (opener_bytes, acceptor_bytes)[:: 1 if self.opener else -1]
        self._bytes_a_beat, self._other_bytes_a_beat = ours, theirs
        self._starts = (
            start_of(number, opener=self.opener),
            start_of(number, opener=not self.opener),
        )

    def beat(self) -> None:
        """Send what is due at each beat."""
        if self.open and not self._stopped and self._bytes_a_beat:
            self._send(self._bytes_a_beat)

    def read(self, now: float) -> None:
        """Take what is there. Raises ``StrangerError`` if it is not one of our connections."""
        try:
            data = self.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)
            return
        if not data:
            self._end("end of stream")
            return
        if not self._met:
            data = self._meet(self._beginning + data, now)
        if data:
            self._take(data, now)

    def _meet(self, data: bytes, now: float) -> bytes:
        """Read the other end's hello; what follows it."""
        if len(data) < _HELLO.size:
            self._beginning = data
            return b""
        magic, *hello = _HELLO.unpack_from(data)
        if magic != _MAGIC or (self._hello is not None and tuple(hello) != self._hello):
            raise StrangerError
        if not self.opener:
            self._agree(*hello)
        self._met = True
        self._last = now
        self.greet()
        return data[_HELLO.size :]

    def _take(self, data: bytes, now: float) -> None:
        expected = piece(self._starts[1], self._received, len(data))
        self._wrong += count_wrong(expected, data)
        self._received_digest.update(data)
        self._received += len(data)
        if not self.quiet:
            self._wait_ended(self._last, now)
        elif self._asked:
            if self._received == self._sent:
                self._wait_ended(self._asked, now)
                self._asked = 0.0
        elif self._sent < self._received:
            self._send(self._received - self._sent)
        self._last = now

    def _wait_ended(self, since: float, now: float) -> None:
        if now - since > self._gap:
            self._gap, self._gap_at = now - since, since

    def begin(self, now: float) -> None:
        """Measure gaps from now on."""
        self._gap, self._gap_at, self._last = 0.0, now, now

    def ask(self, now: float) -> None:
        """Send the question of a connection on which nothing else is sent."""
        if self.open and self.quiet:
            self._asked = now
            self._send(_QUESTION_BYTES)

    def stop(self) -> None:
        """Send nothing any more."""
        self._stopped = True

    def spoil(self) -> None:
        """Let the next byte that is sent be a wrong one."""
        self._spoil = True

    def reset(self) -> None:
        """Tell the other end with a reset that it is over."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._end("reset by this end, as it was told")

    def _send(self, size: int) -> None:
        if self.ended:
            return
        data: bytes | memoryview = piece(self._starts[0], self._sent, size)
        if self._spoil:
            self._spoil = False
            data = bytes([data[0] ^ 1]) + bytes(data[1:])
        sent = self._put(data)
        self._sent_digest.update(data[:sent])
        self._sent += sent

    def _put(self, data: bytes | memoryview) -> int:
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._fail(error)
            return 0

    def _fail(self, error: OSError) -> None:
        self._reset = error.errno in (errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED)
        self._end(error.strerror or str(error))

    def failed_to_connect(self, number: int) -> None:
        """``number`` is the errno (SO_ERROR)."""
        self._fail(OSError(number, errno.errorcode.get(number, str(number))))

    def _end(self, why: str) -> None:
        if not self.ended:
            self.learn_names()
            self.ended = True
            self._error = why
            self.socket.close()

    def learn_names(self) -> None:
        """Ask the kernel for the addresses of both ends, as they are now."""
        if self.ended:
            return
        try:
            self._local = _name(self.socket.getsockname())
            self._peer = _name(self.socket.getpeername())
        except OSError:  # not connected yet, or not any more: then what was known stays
            return

    def report(self) -> Report:
        """All that is known of the connection."""
        self.learn_names()
        return Report(
            connection=self.number,
            opener=self.opener,
            local=self._local,
            peer=self._peer,
            open=self.open,
            sent=self._sent,
            received=self._received,
            wrong=self._wrong,
            sent_sha256=self._sent_digest.hexdigest(),
            received_sha256=self._received_digest.hexdigest(),
            gap=self._gap,
            gap_at=self._gap_at,
            reset=self._reset,
            error=self._error,
        )


def _name(address: tuple[str, int]) -> str:
    """``192.0.2.1:80``, ``[2001:db8::1]:80``."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
