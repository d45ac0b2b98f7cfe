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

import ctypes
import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Final, Self

from mycoproxy.addresses import FourTuple
from mycoproxy.marks import PLAYED
from mycoproxy.tcp.abi import SO_RCVBUFFORCE, TcpConnectionState
from mycoproxy.tcp.errors import TcpError
from mycoproxy.tcp.segments import (
    RST,
    SEQUENCE_SPACE,
    SYN,
    Segment,
    cut,
    ip_packet,
    on_the_wire,
    parse_packet,
)
from mycoproxy.tcp.state import TcpState

_libc = ctypes.CDLL(None, use_errno=True)

_ETH_P_ALL: Final = 3  # include/uapi/linux/if_ether.h
_SOL_PACKET: Final = 263  # include/linux/socket.h
_PACKET_STATISTICS: Final = 6  # include/uapi/linux/if_packet.h
_PACKET_IGNORE_OUTGOING: Final = 23  # include/uapi/linux/if_packet.h, Linux 4.20

_SO_DETACH_FILTER: Final = 27
_SO_ATTACH_FILTER: Final = 26  # include/uapi/asm-generic/socket.h

# Classic BPF (include/uapi/linux/filter.h), on a packet without its link header: (operation, jump
# if true, jump if false, operand). IPv6 extension headers are not followed.
_NOTHING: Final = ((0x06, 0, 0, 0),)  # return 0: keep no byte of it
_ONLY_SYN: Final = (
    (0x30, 0, 0, 0),  # load byte 0
    (0x74, 0, 0, 4),  # >> 4: the version
    (0x15, 0, 4, 4),  # IPv4, or on to IPv6
    (0x30, 0, 0, 9),  # protocol
    (0x15, 0, 7, socket.IPPROTO_TCP),
    (0xB1, 0, 0, 0),  # X = length of the header
    (0x05, 0, 0, 3),  # to "load flags of IPv4"
    (0x30, 0, 0, 6),  # next header
    (0x15, 0, 3, socket.IPPROTO_TCP),
    (0x01, 0, 0, 40),  # X = length of the IPv6 header
    (0x50, 0, 0, 13),  # load byte X + 13: flags
    (0x45, 1, 0, SYN),
    (0x06, 0, 0, 0),  # none of it
    (0x06, 0, 0, 0xFFFFFFFF),  # all of it
)

_TAP_BUFFER: Final = 64 * 1024 * 1024
_LARGEST_PACKET: Final = 1 << 17


class Tap:
    """Copies every TCP packet that arrives in the calling thread's network namespace.

    From construction to ``close``, up to 64 MiB. With ``outgoing`` also what the namespace sends;
    with ``only_syn`` only segments with that flag, so that it can stay open for long. Call it on
    the namespace's worker; needs CAP_NET_RAW. Raises ``OSError``.
    """

    def __init__(self, *, outgoing: bool = False, only_syn: bool = False) -> None:
        # Of no protocol it gets nothing until it is bound: filter and buffer come before.
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        try:
            if only_syn:
                _attach_filter(self._sock, _ONLY_SYN)
            self._sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, int(not outgoing))
            self._sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _TAP_BUFFER // 2)
            self._sock.setblocking(False)
            _bind_to_every_interface(self._sock)
        except OSError:
            self._sock.close()
            raise

    def lost(self, states: Iterable[TcpState]) -> tuple[Segment, ...]:
        """What arrived for these connections since the last call, beyond what they contain.

        See ``beyond``. Raises ``TcpError`` if the tap overflowed: then the peer's retransmission
        timer has to do it.
        """
        return beyond(self.arrived(), states)

    def arrived(self) -> tuple[Segment, ...]:
        """Every segment since the last call, in order. Raises ``TcpError`` if it overflowed."""
        found = tuple(
            segment for packet in self._packets() if (segment := parse_packet(packet)) is not None
        )
        dropped = self._dropped()
        if dropped:
            raise TcpError(f"the tap overflowed, {dropped} packets were not kept")
        return found

    def pause(self) -> None:
        """Copy nothing from now on; what was copied stays. Closing it would take 20 ms."""
        _attach_filter(self._sock, _NOTHING)

    def go_on(self) -> None:
        """Copy again, after ``pause``; not for one that copies SYNs only."""
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)

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


def _bind_to_every_interface(sock: socket.socket) -> None:
    """bind(2) with no interface, which Python's ``bind`` cannot do (packet(7))."""
    address = struct.pack("=H2sIHBB8x", socket.AF_PACKET, _ETH_P_ALL.to_bytes(2, "big"), 0, 0, 0, 0)
    if _libc.bind(sock.fileno(), address, len(address)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"bind a packet socket: {os.strerror(number)}")


def _attach_filter(sock: socket.socket, program: Sequence[tuple[int, int, int, int]]) -> None:
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code)
    # struct sock_fprog
    sock.setsockopt(
        socket.SOL_SOCKET,
        _SO_ATTACH_FILTER,
        struct.pack("@HP", len(program), ctypes.addressof(buffer)),
    )


def inject(segments: Iterable[Segment]) -> int:
    """Deliver segments to the sockets of the calling thread's network namespace.

    They pass the namespace's own output and input hooks over loopback, marked ``marks.PLAYED``: a
    hold lets them pass, as a shield does with all of loopback. Returns how many were handed to the
    kernel; what its TCP does with them is up to their sequence numbers, and done when this returns.
    Needs CAP_NET_RAW. Raises ``TcpError``.
    """
    return _send(segments, mark=PLAYED)


def send_out(segments: Iterable[Segment]) -> int:
    """Send segments from this network namespace to others: ``connection.remote`` is this end.

    Otherwise as ``inject``.
    """
    return _send(segments, mark=0)


def _send(segments: Iterable[Segment], *, mark: int) -> int:
    count = 0
    raw: dict[int, socket.socket] = {}
    try:
        for segment in segments:
            destination, source = on_the_wire(segment.connection)
            version = destination.version
            if version not in raw:
                family = socket.AF_INET if version == 4 else socket.AF_INET6
                raw[version] = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
                raw[version].setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            for piece in cut(segment.segment):
                packet = ip_packet(piece, source=source, destination=destination)
                raw[version].sendto(packet, (destination.address, 0))
            count += 1
    except OSError as error:
        raise TcpError(f"cannot deliver {count + 1}. segment: {error}") from error
    finally:
        for sock in raw.values():
            sock.close()
    return count


def beyond(segments: Iterable[Segment], states: Iterable[TcpState]) -> tuple[Segment, ...]:
    """Those segments, in their order, that tell these connections something new.

    Data, FIN or RST that the state does not contain. Pure acknowledgements only of connections
    that are not ESTABLISHED: the others' window probe is answered, and that stands for all of them.
    """
    wanted: dict[FourTuple, TcpState] = {on_the_wire(state.connection): state for state in states}
    return tuple(
        segment.moved_to(state.connection)
        for segment in segments
        if (state := wanted.get(segment.connection)) is not None and _is_news(segment, state)
    )


def _is_news(segment: Segment, state: TcpState) -> bool:
    header = segment.header
    if header.flags & RST:
        return True
    if header.flags & SYN:
        return False
    if header.end == header.sequence:
        return state.state is not TcpConnectionState.ESTABLISHED and _is_after(
            header.acknowledgement, state.send.una
        )
    return _is_after(header.end, state.next_expected)


def _is_after(sequence: int, other: int) -> bool:
    return 0 < (sequence - other) % SEQUENCE_SPACE < SEQUENCE_SPACE // 2
