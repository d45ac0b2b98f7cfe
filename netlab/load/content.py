"""What the keys hold: bytes that follow from the key alone.

So any client can check any answer without having stored it, and two clients agree without
talking. SHAKE-128 gives as many bytes as wanted, at some hundred MB a second; the bytes are binary
(CR, LF and NUL among them), so a wrong framing does not go unnoticed.
"""

import hashlib


def key_name(index: int) -> bytes:
    """The name of the preloaded key number ``index``."""
    return b"key:%d" % index


def content(key: bytes, size: int, seed: int = 0) -> bytes:
    """The ``size`` bytes that ``key`` holds in a run with this ``seed``."""
    return hashlib.shake_128(b"%d\0%b" % (seed, key)).digest(size)


def count_wrong(expected: bytes | memoryview, found: bytes | memoryview) -> int:
    """How many bytes of ``found`` are not the expected ones. Missing and surplus ones are wrong."""
    if expected == found:
        return 0
    differing = sum(a != b for a, b in zip(expected, found, strict=False))
    return differing + abs(len(expected) - len(found))
