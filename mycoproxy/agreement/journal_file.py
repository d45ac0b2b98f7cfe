"""The form of a journal's file: frames one after another, then zeros.

The zeros are room that was made when the file was: a record that fits in it needs no new block,
and changes no size, so that forcing it writes data only. A frame that is not whole ends the
journal, if nothing whole comes after it: it was being written when everything stopped, so nobody
acted on it. If something whole does, the file is damaged, and says nothing that can be relied on.
"""

import zlib
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final

import msgpack

MAGIC: Final = b"mycJ"
_HEADER: Final = Struct(">4sII")  # magic, bytes of the body, CRC-32 of length and body
LARGEST_BODY: Final = 256 * 1024 * 1024


class DamagedError(Exception):
    """Not the tail alone is broken."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A record (``name`` empty, ``body`` a plain map) or an attachment (bytes)."""

    name: str
    body: Any


def encode(frame: Frame) -> bytes:
    """One frame as it is in the file."""
    body: bytes = msgpack.packb([frame.name, frame.body])
    if len(body) > LARGEST_BODY:
        raise ValueError(f"{len(body)} bytes for one record; {LARGEST_BODY} are the most")
    header = _HEADER.pack(MAGIC, len(body), _checksum(body))
    return header + body


def decode(data: bytes) -> tuple[list[Frame], int]:
    """The frames, and where they end. Raises ``DamagedError``."""
    frames, at = [], 0
    while (found := _frame(data, at)) is not None:
        frame, at = found
        frames.append(frame)
    _check_tail(data, at)
    return frames, at


def _checksum(body: bytes | memoryview) -> int:
    # Zeros behind a torn magic must not be a frame: the checksum of no byte is not 0.
    return zlib.crc32(body, len(body) ^ 0xFFFFFFFF)


def _frame(data: bytes, at: int) -> tuple[Frame, int] | None:
    begin = at + _HEADER.size
    if begin > len(data):
        return None
    magic, length, checksum = _HEADER.unpack_from(data, at)
    body = memoryview(data)[begin : begin + length]
    if magic != MAGIC or len(body) != length or _checksum(body) != checksum:
        return None
    try:
        name, content = msgpack.unpackb(body)
    except (ValueError, TypeError) as error:
        raise DamagedError(f"a record that no version wrote, at byte {at}: {error}") from None
    if not isinstance(name, str) or (name and not isinstance(content, bytes)):
        raise DamagedError(f"a record that no version wrote, at byte {at}")
    return Frame(name, content), begin + length


def _check_tail(data: bytes, end: int) -> None:
    at = data.find(MAGIC, end + 1)
    while at != -1:
        if _frame(data, at) is not None:
            raise DamagedError(f"a broken record at byte {end}, and a whole one at byte {at}")
        at = data.find(MAGIC, at + 1)
