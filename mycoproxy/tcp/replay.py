"""Keep what the peer sends while nobody may answer, and deliver it afterwards.

A hold drops the peer's segments. A peer that lost the last thing it said notices by its
retransmission timer only, 200 ms or more later, and **nothing that the moved socket can send makes
it notice earlier**:

* a window probe (leaving repair mode, keep-alive) has the sequence number before the window. The
  peer answers with an acknowledgement, of which it sends one in 500 ms, and drops the probe before
  it looks at what that acknowledges (``tcp_validate_incoming``, net/ipv4/tcp_input.c);
* duplicate acknowledgements inside the window count only for a peer without SACK. With SACK losses
  are found by RACK: something sent *later* must have arrived, and nothing has.

So the segments are not lost in the first place. A ``Tap`` copies them off the wire before netfilter
sees them, and ``inject`` hands them to the kernel again where the connection lives now. The kernel
does the rest as if they had been slow: order, duplicates, window, acknowledgement. What comes twice
does no harm.

Order: open the tap before the hold (one wherever packets are dropped: on the source, on the target
before its shield, on a peer node that holds); capture, re-home, establish, lift hold and shield,
``release``; then ``inject`` what ``lost`` returns. After a rollback, the same on the source.
"""

import itertools
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Self

from mycoproxy.addresses import Endpoint, FourTuple, wire_address
from mycoproxy.tcp.abi import SO_RCVBUFFORCE
from mycoproxy.tcp.errors import TcpError
from mycoproxy.tcp.state import SEQUENCE_SPACE, TcpState

_ETH_P_ALL: Final = 3  # include/uapi/linux/if_ether.h
_SOL_PACKET: Final = 263  # include/linux/socket.h
_PACKET_STATISTICS: Final = 6  # include/uapi/linux/if_packet.h
_PACKET_IGNORE_OUTGOING: Final = 23  # include/uapi/linux/if_packet.h, Linux 4.20
_IPV6_HEADER: Final = 40
_FIN, _SYN, _RST = 1, 2, 4

_TAP_BUFFER: Final = 64 * 1024 * 1024
_LARGEST_PACKET: Final = 1 << 17

# Segments come off a veth uncut, up to 64 KiB; cut, they fit any loopback.
_LARGEST_PIECE: Final = 16 * 1024

# source port, destination port, sequence, acknowledgement, data offset, flags, window, checksum,
# urgent pointer
_TCP_HEADER: Final = struct.Struct("!HHIIBBHHH")
_IPV4_HEADER: Final = struct.Struct("!BBHHHBBH4s4s")
_DONT_FRAGMENT: Final = 0x4000
_TTL: Final = 64


@dataclass(frozen=True, slots=True)
class LostSegment:
    """A segment from ``connection.remote`` to ``connection.local``: TCP header and payload.

    Its checksum means nothing (the sender may have left it to its network card).
    """

    connection: FourTuple
    segment: bytes

    def moved_to(self, connection: FourTuple) -> Self:
        """The same segment for the connection under its new name."""
        return replace(self, connection=connection)


class Tap:
    """Copies every TCP packet that arrives in the calling thread's network namespace.

    From construction to ``close``, up to 64 MiB. Call it on the namespace's worker; needs
    CAP_NET_RAW. Raises ``OSError``.
    """

    def __init__(self) -> None:
        everything = socket.htons(_ETH_P_ALL)
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, everything)
        try:
            self._sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            self._sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _TAP_BUFFER // 2)
            self._sock.setblocking(False)
        except OSError:
            self._sock.close()
            raise

    def lost(self, states: Iterable[TcpState]) -> tuple[LostSegment, ...]:
        """What arrived for these connections since the last call, beyond what they contain.

        Segments in the order of their arrival, with data, FIN or RST; pure acknowledgements are
        left out (the answer to the window probe stands for all of them). Raises ``TcpError`` if
        the tap overflowed: then the peer's retransmission timer has to do it.
        """
        wanted = {_wire(state.connection): state for state in states}
        found = []
        for packet in self._packets():
            segment = _parse(packet)
            if segment is None:
                continue
            state = wanted.get(segment.connection)
            if state is not None and _is_beyond(segment.segment, state):
                found.append(segment.moved_to(state.connection))
        dropped = self._dropped()
        if dropped:
            raise TcpError(f"the tap overflowed, {dropped} packets were not kept")
        return tuple(found)

    def close(self) -> None:
        """Stop copying."""
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _packets(self) -> Iterator[bytes]:
        while True:
            try:
                yield self._sock.recv(_LARGEST_PACKET)
            except BlockingIOError:
                return

    def _dropped(self) -> int:
        """Packets that did not fit, since the last call (struct tpacket_stats)."""
        stats = self._sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        return int.from_bytes(stats[4:], sys.byteorder)


def inject(segments: Iterable[LostSegment]) -> int:
    """Deliver segments to the sockets of the calling thread's network namespace.

    They pass the namespace's own output and input hooks over loopback, so no hold or shield may
    stand in their way. Returns how many were handed to the kernel; what its TCP does with them is
    up to their sequence numbers. Needs CAP_NET_RAW. Raises ``TcpError``.
    """
    count = 0
    raw: dict[int, socket.socket] = {}
    try:
        for segment in segments:
            local, remote = _wire(segment.connection)
            version = local.version
            if version not in raw:
                family = socket.AF_INET if version == 4 else socket.AF_INET6
                raw[version] = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
            for piece in _cut(segment.segment):
                packet = _packet(piece, source=remote, destination=local)
                raw[version].sendto(packet, (local.address, 0))
            count += 1
    except OSError as error:
        raise TcpError(f"cannot deliver {count + 1}. segment: {error}") from error
    finally:
        for sock in raw.values():
            sock.close()
    return count


def _wire(connection: FourTuple) -> FourTuple:
    """The name as it is in packets."""
    local, remote = connection
    return FourTuple(
        Endpoint(wire_address(local.address), local.port),
        Endpoint(wire_address(remote.address), remote.port),
    )


def _parse(packet: bytes) -> LostSegment | None:
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
    return LostSegment(
        FourTuple(
            Endpoint(socket.inet_ntop(family, destination), destination_port),
            Endpoint(socket.inet_ntop(family, source), source_port),
        ),
        segment,
    )


def _is_beyond(segment: bytes, state: TcpState) -> bool:
    """Does it hold anything that the receive queue does not?"""
    _, _, sequence, _, offset, flags, *_ = _TCP_HEADER.unpack_from(segment)
    if flags & _RST:
        return True
    length = len(segment) - (offset >> 4) * 4 + bool(flags & _FIN)
    ahead = (sequence + length - state.receive.next) % SEQUENCE_SPACE
    return length > 0 and not flags & _SYN and 0 < ahead < SEQUENCE_SPACE // 2


def _cut(segment: bytes) -> Iterator[bytes]:
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
            + bytes((segment[12], flags if following is None else flags & ~(_FIN | 8)))
            + segment[14:header_length]
            + payload[start:following]
        )


def _packet(segment: bytes, *, source: Endpoint, destination: Endpoint) -> bytes:
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
