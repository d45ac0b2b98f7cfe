"""Frames: a length of four bytes (network order), then one msgpack value of that many bytes.

msgpack's own decoder allocates what an array's header promises before it has seen the elements,
in each of up to 1,024 nested levels: 5 KiB of input can ask for hundreds of megabytes. So the
*structure* of a payload is walked first (``check``), in time that grows with its elements and
without allocating anything; only what has passed is decoded. The walk also makes the format
strict: no extension types, map keys are strings, and no byte is left over.
"""

import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgpack

from mycoproxy.peering.errors import FrameError

LARGEST_FRAME: Final = 256 * 1024
"""Bytes of a frame's payload, at most."""

_LENGTH: Final = struct.Struct(">I")

# The first byte of a value (msgpack's specification). Size with the first byte, for values of
# fixed size; 0 where the size has to be read.
_FIXED: Final = [0] * 256
for _byte in (*range(0x80), *range(0xE0, 0x100), 0xC0, 0xC2, 0xC3):
    _FIXED[_byte] = 1
for _byte in range(0xA0, 0xC0):
    _FIXED[_byte] = 1 + (_byte & 0x1F)
for _byte, _width in {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}.items():
    _FIXED[_byte] = 1 + _width
for _byte, _width in {0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}.items():
    _FIXED[_byte] = 1 + _width

_IS_STRING: Final = [0xA0 <= byte < 0xC0 or byte in (0xD9, 0xDA, 0xDB) for byte in range(256)]
# Byte strings and strings: how many bytes their length has.
_SIZED: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_ARRAYS: Final = {0xDC: 2, 0xDD: 4}
_MAPS: Final = {0xDE: 2, 0xDF: 4}


class Shape(NamedTuple):
    """How much structure a payload may have."""

    depth: int = 16
    """Arrays and maps inside each other."""
    elements: int = 65536
    """Values in all, a map's keys included."""


SHAPE: Final = Shape()


def encode(value: object, *, largest: int = LARGEST_FRAME) -> bytes:
    """One frame. Raises ``FrameError`` for what ``decode`` would refuse on the other side."""
    payload = pack(value)
    if len(payload) > largest:
        raise FrameError(
            f"a frame of {len(payload)} bytes; at most {largest} fit: send the rest as a body"
        )
    return _LENGTH.pack(len(payload)) + payload


def pack(value: object, shape: Shape = SHAPE) -> bytes:
    """``value`` as msgpack; ``FrameError`` if ``unpack`` would refuse it. For bodies, too."""
    payload: bytes = msgpack.packb(value)
    check(payload, shape)
    return payload


def unpack(payload: bytes | bytearray | memoryview, shape: Shape = SHAPE) -> Any:  # noqa: ANN401 - it is any
    """The one value in ``payload``. Raises ``FrameError`` that says what is wrong, and where."""
    check(payload, shape)
    try:
        return msgpack.unpackb(payload, strict_map_key=True, object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise FrameError(f"a string that is not UTF-8: {error.reason}") from None


def check(payload: bytes | bytearray | memoryview, shape: Shape = SHAPE) -> None:
    """Walk the structure of one value. Raises ``FrameError``. Allocates nothing that grows."""
    fixed, is_string = _FIXED, _IS_STRING
    end = len(payload)
    position = 0
    total = 1
    left = 1  # values to come in the innermost array or map
    in_map = False
    outer: list[tuple[int, bool]] = []
    while True:
        while not left:
            if not outer:
                if position != end:
                    raise FrameError(f"{end - position} bytes after the value's end")
                return
            left, in_map = outer.pop()
        if position >= end:
            raise FrameError(f"cut short: the value goes on at byte {position}")
        byte = payload[position]
        if in_map and not left & 1 and not is_string[byte]:
            raise FrameError(f"a map's key that is no string, at byte {position}")
        left -= 1
        if size := fixed[byte]:
            position += size
        elif width := _SIZED.get(byte):
            position += 1 + width + _number(payload, position, width, end)
        else:
            count, header, is_map = _container(payload, position, end)
            position += header
            total += count
            if total > shape.elements:
                raise FrameError(f"{total} values; at most {shape.elements} are allowed")
            outer.append((left, in_map))
            if len(outer) > shape.depth:
                raise FrameError(f"nested deeper than {shape.depth}, at byte {position}")
            left, in_map = count, is_map
        if position > end:
            raise FrameError(f"cut short: a value ends at byte {position} of {end}")


def _container(
    payload: bytes | bytearray | memoryview, position: int, end: int
) -> tuple[int, int, bool]:
    """(values inside, bytes of the header, is it a map) of the array or map at ``position``."""
    byte = payload[position]
    if byte & 0xF0 == 0x90:
        return byte & 0x0F, 1, False
    if byte & 0xF0 == 0x80:
        return 2 * (byte & 0x0F), 1, True
    if width := _ARRAYS.get(byte):
        return _number(payload, position, width, end), 1 + width, False
    if width := _MAPS.get(byte):
        return 2 * _number(payload, position, width, end), 1 + width, True
    raise FrameError(f"type 0x{byte:02x} at byte {position}: extension types are not used here")


def _number(payload: bytes | bytearray | memoryview, position: int, width: int, end: int) -> int:
    """The length in the ``width`` bytes after the one at ``position``."""
    if position + 1 + width > end:
        raise FrameError(f"cut short: a length is missing at byte {position + 1}")
    return int.from_bytes(payload[position + 1 : position + 1 + width])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise FrameError("a map with the same key twice")
    return found


class FrameDecoder:
    """Bytes in, values out. Holds less than one frame and what was fed last.

    ``largest`` may be changed between frames. Once it has raised, it must not be used again.
    """

    def __init__(self, *, largest: int = LARGEST_FRAME, shape: Shape = SHAPE) -> None:
        self.largest = largest
        self._shape = shape
        self._buffer = bytearray()

    @property
    def buffered(self) -> int:
        """Bytes of a frame that is not complete."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Any]:
        """The values that are complete now. The iterator must be used up before the next feed.

        Raises ``FrameError`` as soon as a length is seen that is too large: its payload is not
        waited for.
        """
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(buffer, start)
                if not 0 < length <= self.largest:
                    raise FrameError(f"a frame of {length} bytes; 1 to {self.largest} are allowed")
                begin, stop = start + _LENGTH.size, start + _LENGTH.size + length
                if stop > len(buffer):
                    return
                start = stop
                with memoryview(buffer) as view, view[begin:stop] as payload:
                    value = unpack(payload, self._shape)
                yield value
        finally:
            del buffer[:start]
