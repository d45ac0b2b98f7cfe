"""TCP segments as bytes: taken apart, put together, wrapped into IP packets. No I/O.

Two uses: what a hold dropped is delivered again, and what a connection went through before it was
captured is played to the kernel that is to have it (a FIN, a handshake, a reset).
"""

import itertools
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, Self

from mycoproxy.addresses import Endpoint, FourTuple, wire_address

SEQUENCE_SPACE: Final = 1 << 32

# include/net/tcp.h
FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
PSH: Final = 0x08
ACK: Final = 0x10
URG: Final = 0x20
ECE: Final = 0x40
CWR: Final = 0x80

_IPV6_HEADER: Final = 40

# Segments come off a veth uncut, up to 64 KiB; cut, they fit any loopback.
_LARGEST_PIECE: Final = 16 * 1024

# source port, destination port, sequence, acknowledgement, data offset, flags, window, checksum,
# urgent pointer
_TCP_HEADER: Final = struct.Struct("!HHIIBBHHH")
_IPV4_HEADER: Final = struct.Struct("!BBHHHBBH4s4s")
_DONT_FRAGMENT: Final = 0x4000
_TTL: Final = 255  # the most, for sockets with IP_MINTTL


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment from ``connection.remote`` to ``connection.local``: TCP header and payload.

    Its checksum means nothing (the sender may have left it to its network card).
    """

    connection: FourTuple
    segment: bytes

    @property
    def header(self) -> "Header":
        """Its fields."""
        _, _, sequence, acknowledgement, offset, flags, window, *_ = _TCP_HEADER.unpack_from(
            self.segment
        )
        length = len(self.segment) - (offset >> 4) * 4
        return Header(sequence, acknowledgement, flags, window, length)

    def moved_to(self, connection: FourTuple) -> Self:
        """The same segment for the connection under its new name."""
        return replace(self, connection=connection)


class Header(NamedTuple):
    """What a segment says. ``window`` as it stands there, unscaled; ``length`` of its data."""

    sequence: int
    acknowledgement: int
    flags: int
    window: int
    length: int

    @property
    def end(self) -> int:
        """The sequence number after all that it occupies; SYN and FIN count as one each."""
        occupied = self.length + bool(self.flags & SYN) + bool(self.flags & FIN)
        return (self.sequence + occupied) % SEQUENCE_SPACE


def segment(
    connection: FourTuple,
    *,
    flags: int,
    sequence: int,
    acknowledgement: int = 0,
    window: int = 0,
    options: bytes = b"",
    data: bytes = b"",
    urgent: int = 0,
) -> Segment:
    """A segment that ``connection.remote`` might have sent. Numbers are taken modulo 2**32.

    ``window`` as in the header: unscaled, cut to 16 bits. ``options`` are padded. ``urgent`` is the
    urgent pointer.
    """
    options += b"\1" * (-len(options) % 4)  # TCPOPT_NOP
    header = _TCP_HEADER.pack(
        connection.remote.port,
        connection.local.port,
        sequence % SEQUENCE_SPACE,
        acknowledgement % SEQUENCE_SPACE,
        (_TCP_HEADER.size + len(options)) // 4 << 4,
        flags,
        min(window, 0xFFFF),
        0,
        urgent,
    )
    return Segment(connection, header + options + data)


def on_the_wire(connection: FourTuple) -> FourTuple:
    """The name as it is in packets."""
    local, remote = connection
    return FourTuple(
        Endpoint(wire_address(local.address), local.port),
        Endpoint(wire_address(remote.address), remote.port),
    )


def parse_packet(packet: bytes) -> Segment | None:
    """The TCP segment in an IP packet, or None. IPv6 extension headers are not followed."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= _IPV4_HEADER.size:
        header = (packet[0] & 15) * 4
        protocol, length = packet[9], int.from_bytes(packet[2:4], "big")
        source, destination = packet[12:16], packet[16:20]
        if int.from_bytes(packet[6:8], "big") & 0x3FFF:
            return None  # a fragment
        family = socket.AF_INET
    elif version == 6 and len(packet) >= _IPV6_HEADER:
        header = _IPV6_HEADER
        protocol, length = packet[6], header + int.from_bytes(packet[4:6], "big")
        source, destination = packet[8:24], packet[24:40]
        family = socket.AF_INET6
    else:
        return None
    segment = packet[header:length]
    if protocol != socket.IPPROTO_TCP or len(segment) < _TCP_HEADER.size:
        return None
    source_port, destination_port = struct.unpack_from("!HH", segment)
    return Segment(
        FourTuple(
            Endpoint(socket.inet_ntop(family, destination), destination_port),
            Endpoint(socket.inet_ntop(family, source), source_port),
        ),
        segment,
    )


def cut(segment: bytes) -> Iterator[bytes]:
    """The segment in pieces that fit any loopback; FIN and PSH go with the last one."""
    ports_to_ack, flags = segment[:12], segment[13]
    header_length = (segment[12] >> 4) * 4
    sequence = int.from_bytes(segment[4:8], "big")
    payload = segment[header_length:]
    if len(payload) <= _LARGEST_PIECE:
        yield segment
        return
    starts = range(0, len(payload), _LARGEST_PIECE)
    for start, following in itertools.zip_longest(starts, starts[1:]):
        yield (
            ports_to_ack[:4]
            + ((sequence + start) % SEQUENCE_SPACE).to_bytes(4, "big")
            + ports_to_ack[8:]
            + bytes((segment[12], flags if following is None else flags & ~(FIN | PSH)))
            + segment[14:header_length]
            + payload[start:following]
        )


def ip_packet(segment: bytes, *, source: Endpoint, destination: Endpoint) -> bytes:
    """An IP packet around the segment, with these endpoints and right checksums."""
    family = socket.AF_INET if source.version == 4 else socket.AF_INET6
    addresses = (
        socket.inet_pton(family, source.address),
        socket.inet_pton(family, destination.address),
    )
    ports = struct.pack("!HH", source.port, destination.port)
    blank = ports + segment[4:16] + b"\0\0" + segment[18:]
    pseudo = b"".join(addresses) + struct.pack("!II", len(blank), socket.IPPROTO_TCP)
    checksum = checksum_of(pseudo + blank)
    filled = blank[:16] + checksum.to_bytes(2, "big") + blank[18:]
    if family == socket.AF_INET:
        total = _IPV4_HEADER.size + len(filled)
        # The kernel fills in identification and header checksum (raw_send_hdrinc).
        header = _IPV4_HEADER.pack(
            0x45, 0, total, 0, _DONT_FRAGMENT, _TTL, socket.IPPROTO_TCP, 0, *addresses
        )
    else:
        header = struct.pack("!IHBB", 6 << 28, len(filled), socket.IPPROTO_TCP, _TTL)
        header += b"".join(addresses)
    return header + filled


def checksum_of(data: bytes) -> int:
    """The internet checksum (RFC 1071): the one's complement of the one's complement sum.

    That sum is the whole taken as one number, modulo 65535; Python does this much faster than
    adding words. Zero stands for all ones only if every word is zero, which no header is.
    """
    if len(data) % 2:
        data += b"\0"
    remainder = int.from_bytes(data, "big") % 0xFFFF
    return 0xFFFF - remainder if remainder else 0
