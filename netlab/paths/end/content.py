"""The bytes of a stream: they follow from the connection, the direction and the offset.

All streams are the same pseudo-random ring of bytes, each from another place on. The ring's length
is a prime number, so that what is lost, repeated or put elsewhere by any round number of bytes does
not fall on equal ones. A slice of it is made and compared at memory speed.
"""

import hashlib

RING_BYTES = 65_521  # the largest prime below 2**16
_MOST = 1 << 16  # bytes that are read or written at a time

_RING = hashlib.shake_128(b"netlab.paths").digest(RING_BYTES)
# Twice, and some more: a slice never has to be put together from two.
_BYTES = memoryview(_RING * 2 + _RING[: _MOST - RING_BYTES])


def start_of(connection: int, *, opener: bool) -> int:
    """Where on the ring the stream of one end of ``connection`` begins."""
    seed = b"%d %d" % (connection, opener)
    return int.from_bytes(hashlib.shake_128(seed).digest(4), "big") % RING_BYTES


def piece(start: int, offset: int, size: int) -> memoryview:
    """``size`` bytes (at most 65,536) of the stream that begins at ``start``, from ``offset``."""
    at = (start + offset) % RING_BYTES
    return _BYTES[at : at + size]


def count_wrong(expected: memoryview, found: bytes) -> int:
    """How many bytes of ``found``, which is as long as ``expected``, are other ones."""
    if expected == found:
        return 0
    return sum(a != b for a, b in zip(expected, found, strict=True))
