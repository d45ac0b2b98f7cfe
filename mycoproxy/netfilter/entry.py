"""One conntrack entry as data, and its form on the wire (ctnetlink).

An entry is two tuples: ``orig``, how the connection's first packet looked before NAT, and
``reply``, how the answers to it look when they arrive. Without NAT one is the other reversed.
With a Service's DNAT, ``orig`` is client -> virtual IP, ``reply`` is workload -> client.
"""

import socket
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Self

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.netfilter import abi
from mycoproxy.netfilter.elements import on_the_wire, packed, read_address
from mycoproxy.netfilter.nfnetlink import attribute, attribute_header, nested, parse

_PORT = struct.Struct(">Hxx")


# A tuple has a fixed layout, and it is what a rebind encodes four times for each connection. So
# everything but addresses and ports is made once.
_PROTO_AND_SOURCE_PORT = {
    protocol: (
        attribute_header(abi.CTA_TUPLE_PROTO | abi.NLA_F_NESTED, 24)
        + attribute(abi.CTA_PROTO_NUM, bytes([protocol]))
        + attribute_header(abi.CTA_PROTO_SRC_PORT, 2)
    )
    for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
}
_DESTINATION_PORT = attribute_header(abi.CTA_PROTO_DST_PORT, 2)
_ADDRESSES = {
    size: (
        attribute_header(abi.CTA_TUPLE_IP | abi.NLA_F_NESTED, 2 * (4 + size))
        + attribute_header(source, size),
        attribute_header(destination, size),
    )
    for size, source, destination in (
        (4, abi.CTA_IP_V4_SRC, abi.CTA_IP_V4_DST),
        (16, abi.CTA_IP_V6_SRC, abi.CTA_IP_V6_DST),
    )
}
# By a tuple's length, that of its addresses.
_ADDRESS_SIZES = {4 + 2 * (4 + size) + 4 + 24: size for size in _ADDRESSES}
_TUPLE_HEADERS = {
    (kind, size): attribute_header(kind | abi.NLA_F_NESTED, 4 + 2 * (4 + size) + 4 + 24)
    for kind in (abi.CTA_TUPLE_ORIG, abi.CTA_TUPLE_REPLY)
    for size in (4, 16)
}


class Direction(NamedTuple):
    """The two ends of a packet: where it comes from and where it goes."""

    source: Endpoint
    destination: Endpoint

    def reversed(self) -> Self:
        """The tuple of the answer."""
        return self._replace(source=self.destination, destination=self.source)

    def __str__(self) -> str:
        return f"{self.source} -> {self.destination}"


@dataclass(frozen=True)
class TcpTracking:
    """What conntrack knows of the TCP connection. Pairs are (original, reply) direction.

    ``state`` is enum tcp_conntrack (3: ESTABLISHED), ``flags`` are IP_CT_TCP_FLAG_*, ``wscale``
    the window scale shifts. Sequence numbers and windows are not given out by ctnetlink.
    """

    state: int
    wscale: tuple[int, int] = (0, 0)
    flags: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class ConntrackEntry:
    """A connection in the kernel's connection tracking, or a flow of datagrams.

    ``timeout`` is in seconds, ``protocol`` IPPROTO_TCP or IPPROTO_UDP.
    """

    orig: Direction
    reply: Direction
    status: int
    timeout: int
    tcp: TcpTracking | None = None
    mark: int = 0
    zone: int = 0
    labels: bytes = b""
    protocol: int = socket.IPPROTO_TCP

    @property
    def family(self) -> int:
        """AF_INET or AF_INET6."""
        return abi.NFPROTO_IPV6 if ":" in self.orig.source.address else abi.NFPROTO_IPV4

    @property
    def has_nat(self) -> bool:
        """Whether this entry rewrites addresses or ports."""
        return self.reply != self.orig.reversed()

    @property
    def workload(self) -> FourTuple:
        """The connection's name as the socket that answers has it."""
        return FourTuple(local=self.reply.source, remote=self.reply.destination)


def wire_direction(source: Endpoint, destination: Endpoint) -> Direction:
    """A tuple with the addresses that packets have (IPv4-mapped is IPv4)."""
    return Direction(on_the_wire(source), on_the_wire(destination))


def encode_tuple(kind: int, direction: Direction, protocol: int = socket.IPPROTO_TCP) -> bytes:
    """CTA_TUPLE_ORIG or CTA_TUPLE_REPLY."""
    (source, source_port), (destination, destination_port) = direction
    from_address, to_address = packed(source), packed(destination)
    before, between = _ADDRESSES[len(from_address)]
    return b"".join(
        (
            _TUPLE_HEADERS[kind, len(from_address)],
            before,
            from_address,
            between,
            to_address,
            _PROTO_AND_SOURCE_PORT[protocol],
            _PORT.pack(source_port),
            _DESTINATION_PORT,
            _PORT.pack(destination_port),
        )
    )


def encode_zone(zone: int) -> bytes:
    """CTA_ZONE, nothing for the default zone."""
    return attribute(abi.CTA_ZONE, struct.pack(">H", zone)) if zone else b""


def encode_name(entry: ConntrackEntry) -> bytes:
    """What names an entry: original tuple and zone."""
    return encode_tuple(abi.CTA_TUPLE_ORIG, entry.orig, entry.protocol) + encode_zone(entry.zone)


def encode_entry(entry: ConntrackEntry) -> bytes:
    """All that is needed to insert the entry.

    The reply tuple goes in *before* NAT (the original reversed), together with the NAT that leads
    to ``entry.reply``: given the result at once the kernel finds nothing to change, and leaves
    IPS_DST_NAT unset (net/netfilter/nf_nat_core.c, nf_nat_setup_info).
    """
    parts = [
        encode_name(entry),
        encode_tuple(abi.CTA_TUPLE_REPLY, entry.orig.reversed(), entry.protocol),
        _encode_number(abi.CTA_STATUS, entry.status),
        _encode_number(abi.CTA_TIMEOUT, entry.timeout),
    ]
    if entry.has_nat:
        # Both, even if one changes nothing: the kernel takes a port of its own choice for a side
        # that is not spelled out when the reply tuple is taken, instead of refusing (EEXIST).
        parts.append(_encode_nat(abi.CTA_NAT_DST, entry.reply.source))
        parts.append(_encode_nat(abi.CTA_NAT_SRC, entry.reply.destination))
    if entry.mark:
        parts.append(_encode_number(abi.CTA_MARK, entry.mark))
    if entry.labels:
        parts.append(attribute(abi.CTA_LABELS, entry.labels))
    if entry.tcp is not None:
        parts.append(_encode_tcp(entry.tcp))
    return b"".join(parts)


def decode_entry(payload: bytes, protocol: int = socket.IPPROTO_TCP) -> ConntrackEntry | None:
    """The entry in one ctnetlink message, ``None`` if it is of another protocol."""
    fields = parse(payload)
    orig = _decode_tuple(fields[abi.CTA_TUPLE_ORIG], protocol)
    reply = _decode_tuple(fields[abi.CTA_TUPLE_REPLY], protocol)
    if orig is None or reply is None:
        return None
    return ConntrackEntry(
        orig=orig,
        reply=reply,
        status=_number(fields.get(abi.CTA_STATUS)),
        timeout=_number(fields.get(abi.CTA_TIMEOUT)),
        tcp=_decode_tcp(fields.get(abi.CTA_PROTOINFO, b"")),
        mark=_number(fields.get(abi.CTA_MARK)),
        zone=_number(fields.get(abi.CTA_ZONE)),
        labels=fields.get(abi.CTA_LABELS, b"").rstrip(b"\0") and fields[abi.CTA_LABELS],
        protocol=protocol,
    )


def _number(value: bytes | None) -> int:
    return int.from_bytes(value, "big") if value is not None else 0


# Whole moves share these parts: one new address, a few negotiated options.
@lru_cache(maxsize=1 << 12)
def _encode_number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value))


@lru_cache(maxsize=1 << 12)
def _encode_nat(kind: int, target: Endpoint) -> bytes:
    address = packed(target.address)
    lowest, highest = (
        (abi.CTA_NAT_V4_MINIP, abi.CTA_NAT_V4_MAXIP)
        if len(address) == 4
        else (abi.CTA_NAT_V6_MINIP, abi.CTA_NAT_V6_MAXIP)
    )
    port = struct.pack(">H", target.port)
    return nested(
        kind,
        attribute(lowest, address),
        attribute(highest, address),
        nested(
            abi.CTA_NAT_PROTO,
            attribute(abi.CTA_PROTONAT_PORT_MIN, port),
            attribute(abi.CTA_PROTONAT_PORT_MAX, port),
        ),
    )


@lru_cache(maxsize=1 << 12)
def _encode_tcp(tcp: TcpTracking) -> bytes:
    # struct nf_ct_tcp_flags: flags, mask. The scale is taken only where WINDOW_SCALE is set in
    # both directions (nlattr_to_tcp), which is also what a connection agrees on.
    return nested(
        abi.CTA_PROTOINFO,
        nested(
            abi.CTA_PROTOINFO_TCP,
            attribute(abi.CTA_PROTOINFO_TCP_STATE, bytes([tcp.state])),
            attribute(abi.CTA_PROTOINFO_TCP_WSCALE_ORIGINAL, bytes([tcp.wscale[0]])),
            attribute(abi.CTA_PROTOINFO_TCP_WSCALE_REPLY, bytes([tcp.wscale[1]])),
            attribute(abi.CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, bytes([tcp.flags[0], 0xFF])),
            attribute(abi.CTA_PROTOINFO_TCP_FLAGS_REPLY, bytes([tcp.flags[1], 0xFF])),
        ),
    )


@lru_cache(maxsize=1 << 12)
def _decode_tcp(protoinfo: bytes) -> TcpTracking | None:
    tcp = parse(protoinfo).get(abi.CTA_PROTOINFO_TCP)
    if tcp is None:
        return None
    fields = parse(tcp)

    def first(kind: int) -> int:
        return fields.get(kind, b"\0")[0]

    return TcpTracking(
        state=first(abi.CTA_PROTOINFO_TCP_STATE),
        wscale=(
            first(abi.CTA_PROTOINFO_TCP_WSCALE_ORIGINAL),
            first(abi.CTA_PROTOINFO_TCP_WSCALE_REPLY),
        ),
        flags=(
            first(abi.CTA_PROTOINFO_TCP_FLAGS_ORIGINAL),
            first(abi.CTA_PROTOINFO_TCP_FLAGS_REPLY),
        ),
    )


def _decode_tuple(payload: bytes, protocol: int) -> Direction | None:
    size = _ADDRESS_SIZES.get(len(payload))
    if size is None:  # a zone of its own for each direction, or an attribute not known here
        return _decode_any_tuple(payload, protocol)
    before, between = _ADDRESSES[size]
    first, second, ports = 8, 8 + size + 4, 8 + size + 4 + size
    if (
        payload[:first] != before
        or payload[first + size : second] != between
        or payload[ports : ports + 16] != _PROTO_AND_SOURCE_PORT[protocol]
    ):
        return _decode_any_tuple(payload, protocol)
    return Direction(
        Endpoint(
            read_address(payload[first : first + size]),
            int.from_bytes(payload[ports + 16 : ports + 18], "big"),
        ),
        Endpoint(
            read_address(payload[second : second + size]),
            int.from_bytes(payload[ports + 24 : ports + 26], "big"),
        ),
    )


def _decode_any_tuple(payload: bytes, protocol: int) -> Direction | None:
    fields = parse(payload)
    ports = parse(fields[abi.CTA_TUPLE_PROTO])
    if ports[abi.CTA_PROTO_NUM][0] != protocol:
        return None
    addresses = parse(fields[abi.CTA_TUPLE_IP])
    source = addresses.get(abi.CTA_IP_V4_SRC) or addresses[abi.CTA_IP_V6_SRC]
    destination = addresses.get(abi.CTA_IP_V4_DST) or addresses[abi.CTA_IP_V6_DST]
    return Direction(
        Endpoint(read_address(source), _number(ports[abi.CTA_PROTO_SRC_PORT])),
        Endpoint(read_address(destination), _number(ports[abi.CTA_PROTO_DST_PORT])),
    )
