"""Socket options on the wire: (number, value) pairs of one size, then the values that are bytes."""

import struct
from collections.abc import Iterator
from typing import Final

from mycoproxy.tcp.codec_fields import LARGEST_OPTION_NUMBER
from mycoproxy.tcp.errors import CodecError
from mycoproxy.tcp.options import Settings

_OPTION: Final = struct.Struct(">Hq")  # number, value
_IS_BYTES: Final = 0x8000  # in an option's number: the value is a length

PAIR_SIZE: Final = _OPTION.size


def pack_options(options: Settings) -> tuple[bytes, bytes]:
    """The pairs, and the values that are bytes. Raises ``CodecError``."""
    pairs = []
    values = []
    for number, value in options:
        try:
            if isinstance(value, bytes):
                pairs.append(_OPTION.pack(number | _IS_BYTES, len(value)))
                values.append(value)
            else:
                pairs.append(_OPTION.pack(number, value))
        except struct.error:
            raise CodecError(
                f"option {number}: a number up to {LARGEST_OPTION_NUMBER}, and 64 bits or bytes as "
                f"its value wanted, {value!r:.64} found"
            ) from None
    return b"".join(pairs), b"".join(values)


def unpack_options(view: memoryview, count: int) -> Settings:
    """Of ``count`` pairs and exactly their values. Raises ``CodecError``."""
    values_at = count * _OPTION.size
    pairs = tuple(_OPTION.iter_unpack(view[:values_at]))
    if values_at == len(view) and max(pairs)[0] < _IS_BYTES:
        return pairs
    return tuple(_with_bytes(pairs, view[values_at:]))


def _with_bytes(
    pairs: tuple[tuple[int, int], ...], values: memoryview
) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    for number, value in pairs:
        if number < _IS_BYTES:
            yield number, value
            continue
        end = at + value
        if value < 0 or end > len(values):
            raise CodecError(
                f"option {number ^ _IS_BYTES}: 0 to {len(values) - at} bytes wanted, {value} found"
            )
        yield number ^ _IS_BYTES, bytes(values[at:end])
        at = end
    if at != len(values):
        raise CodecError(f"bytes of options: {at} wanted, {len(values)} found")
