"""The netlink socket under netfilter, and the attributes its messages are made of.

Why not pyroute2: its conntrack socket needs 1 ms for a request (measured, 0.9.7) where the kernel
needs 10 us, and a handover sends one or more for each connection. Why not libnftables alone: it
reads the whole ruleset's chains and sets before each command, 4 ms on a node with 5,000 of them.

A request is one netlink message. ``exchange`` sends many at once, each answered for itself;
``transaction`` sends many that happen together or not at all (nf_tables only).
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from mycoproxy.errors import MycoError
from mycoproxy.netfilter import abi

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_GENERIC = struct.Struct(">BBH")  # struct nfgenmsg: family, version, resource (big endian)
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_ERRNO = struct.Struct("=i")

# One answer is at most this long: a dump fills its buffers up to 32 KiB.
_RECEIVE_BYTES = 1 << 17
# Requests that are under way at once. Their answers must fit the socket's receive buffer.
_WINDOW = 256
_BUFFER_BYTES = 1 << 24
# The kernel answers within the system call; a missing answer is a lost one.
_ANSWER_SECONDS = 5
_DUMP_ATTEMPTS = 5


class NetfilterError(MycoError):
    """The kernel refused a netfilter request. ``errno`` is its reason."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(
            f"{message}: {os.strerror(number)} ({errno.errorcode.get(number, number)})"
        )
        self.errno = number


class Request(NamedTuple):
    """One message: subsystem and operation, address family, flags, encoded attributes."""

    subsystem: int
    operation: int
    family: int
    attributes: bytes
    flags: int = 0


class Answer(NamedTuple):
    """What came back for one request: errno (0: done), and the attributes if it was a query."""

    errno: int
    attributes: bytes | None


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes (struct nlattr)."""
    size = 4 + len(payload)
    return _ATTRIBUTE.pack(size, kind) + payload + bytes(-size % 4)


def attribute_header(kind: int, size: int) -> bytes:
    """The header alone, of an attribute with ``size`` bytes in it."""
    return _ATTRIBUTE.pack(4 + size, kind)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | abi.NLA_F_NESTED, b"".join(attributes))


def walk(payload: bytes) -> list[tuple[int, bytes]]:
    """The attributes in ``payload``, in order: (type without its flags, payload)."""
    found: list[tuple[int, bytes]] = []
    offset, end = 0, len(payload) - 4
    unpack = _ATTRIBUTE.unpack_from
    while offset <= end:
        size, kind = unpack(payload, offset)
        if size < 4:
            break
        found.append((kind & abi.NLA_TYPE_MASK, payload[offset + 4 : offset + size]))
        offset += (size + 3) & ~3
    return found


def parse(payload: bytes) -> dict[int, bytes]:
    """The attributes in ``payload`` by type; of equal ones the last."""
    return dict(walk(payload))


class Nfnetlink:
    """A NETLINK_NETFILTER socket of the calling thread's network namespace."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, abi.NETLINK_NETFILTER
        )
        self._socket.bind((0, 0))
        self._socket.setsockopt(abi.SOL_NETLINK, abi.NETLINK_CAP_ACK, 1)
        for force, plain in (
            (abi.SO_SNDBUFFORCE, socket.SO_SNDBUF),
            (abi.SO_RCVBUFFORCE, socket.SO_RCVBUF),
        ):
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, force, _BUFFER_BYTES)
            except PermissionError:  # root of a user namespace only: what is allowed must do
                self._socket.setsockopt(socket.SOL_SOCKET, plain, _BUFFER_BYTES)
        self._socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", _ANSWER_SECONDS, 0)
        )
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def exchange(self, requests: Sequence[Request]) -> list[Answer]:
        """Send every request, and return each one's answer, in order.

        Requests are independent: one that fails stops no other. A query is answered by its
        object or by an errno, anything else by an errno (0 for done).
        """
        answers: list[Answer] = []
        for start in range(0, len(requests), _WINDOW):
            answers += self._exchange_window(requests[start : start + _WINDOW])
        return answers

    def _exchange_window(self, requests: Sequence[Request]) -> list[Answer]:
        first = self._sequence + 1
        self._socket.send(b"".join(map(self._frame, requests)))
        answers: list[Answer | None] = [None] * len(requests)
        missing = len(requests)
        while missing:
            for kind, _, sequence, payload in self._receive():
                index = sequence - first
                if not 0 <= index < len(answers) or answers[index] is not None:
                    continue  # a late answer to an exchange that was given up
                if kind == abi.NLMSG_ERROR:
                    answers[index] = Answer(-_ERRNO.unpack_from(payload)[0], None)
                else:
                    answers[index] = Answer(0, payload[_GENERIC.size :])
                missing -= 1
        return [answer for answer in answers if answer is not None]

    def dump(self, request: Request) -> list[bytes]:
        """The attributes of every object that a dump request yields.

        A dump that the kernel calls interrupted (the table changed meanwhile) is done again.
        Raises ``NetfilterError``.
        """
        for _ in range(_DUMP_ATTEMPTS):
            self._socket.send(self._frame(request._replace(flags=abi.NLM_F_DUMP)))
            found, interrupted = self._dumped(self._sequence)
            if not interrupted:
                break
        return found

    def _dumped(self, expected: int) -> tuple[list[bytes], bool]:
        found: list[bytes] = []
        interrupted = False
        while True:
            for kind, flags, sequence, payload in self._receive():
                if sequence != expected:
                    continue
                interrupted = interrupted or bool(flags & abi.NLM_F_DUMP_INTR)
                if kind in (abi.NLMSG_ERROR, abi.NLMSG_DONE):
                    number = -_ERRNO.unpack_from(payload)[0] if len(payload) >= 4 else 0
                    if number:
                        raise NetfilterError("cannot list a netfilter table", number)
                    return found, interrupted
                found.append(payload[_GENERIC.size :])

    def transaction(self, requests: Sequence[Request]) -> None:
        """All requests or none of them (nfnetlink batch; nf_tables only).

        Raises ``NetfilterError`` with the first refusal.
        """
        if not requests:
            return
        subsystem = requests[0].subsystem
        first = self._sequence + 1
        batch = [self._frame_batch(abi.NFNL_MSG_BATCH_BEGIN, subsystem)]
        batch += map(self._frame, requests[:-1])
        # Only the last is acknowledged; whatever fails answers by itself.
        batch.append(self._frame(requests[-1]._replace(flags=requests[-1].flags | abi.NLM_F_ACK)))
        last = self._sequence
        batch.append(self._frame_batch(abi.NFNL_MSG_BATCH_END, subsystem))
        self._socket.send(b"".join(batch))
        refusal = 0
        while True:
            for kind, _, sequence, payload in self._receive():
                if kind != abi.NLMSG_ERROR or not first <= sequence <= last:
                    continue
                refusal = refusal or -_ERRNO.unpack_from(payload)[0]
                if sequence == last or (sequence == first and refusal):
                    if refusal:
                        raise NetfilterError("the kernel refused a ruleset change", refusal)
                    return

    def _frame(self, request: Request) -> bytes:
        self._sequence += 1
        flags = abi.NLM_F_REQUEST | request.flags
        kind = request.subsystem << 8 | request.operation
        size = _HEADER.size + _GENERIC.size + len(request.attributes)
        return (
            _HEADER.pack(size, kind, flags, self._sequence, 0)
            + _GENERIC.pack(request.family, 0, 0)
            + request.attributes
        )

    def _frame_batch(self, kind: int, subsystem: int) -> bytes:
        self._sequence += 1
        size = _HEADER.size + _GENERIC.size
        return _HEADER.pack(size, kind, abi.NLM_F_REQUEST, self._sequence, 0) + _GENERIC.pack(
            0, 0, subsystem
        )

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        """The messages of one datagram: (type, flags, sequence number, payload)."""
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            raise NetfilterError(
                f"no answer from netfilter in {_ANSWER_SECONDS} s", errno.ETIMEDOUT
            ) from None
        offset = 0
        while offset + _HEADER.size <= len(data):
            size, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
            if kind != abi.NLMSG_NOOP:
                yield kind, flags, sequence, data[offset + _HEADER.size : offset + size]
            offset += (size + 3) & ~3
