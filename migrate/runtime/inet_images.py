"""The addresses in a checkpoint's sockets, changed on their way to the target.

CRIU binds a restored UDP socket to the address that it had on the source. The target's namespace
has another one: an IPv4 socket then fails the whole restore (EADDRNOTAVAIL), and an IPv6 socket,
which CRIU binds with IP_FREEBIND, comes back on an address that no packet reaches. A bound UDP
socket cannot be bound again, so this has to happen before. TCP sockets are left alone unless they
listen: a connection is established on its new address in the handover.

Sockets are entries of ``files.img``: CRIU's two magic numbers, then entries of a length and a
``file_entry`` (images/fdinfo.proto), whose field ``isk`` is an ``inet_sk_entry``
(images/sk-inet.proto). Everything else passes untouched, as in ``criu_rpc``.
"""

import ipaddress
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace

from migrate.runtime.criu_rpc import Field, RpcError, parse, serialize

FILES_IMAGE = "files.img"

# criu/include/magic.h
_MAGIC = struct.pack("<II", 0x54564319, 0x56303138)  # IMG_COMMON_MAGIC, FILES_MAGIC
_LENGTH = struct.Struct("<I")

_ISK = 4  # file_entry
_PROTO, _STATE, _SRC_ADDR, _DST_ADDR = 5, 6, 11, 12  # inet_sk_entry
_LISTEN = 10  # include/net/tcp_states.h
_VARINT, _BYTES = 0, 2

Words = tuple[int, ...]


def with_addresses(image: bytes, addresses: Mapping[str, str]) -> bytes:
    """``files.img`` with the sockets' old addresses, the keys, replaced by their new ones.

    Raises ``RpcError`` if this is no such image.
    """
    if not image.startswith(_MAGIC):
        raise RpcError(f"no {FILES_IMAGE} of CRIU: it begins with {image[:8].hex()}")
    words: dict[Words, Words] = {}
    for old, new in addresses.items():
        words.update(_words(old, new))
    out = bytearray(_MAGIC)
    for entry in _entries(image, len(_MAGIC)):
        changed = _changed_file(entry, words)
        out += _LENGTH.pack(len(changed)) + changed
    return bytes(out)


def _words(old: str, new: str) -> Iterator[tuple[Words, Words]]:
    """An address as the image has it, and its IPv4-mapped form in IPv6 sockets."""
    before, after = ipaddress.ip_address(old).packed, ipaddress.ip_address(new).packed
    mapped = bytes(10) + b"\xff\xff" if len(before) == 4 else b""
    for prefix in {b"", mapped}:
        yield _split(prefix + before), _split(prefix + after)


def _split(packed: bytes) -> Words:
    """CRIU keeps an address as 32-bit words in the machine's order of bytes."""
    return struct.unpack(f"={len(packed) // 4}I", packed)


def _entries(image: bytes, at: int) -> Iterator[bytes]:
    while at < len(image):
        if at + _LENGTH.size > len(image):
            raise RpcError(f"{FILES_IMAGE} is cut off at byte {len(image)}")
        (length,) = _LENGTH.unpack_from(image, at)
        at += _LENGTH.size
        if at + length > len(image):
            raise RpcError(f"{FILES_IMAGE} is cut off at byte {len(image)}")
        yield image[at : at + length]
        at += length


def _changed_file(entry: bytes, words: Mapping[Words, Words]) -> bytes:
    fields = parse(entry)
    if not any(field.number == _ISK for field in fields):
        return entry
    return serialize(
        [
            replace(field, value=_changed_socket(field.value, words))
            if field.number == _ISK and isinstance(field.value, bytes)
            else field
            for field in fields
        ]
    )


def _changed_socket(entry: bytes, words: Mapping[Words, Words]) -> bytes:
    fields = parse(entry)
    numbers = {field.number: field.value for field in fields}
    if numbers.get(_PROTO) == socket.IPPROTO_TCP and numbers.get(_STATE) != _LISTEN:
        return entry
    for number in (_SRC_ADDR, _DST_ADDR):
        old = tuple(_repeated(fields, number))
        new = words.get(old)
        if new is not None:
            at = next(index for index, field in enumerate(fields) if field.number == number)
            rest = [field for field in fields if field.number != number]
            fields = [*rest[:at], *(Field(number, _VARINT, word) for word in new), *rest[at:]]
    return serialize(fields)


def _repeated(fields: list[Field], number: int) -> Iterator[int]:
    """Each a field of its own, as CRIU writes them, or all in one (packed)."""
    for field in fields:
        if field.number != number:
            continue
        if isinstance(field.value, int):
            yield field.value
        elif field.wire_type == _BYTES:
            # A packed list is numbers without tags: give each one back its tag.
            yield from _packed(field.value)


def _packed(data: bytes) -> Iterator[int]:
    value = shift = 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield value
            value = shift = 0
