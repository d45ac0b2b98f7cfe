"""One echo request and its answer (RFC 792, RFC 4443), without a ``ping`` child process."""

import ipaddress
import os
import socket
import struct
import time

_ECHO = {4: (8, 0), 6: (128, 129)}  # request and reply types
_PAYLOAD = b"netlab check"


def internet_checksum(data: bytes) -> int:
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return ~total & 0xFFFF


def echo_request(version: int, identifier: int, sequence: int) -> bytes:
    """The ICMP message. The kernel fills in ICMPv6's checksum (RFC 3542, section 3.1)."""
    kind, _ = _ECHO[version]
    header = struct.pack("!BBHHH", kind, 0, 0, identifier, sequence)
    if version == 4:
        checksum = internet_checksum(header + _PAYLOAD)
        header = struct.pack("!BBHHH", kind, 0, checksum, identifier, sequence)
    return header + _PAYLOAD


def is_reply(version: int, packet: bytes, identifier: int, sequence: int) -> bool:
    """Whether a packet off the raw socket (IPv4: with its IP header) answers that request."""
    if version == 4 and packet:
        packet = packet[(packet[0] & 0x0F) * 4 :]
    if len(packet) < 8:
        return False
    kind, _, _, found_identifier, found_sequence = struct.unpack_from("!BBHHH", packet)
    return (kind, found_identifier, found_sequence) == (_ECHO[version][1], identifier, sequence)


def ping(address: str, *, timeout: float, tries: int = 3) -> str | None:
    """Why ``address`` does not answer from the calling thread's namespace; ``None`` if it does.

    ``timeout`` is in seconds, for each of ``tries`` requests. Needs CAP_NET_RAW.
    """
    version = ipaddress.ip_address(address).version
    family, protocol = (
        (socket.AF_INET, socket.IPPROTO_ICMP)
        if version == 4
        else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
    )
    identifier = int.from_bytes(os.urandom(2), "big")
    with socket.socket(family, socket.SOCK_RAW, protocol) as raw:
        for sequence in range(1, tries + 1):
            try:
                raw.sendto(echo_request(version, identifier, sequence), (address, 0))
                if _answered(raw, version, identifier, sequence, time.monotonic() + timeout):
                    return None
            except OSError as error:
                return error.strerror or str(error)
    return f"no answer to {tries} echo requests in {tries * timeout:g} s"


def _answered(
    raw: socket.socket, version: int, identifier: int, sequence: int, deadline: float
) -> bool:
    while (rest := deadline - time.monotonic()) > 0:
        raw.settimeout(rest)
        try:
            packet = raw.recv(2048)
        except TimeoutError:
            return False
        if is_reply(version, packet, identifier, sequence):
            return True
    return False
