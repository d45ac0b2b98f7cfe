"""Use both ends of a connection from one thread: nothing blocks, everything has a deadline.

Failures are ``AssertionError``s, as in any check that a test calls.
"""

import array
import fcntl
import random
import select
import socket
import termios
import time
from collections.abc import Callable, Sequence

from netlab.tcp_soak.ends import End, Pair

DEADLINE = 20.0
"""Seconds that anything may take."""
STILL_MS = 60
"""Milliseconds without room after which a writer counts as blocked: longer than a window update
takes on its way."""

_MOST = 1 << 18
_GONE = select.POLLERR | select.POLLHUP | select.POLLRDHUP


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Poll until ``condition`` holds."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"waited {DEADLINE:g} s for {what}"
        time.sleep(0.0005)


def events(end: End, wanted: int, *, milliseconds: float = 0) -> int:
    """What poll(2) says now, or within some time."""
    poll = select.poll()
    poll.register(end.sock, wanted)
    found = poll.poll(milliseconds)
    return found[0][1] if found else 0


def wait_for(end: End, wanted: int) -> int:
    """Wait until poll(2) says one of ``wanted`` (or that it is over); what it says."""
    found = events(end, wanted, milliseconds=DEADLINE * 1e3)
    assert found, f"waited {DEADLINE:g} s for events {wanted:#x}"
    return found


def queued(end: End) -> int:
    """Bytes that can be read (FIONREAD)."""
    count = array.array("i", [0])
    fcntl.ioctl(end.sock, termios.FIONREAD, count)
    return count[0]


def unacknowledged(end: End) -> int:
    """Bytes that the peer has not acknowledged (SIOCOUTQ is TIOCOUTQ)."""
    count = array.array("i", [0])
    fcntl.ioctl(end.sock, termios.TIOCOUTQ, count)
    return count[0]


def settle(end: End) -> None:
    """Wait until everything it has sent is acknowledged."""
    wait_until(lambda: not unacknowledged(end), "everything acknowledged")


def send(end: End, data: bytes | memoryview) -> int:
    """What the kernel takes of ``data`` now, which may be nothing."""
    try:
        return end.sock.send(data)
    except BlockingIOError:
        return 0


def receive(end: End, most: int = _MOST) -> bytes | None:
    """What is there: some bytes, ``b""`` at the end of the stream, None if there is nothing yet."""
    try:
        return end.sock.recv(most)
    except BlockingIOError:
        return None


def send_all(end: End, data: bytes) -> None:
    """Send all of ``data``, whose receiver does not read meanwhile."""
    view = memoryview(data)
    while view:
        taken = send(end, view)
        view = view[taken:]
        if not taken:
            wait_for(end, select.POLLOUT)


def receive_exactly(end: End, count: int) -> bytes:
    """``count`` bytes."""
    parts: list[bytes] = []
    while count:
        part = receive(end, min(count, _MOST))
        if part is None:
            wait_for(end, select.POLLIN)
            continue
        assert part, f"the stream has ended, {count} bytes are missing"
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def expect(end: End, data: bytes) -> None:
    """``data`` arrives next."""
    found = receive_exactly(end, len(data))
    assert found == data, _difference(found, data)


def expect_end(end: End) -> None:
    """The stream ends here, and stays ended."""
    wait_for(end, select.POLLIN | select.POLLRDHUP)
    for _ in range(3):
        found = receive(end)
        assert found == b"", f"the end of the stream is wanted, {found!r:.60} found"


def expect_silence(end: End) -> None:
    """There is nothing to read, and no end."""
    found = receive(end)
    assert found is None, f"nothing is wanted, {found!r:.60} found"


def fill(end: End, seed: int = 0) -> bytes:
    """Write until the writer is blocked; what the kernel took."""
    source = random.Random(seed)  # noqa: S311  (not a secret)
    taken: list[bytes] = []
    rest = b""
    while True:
        rest = rest or source.randbytes(1 << 16)
        count = send(end, rest)
        taken.append(rest[:count])
        rest = rest[count:]
        if count:
            continue
        # The kernel takes single bytes again long before it says that there is room.
        if not events(end, select.POLLOUT, milliseconds=STILL_MS):
            count = send(end, rest[:1])
            if not count:
                return b"".join(taken)
            taken.append(rest[:count])
            rest = rest[count:]


class Transfer:
    """One direction of a `run`: what is to be sent, how much was sent and has arrived."""

    def __init__(self, sender: End, receiver: End, data: bytes, *, seed: int, most: int) -> None:
        self.sender, self.receiver, self.data = sender, receiver, data
        self.sent = 0
        self.received = bytearray()
        self._view = memoryview(data)
        self._random = random.Random(seed)  # noqa: S311
        self._most = most

    @property
    def is_done(self) -> bool:
        return len(self.received) == len(self.data)

    def step(self) -> bool:
        """Send some and receive some, each of a random size. Did anything happen?"""
        sent = 0
        if self.sent < len(self.data):
            size = self._random.randint(1, self._most)
            sent = send(self.sender, self._view[self.sent : self.sent + size])
            self.sent += sent
        found = receive(self.receiver, self._random.randint(1, self._most))
        assert found != b"", f"the stream has ended after {len(self.received)} bytes"
        self.received += found or b""
        return bool(sent or found)


def run(transfers: Sequence[Transfer], pair: Pair, *, moves: int) -> None:
    """Carry all ``transfers`` out at once, with a move of the pair ``moves`` times on the way."""
    total = sum(len(each.data) for each in transfers)
    marks = [total * (number + 1) // (moves + 1) for number in range(moves)]
    end = time.monotonic() + DEADLINE
    while not all(each.is_done for each in transfers):
        assert time.monotonic() < end, (
            f"{[len(each.received) for each in transfers]} of {total} bytes in {DEADLINE:g} s"
        )
        progress = [each.step() for each in transfers if not each.is_done]
        if marks and sum(each.sent for each in transfers) >= marks[0]:
            marks.pop(0)
            pair.move()
        elif not any(progress):
            _wait_for_any(transfers)
    assert not marks
    for each in transfers:
        assert each.received == each.data, _difference(bytes(each.received), each.data)


def _wait_for_any(transfers: Sequence[Transfer]) -> None:
    poll = select.poll()
    wanted: dict[End, int] = {}
    for each in transfers:
        if not each.is_done:
            wanted[each.receiver] = wanted.get(each.receiver, 0) | select.POLLIN
        if each.sent < len(each.data):
            wanted[each.sender] = wanted.get(each.sender, 0) | select.POLLOUT
    for end, mask in wanted.items():
        poll.register(end.sock, mask)
    poll.poll(DEADLINE * 1e3)


def transfer(pair: Pair, data: bytes, *, moves: int = 0, most: int = 1 << 16) -> None:
    """``data`` from left to right; see `run`."""
    run([Transfer(pair.left, pair.right, data, seed=1, most=most)], pair, moves=moves)


def expect_reset(end: End) -> None:
    """The peer has broken the connection off: that is said once, then the stream is at its end."""
    wait_until(lambda: events(end, 0) & _GONE & ~select.POLLRDHUP, "a reset")
    try:
        found = receive(end)
    except ConnectionResetError:
        pass
    else:
        raise AssertionError(f"ECONNRESET is wanted, {found!r:.60} found")
    assert receive(end) == b""
    try:
        send(end, b"x")
    except BrokenPipeError:
        pass
    else:
        raise AssertionError("EPIPE is wanted after a reset")


def pending_error(end: End) -> int:
    """SO_ERROR, which is taken by that."""
    return end.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _difference(found: bytes, wanted: bytes) -> str:
    for place, (one, other) in enumerate(zip(found, wanted, strict=False)):
        if one != other:
            return f"byte {place} of {len(wanted)} is {one:#x}, {other:#x} is wanted"
    return f"{len(found)} bytes found, {len(wanted)} wanted"
