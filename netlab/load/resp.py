"""The little of redis' protocol (RESP2) that the clients need.

A client knows what the answer must be, byte for byte. So answers are not decoded: it is enough to
find where an answer ends, and compare.

Source: https://redis.io/docs/latest/develop/reference/protocol-spec/
"""


class ProtocolError(Exception):
    """The bytes are no RESP2 answer."""


def command(*arguments: bytes) -> bytes:
    """A command as redis reads it: an array of bulk strings."""
    parts = [b"*%d\r\n" % len(arguments)]
    parts += [b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments]
    return b"".join(parts)


def bulk(value: bytes) -> bytes:
    """The answer that carries ``value``."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


def integer(value: int) -> bytes:
    """The answer that carries a number."""
    return b":%d\r\n" % value


OK = b"+OK\r\n"

_LONGEST_LINE = 64 * 1024


def reply_end(buffer: bytes | bytearray, start: int = 0) -> int:
    """The index just behind the answer that begins at ``start``; -1 if it is not complete yet.

    Raises ``ProtocolError`` if no answer can begin like this.
    """
    line_end = buffer.find(b"\r\n", start)
    if line_end < 0:
        if len(buffer) - start > _LONGEST_LINE:
            raise ProtocolError(f"no end of line within {_LONGEST_LINE} bytes")
        return -1
    kind, line = buffer[start : start + 1], bytes(buffer[start + 1 : line_end])
    behind = line_end + 2
    if kind in (b"+", b"-", b":"):
        return behind
    if kind not in (b"$", b"*"):
        raise ProtocolError(f"an answer begins with {bytes(kind)!r}")
    try:
        length = int(line)
    except ValueError:
        raise ProtocolError(f"a length is {line[:32]!r}") from None
    if length < 0:
        return behind
    if kind == b"$":
        end = behind + length + 2
        return end if end <= len(buffer) else -1
    for _ in range(length):
        behind = reply_end(buffer, behind)
        if behind < 0:
            return -1
    return behind
