"""Endpoints as ``struct sockaddr_in`` and ``sockaddr_in6`` (ip(7), ipv6(7))."""

import socket
import struct
from functools import lru_cache
from typing import Final

from mycoproxy.addresses import Endpoint

SIZES: Final = {socket.AF_INET: 16, socket.AF_INET6: 28}

_FAMILY: Final = struct.Struct("=H")
# What ``socket.socket`` makes an enum of each time it is read costs more than a system call.
_PLAIN_FAMILY: Final = socket.SocketType.family
_PLAIN_TYPE: Final = socket.SocketType.type
_FAMILIES: Final = {int(family): family for family in SIZES}
_IPV4: Final = struct.Struct("=H2s4s8x")
_IPV6: Final = struct.Struct("=H2sI16sI")


def tcp_family(sock: socket.socket) -> socket.AddressFamily | None:
    """AF_INET or AF_INET6; None if ``sock`` was made as something else than plain TCP."""
    if _PLAIN_TYPE.__get__(sock) != socket.SOCK_STREAM or sock.proto not in _PLAIN_TCP:
        return None
    return _FAMILIES.get(_PLAIN_FAMILY.__get__(sock))


_PLAIN_TCP: Final = (0, socket.IPPROTO_TCP)


def pack(endpoint: Endpoint, family: socket.AddressFamily) -> bytes:
    """An endpoint for a socket of ``family``; flow label and scope are 0. Raises ``OSError``."""
    port = endpoint.port.to_bytes(2, "big")
    address = _packed(endpoint.address, family)
    if family == socket.AF_INET:
        return _IPV4.pack(socket.AF_INET, port, address)
    return _IPV6.pack(socket.AF_INET6, port, 0, address, 0)


def unpack(raw: bytes) -> tuple[Endpoint, int]:
    """The endpoint and its scope (0 if it has none)."""
    if _FAMILY.unpack_from(raw)[0] == socket.AF_INET:
        _, port, address = _IPV4.unpack_from(raw)
        return Endpoint(_text(address), int.from_bytes(port, "big")), 0
    _, port, _, address, scope = _IPV6.unpack_from(raw)
    return Endpoint(_text(address), int.from_bytes(port, "big")), scope


# Few addresses are the ends of many connections.
@lru_cache(maxsize=1 << 14)
def _packed(address: str, family: socket.AddressFamily) -> bytes:
    return socket.inet_pton(family, address)


@lru_cache(maxsize=1 << 14)
def _text(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)
