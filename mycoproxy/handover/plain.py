"""What the sides of a handover tell each other, as bytes: msgpack, in columns. Strict and bounded.

Thousands of connections are told of at once, so a list of them is a few flat lists (msgpack's C
code does nearly all of the work) and not a list of maps. What comes from another node is checked
here: wrong bytes are a ``TransferError`` that names what is wrong, and nothing else.
"""

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import msgpack

from mycoproxy import tcp
from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.errors import MycoError
from mycoproxy.handover.peer import Changes
from mycoproxy.handover.sides import Connection, Offer, Task, WentLive
from mycoproxy.netfilter.entry import ConntrackEntry, Direction, TcpTracking
from mycoproxy.netfilter.paths import Path
from mycoproxy.netfilter.rebind import Rebound
from mycoproxy.netfilter.translate import Move
from mycoproxy.sockets import DescriptorName
from mycoproxy.tcp import Segment

MOST: Final = 1 << 17
"""Connections in one list."""

_LARGEST_PART: Final = 1 << 18  # bytes of states that are put into one part, unless one is larger
_LARGEST_STATE: Final = 1 << 31
_MOST_NAMES: Final = 4096  # descriptors of one socket
_PATHS: Final = {path.value: path for path in Path}


class TransferError(MycoError):
    """What another node sent is not what it should be."""


def names_to_bytes(names: Iterable[FourTuple]) -> bytes:
    """Names of connections."""
    return _pack(_flat(names))


def names_from_bytes(data: bytes) -> list[FourTuple]:
    """The inverse. Raises ``TransferError``."""
    return _names(_unpack(data))


def offers_to_bytes(offers: Sequence[Offer]) -> bytes:
    """Offers without their entries: those matter to the workload's own node only."""
    return _pack(
        [
            _flat(offer.connection for offer in offers),
            [offer.path.value for offer in offers],
            [list(offer.anchor) if offer.anchor else None for offer in offers],
        ]
    )


def offers_from_bytes(data: bytes) -> list[Offer]:
    """The inverse. Raises ``TransferError``."""
    connections, paths, anchors = _columns(_unpack(data), 3)
    return [
        Offer(connection, _path(path), None, None if anchor is None else _endpoint(anchor))
        for connection, path, anchor in _rows(_names(connections), paths, anchors)
    ]


def tasks_to_bytes(tasks: Sequence[Task]) -> bytes:
    """Tasks."""
    return _pack(
        [
            _flat(task.connection for task in tasks),
            [task.path.value for task in tasks],
            _flat(task.after for task in tasks),
            [None if task.entry is None else _entry_to_plain(task.entry) for task in tasks],
        ]
    )


def tasks_from_bytes(data: bytes) -> list[Task]:
    """The inverse. Raises ``TransferError``."""
    connections, paths, after, entries = _columns(_unpack(data), 4)
    return [
        Task(connection, _path(path), new, None if entry is None else entry_from_plain(entry))
        for connection, path, new, entry in _rows(
            _names(connections), paths, _names(after), entries
        )
    ]


def rehoming_to_bytes(tasks: Sequence[Task], without: Iterable[FourTuple]) -> bytes:
    """Tasks, and the names of those that were staged and are not to be done."""
    return _pack([tasks_to_bytes(tasks), names_to_bytes(without)])


def rehoming_from_bytes(data: bytes) -> tuple[list[Task], list[FourTuple]]:
    """The inverse. Raises ``TransferError``."""
    tasks, names = _columns(_unpack(data), 2)
    return tasks_from_bytes(_bytes(tasks)), names_from_bytes(_bytes(names))


def segments_to_bytes(segments: Sequence[Segment]) -> bytes:
    """Segments."""
    return _pack([_flat(one.connection for one in segments), [one.segment for one in segments]])


def segments_from_bytes(data: bytes) -> list[Segment]:
    """The inverse. Raises ``TransferError``."""
    connections, segments = _columns(_unpack(data), 2)
    return [
        Segment(connection, _segment(segment))
        for connection, segment in _rows(_names(connections), segments)
    ]


def connections_to_parts(connections: Iterable[Connection]) -> Iterator[bytes]:
    """Connections with their states, in parts that can be taken in one by one."""
    part: list[Any] = []
    size = 0
    for one in connections:
        state = tcp.encode(one.state)
        part.append([_flat_names(one.names), _flat_names(one.listener), one.handshake, state])
        size += len(state)
        if size >= _LARGEST_PART:
            yield _pack(part)
            part, size = [], 0
    if part:
        yield _pack(part)


def via_to_part(via: Mapping[FourTuple, Endpoint]) -> bytes:
    """What comes after the connections: which are anchored, see ``Target.establish``."""
    return _pack({"via": via_to_plain(via)})


class ConnectionReader:
    """Takes the parts of ``connections_to_parts``, in whatever pieces they come; then
    ``via_to_part``, which may be missing."""

    def __init__(self, *, most_bytes: int) -> None:
        self._left = most_bytes
        self.via: dict[FourTuple, Endpoint] | None = None
        """None: it has not come."""
        self._unpacker = msgpack.Unpacker(
            max_buffer_size=min(most_bytes, _LARGEST_STATE),
            use_list=True,
            raw=False,
            strict_map_key=True,
        )

    def feed(self, data: bytes | memoryview) -> list[Connection]:
        """The connections that are complete by now. Raises ``TransferError``."""
        self._left -= len(data)
        if self._left < 0:
            raise TransferError("more connections, or fuller queues, than this node takes")
        try:
            self._unpacker.feed(data)
            return [one for part in self._unpacker for one in self._read(part)]
        except TransferError:
            raise
        except (ValueError, msgpack.UnpackException) as error:
            raise TransferError(f"not a list of connections: {error!r:.200}") from error

    def _read(self, part: object) -> Iterable[Connection]:
        if self.via is not None:
            raise TransferError("something follows the end of the connections")
        if isinstance(part, dict):
            self.via = via_from_plain(part.get("via"))
            return ()
        return map(_connection, _list(part))


def via_to_plain(via: Mapping[FourTuple, Endpoint]) -> list[Any]:
    """Anchors of connections, see ``Target.establish``."""
    return [_flat(via), [list(anchor) for anchor in via.values()]]


def via_from_plain(plain: object) -> dict[FourTuple, Endpoint]:
    """The inverse. Raises ``TransferError``."""
    names, anchors = _columns(plain, 2)
    return {name: _endpoint(anchor) for name, anchor in _rows(_names(names), anchors)}


def addresses_from_plain(plain: object) -> dict[str, str]:
    """Old addresses of a workload to new ones. Raises ``TransferError``."""
    if not isinstance(plain, dict) or len(plain) > MOST:
        raise TransferError(f"addresses: a map of old to new ones is wanted, not {plain!r:.80}")
    return {_address(old): _address(new) for old, new in plain.items()}


def went_live_to_plain(live: WentLive) -> list[Any]:
    """What ``Target.go_live`` says."""
    return [live.delivered, list(live.remarks)]


def went_live_from_plain(plain: object) -> WentLive:
    """The inverse. Raises ``TransferError``."""
    delivered, remarks = _columns(plain, 2)
    return WentLive(_number(delivered), tuple(_text(remark) for remark in _list(remarks)))


def changes_to_bytes(changes: Changes) -> bytes:
    """What one node is about to do in one of its namespaces."""
    return _pack(
        [
            _flat(move.connection for move in changes.moves),
            [list(move.new) for move in changes.moves],
            _flat(changes.translated),
            [list(now) for now in changes.translated.values()],
            _flat(changes.replaced),
            [
                [one.old and _entry_to_plain(one.old), _entry_to_plain(one.new)]
                for one in changes.replaced.values()
            ],
            [_entry_to_plain(entry) for entry in changes.added],
            [_entry_to_plain(entry) for entry in changes.obsolete],
            changes.needs_nat,
        ]
    )


def changes_from_bytes(data: bytes) -> Changes:
    """The inverse. Raises ``TransferError``."""
    names, places, dialled, now, replaced, pairs, added, obsolete, needs_nat = _columns(
        _unpack(data), 9
    )
    return Changes(
        moves=[Move(name, _place(name, new)) for name, new in _rows(_names(names), places)],
        translated={name: _place(name, at) for name, at in _rows(_names(dialled), now)},
        replaced={name: _rebound(pair) for name, pair in _rows(_names(replaced), pairs)},
        added=[entry_from_plain(entry) for entry in _list(added)],
        obsolete=[entry_from_plain(entry) for entry in _list(obsolete)],
        needs_nat=bool(needs_nat),
    )


def _place(name: FourTuple, plain: object) -> Endpoint:
    """Where a connection's workload is. A journal of an agent that could not change ports has an
    address alone."""
    if isinstance(plain, str):
        return Endpoint(_address(plain), name.local.port)
    return _endpoint(plain)


def _rebound(plain: object) -> Rebound:
    old, new = _columns(plain, 2)
    return Rebound(None if old is None else entry_from_plain(old), entry_from_plain(new))


def entry_to_bytes(entry: ConntrackEntry) -> bytes:
    """A conntrack entry."""
    return _pack(_entry_to_plain(entry))


def entry_from_plain(plain: object) -> ConntrackEntry:
    """An entry as ``entry_to_bytes`` packs it. Raises ``TransferError``."""
    orig, reply, status, timeout, tracking, mark, zone, labels = _columns(plain, 8)
    (first,), (second,) = _names(orig), _names(reply)
    return ConntrackEntry(
        orig=Direction(*first),
        reply=Direction(*second),
        status=_number(status),
        timeout=_number(timeout),
        tcp=None if tracking is None else _tracking(tracking),
        mark=_number(mark),
        zone=_number(zone),
        labels=_bytes(labels),
    )


def entry_from_bytes(data: bytes) -> ConntrackEntry:
    """The inverse of ``entry_to_bytes``. Raises ``TransferError``."""
    return entry_from_plain(_unpack(data))


def _entry_to_plain(entry: ConntrackEntry) -> list[Any]:
    one = entry.tcp
    return [
        _flat([FourTuple(*entry.orig)]),
        _flat([FourTuple(*entry.reply)]),
        entry.status,
        entry.timeout,
        None if one is None else [one.state, *one.wscale, *one.flags],
        entry.mark,
        entry.zone,
        entry.labels,
    ]


def _tracking(plain: object) -> TcpTracking:
    state, first_scale, second_scale, first, second = (_number(one) for one in _columns(plain, 5))
    return TcpTracking(state, (first_scale, second_scale), (first, second))


def _connection(plain: object) -> Connection:
    names, listener, handshake, state = _columns(plain, 4)
    if not isinstance(handshake, bool):
        raise TransferError(f"handshake: true or false is wanted, not {handshake!r:.80}")
    try:
        decoded = tcp.decode(_bytes(state))
    except tcp.TcpError as error:
        raise TransferError(f"a connection's state: {error}") from error
    return Connection(_descriptors(names), decoded, _descriptors(listener), handshake)


def _descriptors(plain: object) -> tuple[DescriptorName, ...]:
    flat = [_number(one) for one in _list(plain)]
    if len(flat) % 2 or len(flat) > _MOST_NAMES * 2:
        raise TransferError(f"descriptors: pairs of pid and number are wanted, not {flat!r:.80}")
    return tuple(map(DescriptorName, flat[::2], flat[1::2]))


def _flat_names(names: Iterable[DescriptorName]) -> list[int]:
    return [part for name in names for part in name]


def _flat(names: Iterable[FourTuple]) -> list[Any]:
    return [part for name in names for end in name for part in end]


def _names(plain: object) -> list[FourTuple]:
    flat = _list(plain)
    if len(flat) % 4:
        raise TransferError(f"names: four fields each are wanted, {len(flat)} in all were found")
    ends = list(map(_end, flat[::2], flat[1::2]))
    return list(map(FourTuple, ends[::2], ends[1::2]))


def _end(address: object, port: object) -> Endpoint:
    if not isinstance(port, int) or isinstance(port, bool) or not 0 <= port <= 0xFFFF:
        raise TransferError(f"port: 0 to 65535 is wanted, not {port!r:.80}")
    return Endpoint(_address(address), port)


def _endpoint(plain: object) -> Endpoint:
    return _end(*_columns(plain, 2))


def _address(plain: object) -> str:
    if not isinstance(plain, str) or len(plain) > 64:
        raise TransferError(f"address: a text is wanted, not {plain!r:.80}")
    return _canonical(plain)


# A list repeats few addresses; the standard library's classes cost 10 us each.
@lru_cache(maxsize=1 << 14)
def _canonical(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError as error:
        raise TransferError(str(error)) from error
    # The form that the kernel's own functions give: a mapped address with its dots.
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return f"::ffff:{parsed.ipv4_mapped}"
    return str(parsed)


def _path(plain: object) -> Path:
    if not isinstance(plain, str) or plain not in _PATHS:
        raise TransferError(f"path: one of {', '.join(_PATHS)} is wanted, not {plain!r:.80}")
    return _PATHS[plain]


def _segment(plain: object) -> bytes:
    data = _bytes(plain)
    if not 20 <= len(data) <= 0xFFFF or not 20 <= (data[12] >> 4) * 4 <= len(data):
        raise TransferError(f"segment: a TCP header is wanted, not {data!r:.80}")
    return data


def _number(plain: object) -> int:
    if not isinstance(plain, int) or isinstance(plain, bool) or not 0 <= plain < 1 << 63:
        raise TransferError(f"a number is wanted, not {plain!r:.80}")
    return plain


def _text(plain: object) -> str:
    if not isinstance(plain, str):
        raise TransferError(f"a text is wanted, not {plain!r:.80}")
    return plain


def _bytes(plain: object) -> bytes:
    if not isinstance(plain, bytes):
        raise TransferError(f"bytes are wanted, not {plain!r:.80}")
    return plain


def _list(plain: object) -> list[Any]:
    if not isinstance(plain, list) or len(plain) > MOST * 4:
        raise TransferError(f"a list is wanted, not {plain!r:.80}")
    return plain


def _columns(plain: object, count: int) -> list[Any]:
    columns = _list(plain)
    if len(columns) != count:
        raise TransferError(f"{count} fields are wanted, {len(columns)} were found")
    return columns


def _rows(*columns: object) -> Iterator[tuple[Any, ...]]:
    lists = [_list(column) for column in columns]
    if len({len(column) for column in lists}) > 1:
        raise TransferError(f"columns of one length are wanted, not {[*map(len, lists)]}")
    return zip(*lists, strict=True)


def _pack(plain: object) -> bytes:
    packed: bytes = msgpack.packb(plain, use_bin_type=True)
    return packed


def _unpack(data: bytes) -> object:
    try:
        return msgpack.unpackb(data, use_list=True, raw=False, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise TransferError(f"not msgpack: {error!r:.200}") from error
