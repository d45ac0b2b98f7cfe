"""What the sides of a move tell each other about UDP, as bytes: see ``plain``. Strict and bounded.

Best effort ends where it could do harm: a datagram that was told wrongly would be delivered to
somebody else, so wrong bytes are a ``TransferError`` here, too.
"""

import ipaddress
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import msgpack

from mycoproxy.addresses import FourTuple
from mycoproxy.handover import plain
from mycoproxy.handover.datagram_routes import FlowOffer, FlowTask
from mycoproxy.handover.datagrams import DatagramEnd
from mycoproxy.handover.plain import MOST, TransferError
from mycoproxy.netfilter.entry import ConntrackEntry
from mycoproxy.netfilter.paths import Path
from mycoproxy.sockets import DescriptorName
from mycoproxy.sockets.datagram import Datagram

_LARGEST: Final = 0xFFFF - 8  # of a payload: a UDP header's length field, less the header
_LARGEST_PART: Final = 1 << 20  # bytes of payloads in one part, unless one alone is larger
_MOST_NAMES: Final = 4096  # descriptors of one socket
_MOST_OPTIONS: Final = 128
_LONGEST_OPTION: Final = 64  # characters
_MOST_REMARKS: Final = 1024
_LONGEST_REMARK: Final = 2000
_PATHS: Final = {path.value: path for path in Path}


def ends_to_bytes(ends: Sequence[DatagramEnd]) -> bytes:
    """UDP sockets of the workload."""
    return _pack(
        [
            # One that is not connected stands there with its own address twice.
            plain.names_to_bytes(FourTuple(end.local, end.remote or end.local) for end in ends),
            [end.remote is not None for end in ends],
            [[part for name in end.names for part in name] for end in ends],
            [dict(end.options) for end in ends],
        ]
    )


def ends_from_bytes(data: bytes) -> list[DatagramEnd]:
    """The inverse. Raises ``TransferError``."""
    names, connected, descriptors, options = _columns(data, 4)
    return [
        DatagramEnd(
            name.local,
            name.remote if _flag(is_connected) else None,
            _descriptors(numbers),
            _options(option),
        )
        for name, is_connected, numbers, option in _rows(
            _names(names), connected, descriptors, options
        )
    ]


def offers_to_bytes(offers: Sequence[FlowOffer]) -> bytes:
    """What a node can do for flows."""
    return _pack(
        [
            plain.names_to_bytes(offer.flow for offer in offers),
            [offer.path.value for offer in offers],
            [_entry_to_plain(offer.entry) for offer in offers],
            [offer.certain for offer in offers],
            [offer.anchor for offer in offers],
        ]
    )


def offers_from_bytes(data: bytes) -> list[FlowOffer]:
    """The inverse. Raises ``TransferError``."""
    flows, paths, entries, certain, anchors = _columns(data, 5)
    return [
        FlowOffer(
            flow,
            _path(path),
            _entry(entry),
            _flag(is_certain),
            None if anchor is None else _address(anchor),
        )
        for flow, path, entry, is_certain, anchor in _rows(
            _names(flows), paths, entries, certain, anchors
        )
    ]


def tasks_to_bytes(tasks: Sequence[FlowTask]) -> bytes:
    """What a node is to do for flows."""
    return _pack(
        [
            plain.names_to_bytes(task.flow for task in tasks),
            [task.path.value for task in tasks],
            plain.names_to_bytes(task.after for task in tasks),
            [_entry_to_plain(task.entry) for task in tasks],
        ]
    )


def tasks_from_bytes(data: bytes) -> list[FlowTask]:
    """The inverse. Raises ``TransferError``."""
    flows, paths, after, entries = _columns(data, 4)
    return [
        FlowTask(flow, _path(path), new, _entry(entry))
        for flow, path, new, entry in _rows(_names(flows), paths, _names(after), entries)
    ]


def datagrams_to_parts(datagrams: Sequence[Datagram]) -> Iterator[bytes]:
    """Datagrams in parts of some megabyte, each of which can be told by itself; one at least."""
    part: list[Datagram] = []
    size = 0
    for one in datagrams:
        part.append(one)
        size += len(one.payload)
        if size >= _LARGEST_PART:
            yield _datagrams(part)
            part, size = [], 0
    if part or not datagrams:
        yield _datagrams(part)


def datagrams_from_bytes(data: bytes) -> list[Datagram]:
    """One part. Raises ``TransferError``."""
    flows, payloads = _columns(data, 2)
    return [Datagram(flow, _payload(payload)) for flow, payload in _rows(_names(flows), payloads)]


def ports_from_plain(plain_ports: object) -> list[int]:
    """Ports of the workload. Raises ``TransferError``."""
    return [_port(port) for port in _list(plain_ports, 1 << 16)]


def remarks_to_plain(remarks: Sequence[str]) -> list[str]:
    """What could not be kept, in words. What is too much of it is left out."""
    return [remark[:_LONGEST_REMARK] for remark in remarks[:_MOST_REMARKS]]


def remarks_from_plain(remarks: object) -> tuple[str, ...]:
    """The inverse. Raises ``TransferError``."""
    return tuple(_text(one, _LONGEST_REMARK) for one in _list(remarks, _MOST_REMARKS))


def _datagrams(part: Sequence[Datagram]) -> bytes:
    return _pack([plain.names_to_bytes(one.flow for one in part), [one.payload for one in part]])


def _entry_to_plain(entry: ConntrackEntry | None) -> bytes | None:
    return None if entry is None else plain.entry_to_bytes(entry)


def _entry(packed: object) -> ConntrackEntry | None:
    if packed is None:
        return None
    entry = plain.entry_from_bytes(_bytes(packed))
    if entry.tcp is not None:
        raise TransferError("an entry of a UDP flow is wanted, not of a TCP connection")
    return replace(entry, protocol=socket.IPPROTO_UDP)


def _names(packed: object) -> list[FourTuple]:
    return plain.names_from_bytes(_bytes(packed))


def _descriptors(flat: object) -> tuple[DescriptorName, ...]:
    numbers = _list(flat, 2 * _MOST_NAMES)
    if len(numbers) % 2 or not all(_is_int(one) and 0 <= one < 1 << 31 for one in numbers):
        raise TransferError(f"descriptors: pairs of pid and number are wanted, not {flat!r:.80}")
    return tuple(map(DescriptorName, numbers[::2], numbers[1::2]))


def _options(options: object) -> Mapping[str, int]:
    if not isinstance(options, dict) or len(options) > _MOST_OPTIONS:
        raise TransferError(f"options: a map of names to numbers is wanted, not {options!r:.80}")
    for name, value in options.items():
        _text(name, _LONGEST_OPTION)
        if not _is_int(value) or not -(1 << 31) <= value < 1 << 31:
            raise TransferError(f"{name}: a C int is wanted, not {value!r:.80}")
    return options


def _path(value: object) -> Path:
    if not isinstance(value, str) or value not in _PATHS:
        raise TransferError(f"path: one of {', '.join(_PATHS)} is wanted, not {value!r:.80}")
    return _PATHS[value]


def _address(value: object) -> str:
    try:
        return str(ipaddress.ip_address(_text(value, 64)))
    except ValueError as error:
        raise TransferError(str(error)) from error


def _port(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 0xFFFF:
        raise TransferError(f"port: 0 to 65535 is wanted, not {value!r:.80}")
    return value


def _payload(value: object) -> bytes:
    payload = _bytes(value)
    if len(payload) > _LARGEST:
        raise TransferError(f"datagram: {_LARGEST} bytes at most, {len(payload)} were found")
    return payload


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TransferError(f"true or false is wanted, not {value!r:.80}")
    return value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _text(value: object, longest: int) -> str:
    if not isinstance(value, str) or len(value) > longest:
        raise TransferError(f"a text of up to {longest} characters is wanted, not {value!r:.80}")
    return value


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise TransferError(f"bytes are wanted, not {value!r:.80}")
    return value


def _list(value: object, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise TransferError(f"a list of up to {most} is wanted, not {value!r:.80}")
    return value


def _columns(data: bytes, count: int) -> list[Any]:
    try:
        value = msgpack.unpackb(data, use_list=True, raw=False, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise TransferError(f"not msgpack: {error!r:.200}") from error
    columns = _list(value, count)
    if len(columns) != count:
        raise TransferError(f"{count} fields are wanted, {len(columns)} were found")
    return columns


def _rows(*columns: object) -> Iterator[tuple[Any, ...]]:
    lists = [_list(column, MOST) for column in columns]
    if len({len(column) for column in lists}) > 1:
        raise TransferError(f"columns of one length are wanted, not {[*map(len, lists)]}")
    return zip(*lists, strict=True)


def _pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed
