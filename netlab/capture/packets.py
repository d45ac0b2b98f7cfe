"""Reads a pcap file of TCP packets into columns.

scapy reads some ten thousand packets a second; a series of fifty moves has a million. The file's
records have a simple frame, so their offsets are found in one loop, and the headers of all packets
are decoded at once with numpy: a million packets take about two seconds.

Sources: pcap-savefile(5); RFC 791, 8200, 9293 for the headers.
"""

import ipaddress
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mycoproxy.errors import MycoError
from netlab.capture.tcpdump import ClockOffset

FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10

_FILE_HEADER_BYTES = 24
_RECORD_HEADER = struct.Struct("<IIII")  # seconds, fraction, bytes in the file, bytes on the wire
_NANOSECOND_MAGIC = 0xA1B23C4D
_MICROSECOND_MAGIC = 0xA1B2C3D4
_LINKTYPE_ETHERNET = 1
_ETHERNET_BYTES = 14
_IPV6_BYTES = 40
_TCP_BYTES = 20
_V4_MAPPED = 0xFFFF << 32

Column = npt.NDArray[Any]


@dataclass(frozen=True)
class Packets:
    """TCP packets in the order of the capture; all columns have the same length.

    ``time``: seconds, monotonic if the file was read with a clock offset, else since the epoch.
    ``source``, ``destination``: indices into ``addresses``. ``payload``: bytes on the wire,
    whatever the snap length. ``window`` is as in the header, not scaled. ``ignored``: packets that
    are not TCP over IPv4 or IPv6, or cut off within their headers.
    """

    addresses: tuple[str, ...]
    time: Column
    source: Column
    destination: Column
    source_port: Column
    destination_port: Column
    seq: Column
    ack: Column
    flags: Column
    payload: Column
    window: Column
    ignored: int = 0

    def __len__(self) -> int:
        return len(self.time)


def read_pcap(path: Path, clock: ClockOffset | None = None) -> Packets:
    """Read a little-endian pcap file of an Ethernet interface.

    A file that is cut off (tcpdump was killed) is read up to its last whole packet. Raises
    ``MycoError`` if it is something else.
    """
    data = path.read_bytes()
    unit = _fraction_unit(path, data)
    offsets, headers = _records(data)
    raw = np.frombuffer(data, np.uint8)
    nanoseconds = headers[:, 0] * 1_000_000_000 + headers[:, 1] * unit
    if clock is not None:
        nanoseconds -= clock.nanoseconds
    return _decode(raw, offsets, headers[:, 2], headers[:, 3], nanoseconds / 1e9)


def _fraction_unit(path: Path, data: bytes) -> int:
    if len(data) >= _FILE_HEADER_BYTES:
        magic, linktype = struct.unpack_from("<I16xI", data)
        units = {_NANOSECOND_MAGIC: 1, _MICROSECOND_MAGIC: 1000}
        if magic in units and linktype == _LINKTYPE_ETHERNET:
            return units[magic]
        if magic in units:
            raise MycoError(f"{path}: an Ethernet capture (link type 1) wanted, found {linktype}")
    raise MycoError(f"{path}: a little-endian pcap file wanted; it begins {data[:4].hex()!r}")


def _records(data: bytes) -> tuple[Column, Column]:
    offsets: list[int] = []
    headers: list[tuple[int, int, int, int]] = []
    unpack, size = _RECORD_HEADER.unpack_from, _RECORD_HEADER.size
    position, end = _FILE_HEADER_BYTES, len(data)
    while position + size <= end:
        header = unpack(data, position)
        position += size
        if position + header[2] > end:
            break
        offsets.append(position)
        headers.append(header)
        position += header[2]
    return np.array(offsets, np.int64), np.array(headers, np.int64).reshape(-1, 4)


class _Bytes:
    """Big-endian fields of many packets at once. Packets that are too short read as zero."""

    def __init__(self, raw: Column) -> None:
        self._raw = np.concatenate([raw, np.zeros(128, np.uint8)])

    def field(self, at: Column, size: int) -> Column:
        value = np.zeros(len(at), np.uint64)
        for index in range(size):
            value = (value << np.uint64(8)) | self._raw[at + index]
        return value

    def number(self, at: Column, size: int) -> Column:
        """Up to four bytes, signed 64-bit, so that differences are easy."""
        return self.field(at, size).astype(np.int64)


def _decode(raw: Column, offsets: Column, kept: Column, on_wire: Column, time: Column) -> Packets:
    read = _Bytes(raw)
    ip = offsets + _ETHERNET_BYTES
    ether_type = read.number(offsets + 12, 2)
    v4 = (ether_type == 0x0800) & (read.number(ip + 9, 1) == 6)
    v4 &= (read.number(ip + 6, 2) & 0x1FFF) == 0  # not a later fragment
    v6 = (ether_type == 0x86DD) & (read.number(ip + 6, 1) == 6)
    ip_bytes = np.where(v4, (read.number(ip, 1) & 0x0F) * 4, _IPV6_BYTES)
    whole = kept >= _ETHERNET_BYTES + ip_bytes + _TCP_BYTES
    rows = np.flatnonzero((v4 | v6) & whole)
    ip, ip_bytes, v4 = ip[rows], ip_bytes[rows], v4[rows]
    tcp = ip + ip_bytes

    # The length field is zero where a segment of more than 64 KiB was captured before it was cut
    # (BIG TCP).
    length_field = read.number(np.where(v4, ip + 2, ip + 4), 2)
    datagram = np.where(v4, length_field, length_field + _IPV6_BYTES)
    datagram = np.where(length_field == 0, on_wire[rows] - _ETHERNET_BYTES, datagram)
    tcp_bytes = (read.number(tcp + 12, 1) >> 4) * 4

    source = _address_halves(read, ip, v4, v4_at=12, v6_at=8)
    destination = _address_halves(read, ip, v4, v4_at=16, v6_at=24)
    addresses, ids = _intern(
        np.concatenate([source[0], destination[0]]), np.concatenate([source[1], destination[1]])
    )
    return Packets(
        addresses=addresses,
        time=time[rows],
        source=ids[: len(rows)],
        destination=ids[len(rows) :],
        source_port=read.number(tcp, 2),
        destination_port=read.number(tcp + 2, 2),
        seq=read.number(tcp + 4, 4),
        ack=read.number(tcp + 8, 4),
        flags=read.number(tcp + 13, 1),
        payload=datagram - ip_bytes - tcp_bytes,
        window=read.number(tcp + 14, 2),
        ignored=len(offsets) - len(rows),
    )


def _address_halves(
    read: _Bytes, ip: Column, v4: Column, *, v4_at: int, v6_at: int
) -> tuple[Column, Column]:
    high = np.where(v4, np.uint64(0), read.field(ip + v6_at, 8))
    mapped = read.field(ip + v4_at, 4) | np.uint64(_V4_MAPPED)
    low = np.where(v4, mapped, read.field(ip + v6_at + 8, 8))
    return high, low


def _intern(high: Column, low: Column) -> tuple[tuple[str, ...], Column]:
    # Two passes over 64-bit halves: sorting 128-bit keys is many times slower.
    highs, high_ids = np.unique(high, return_inverse=True)
    lows, low_ids = np.unique(low, return_inverse=True)
    pairs, ids = np.unique(
        high_ids.astype(np.int64) * max(len(lows), 1) + low_ids, return_inverse=True
    )
    texts = []
    for pair in pairs.tolist():
        high_id, low_id = divmod(pair, len(lows))
        address = ipaddress.IPv6Address((int(highs[high_id]) << 64) | int(lows[low_id]))
        texts.append(str(address.ipv4_mapped or address))
    return tuple(texts), ids.astype(np.int64)
