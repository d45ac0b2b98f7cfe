"""What nodes tell each other in a handover: the same after the journey, or an error."""

import random
import socket
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.handover import plain
from mycoproxy.handover.peer import Changes
from mycoproxy.handover.plain import TransferError
from mycoproxy.handover.sides import Connection, Offer, Task, WentLive
from mycoproxy.netfilter.entry import ConntrackEntry, Direction, TcpTracking
from mycoproxy.netfilter.paths import Path
from mycoproxy.netfilter.rebind import Rebound
from mycoproxy.netfilter.translate import Move
from mycoproxy.sockets import DescriptorName
from mycoproxy.tcp import TcpConnectionState, TcpState
from mycoproxy.tcp.segments import ACK, segment
from mycoproxy.tcp.state import Buffers, Negotiated, ReceiveQueue, SendQueue, Window

MOST_BYTES = 1 << 24
MUTANTS = 20_000

ports = st.integers(0, 0xFFFF)
addresses = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).filter(lambda one: one.ipv4_mapped is None).map(str),  # type: ignore[union-attr]
    st.ip_addresses(v=4).map(lambda one: f"::ffff:{one}"),
)
endpoints = st.builds(Endpoint, addresses, ports)
names = st.builds(FourTuple, endpoints, endpoints)
directions = st.builds(Direction, endpoints, endpoints)
u32 = st.integers(0, 2**32 - 1)
trackings = st.builds(TcpTracking, st.integers(0, 14), st.tuples(u32, u32), st.tuples(u32, u32))
entries = st.builds(
    ConntrackEntry,
    orig=directions,
    reply=directions,
    status=u32,
    timeout=u32,
    tcp=st.none() | trackings,
    mark=u32,
    zone=ports,
    labels=st.binary(max_size=16),
)
paths = st.sampled_from(Path)
offers = st.builds(Offer, names, paths, st.none(), st.none() | endpoints)
tasks = st.builds(Task, names, paths, names, st.none() | entries)


def connection(port: int, queue: int = 0) -> Connection:
    state = TcpState(
        family=socket.AddressFamily.AF_INET,
        local=Endpoint("10.0.0.1", 80),
        remote=Endpoint("192.0.2.7", port),
        state=TcpConnectionState.ESTABLISHED,
        send=SendQueue(1000, b"s" * queue, b"u"),
        receive=ReceiveQueue(2000, b"r" * queue),
        window=Window(1, 2, 3, 4, 5),
        negotiated=Negotiated(1460, None, sack=True, timestamps=None, ecn=False),
        buffers=Buffers(*(0 for _ in Buffers._fields)),
        reuse_address=False,
    )
    if port % 2:
        return Connection((), state, listener=(DescriptorName(1, 3),), handshake=bool(port % 3))
    return Connection((DescriptorName(1, port), DescriptorName(7, port)), state)


@given(st.lists(names, max_size=5))
def test_names(given_names: list[FourTuple]) -> None:
    assert plain.names_from_bytes(plain.names_to_bytes(given_names)) == given_names


@given(st.lists(offers, max_size=5))
def test_offers(given_offers: list[Offer]) -> None:
    assert plain.offers_from_bytes(plain.offers_to_bytes(given_offers)) == given_offers


@given(st.lists(tasks, max_size=5))
def test_tasks(given_tasks: list[Task]) -> None:
    assert plain.tasks_from_bytes(plain.tasks_to_bytes(given_tasks)) == given_tasks


@given(entries)
def test_entries(entry: ConntrackEntry) -> None:
    assert plain.entry_from_bytes(plain.entry_to_bytes(entry)) == entry


@given(st.dictionaries(names, endpoints, max_size=5))
def test_anchors(via: dict[FourTuple, Endpoint]) -> None:
    assert plain.via_from_plain(over_the_wire(plain.via_to_plain(via))) == via


changed = st.builds(
    Changes,
    moves=st.lists(st.builds(Move, names, endpoints), max_size=3),
    translated=st.dictionaries(names, endpoints, max_size=3),
    replaced=st.dictionaries(names, st.builds(Rebound, st.none() | entries, entries), max_size=3),
    added=st.lists(entries, max_size=3),
    obsolete=st.lists(entries, max_size=3),
    needs_nat=st.booleans(),
)


@given(changed)
def test_changes(changes: Changes) -> None:
    assert plain.changes_from_bytes(plain.changes_to_bytes(changes)) == changes


def test_changes_of_an_agent_that_changed_addresses_only() -> None:
    """In the journal that it left; the port stayed."""
    name, new = FourTuple(Endpoint("10.0.0.1", 80), Endpoint("192.0.2.7", 4000)), "10.0.1.1"
    changes = Changes([Move(name, Endpoint(new, 80))], {name: Endpoint(new, 80)}, {}, [], [], True)
    columns = msgpack.unpackb(plain.changes_to_bytes(changes))
    columns[1] = columns[3] = [new]
    assert plain.changes_from_bytes(msgpack.packb(columns)) == changes


def test_segments() -> None:
    name = connection(4000).four_tuple
    given_segments = [segment(name, flags=ACK, sequence=n, data=b"x" * n) for n in range(3)]
    assert plain.segments_from_bytes(plain.segments_to_bytes(given_segments)) == given_segments


def test_how_it_went_live() -> None:
    live = WentLive(3, ("an option was not kept",))
    assert plain.went_live_from_plain(over_the_wire(plain.went_live_to_plain(live))) == live


def over_the_wire(value: object) -> object:
    return msgpack.unpackb(msgpack.packb(value))


def read(data: bytes, *, pieces: int = 1, most_bytes: int = MOST_BYTES) -> list[Connection]:
    reader = plain.ConnectionReader(most_bytes=most_bytes)
    size = max(1, len(data) // pieces)
    found = []
    for start in range(0, len(data), size):
        found += reader.feed(data[start : start + size])
    return found


@pytest.mark.parametrize("queue", [0, 100_000])
@pytest.mark.parametrize("pieces", [1, 3, 500])
def test_connections_come_in_whatever_pieces(queue: int, pieces: int) -> None:
    given_connections = [connection(port, queue) for port in range(4000, 4010)]
    parts = list(plain.connections_to_parts(given_connections))
    assert (len(parts) > 1) == bool(queue)
    assert read(b"".join(parts), pieces=pieces) == given_connections


def test_the_anchored_ones_are_told_of_when_all_connections_are_known() -> None:
    via = {connection(4000).four_tuple: Endpoint("192.0.2.9", 4000)}
    data = b"".join(plain.connections_to_parts([connection(4000)]))
    reader = plain.ConnectionReader(most_bytes=MOST_BYTES)
    assert reader.feed(data) == [connection(4000)]
    assert reader.via is None
    assert reader.feed(plain.via_to_part(via)) == []
    assert reader.via == via
    with pytest.raises(plain.TransferError, match="something follows the end"):
        reader.feed(data)


@given(st.lists(tasks, max_size=3), st.lists(names, max_size=3))
def test_what_is_to_be_done_beside_what_was_staged(more: list[Task], less: list[FourTuple]) -> None:
    assert plain.rehoming_from_bytes(plain.rehoming_to_bytes(more, less)) == (more, less)


def test_a_connection_is_told_of_while_others_are_still_on_their_way() -> None:
    first, *_ = plain.connections_to_parts(connection(port, 100_000) for port in range(1, 10))
    assert read(first)


def test_more_than_a_node_takes_is_refused() -> None:
    data = b"".join(plain.connections_to_parts([connection(4000, 50_000)]))
    with pytest.raises(TransferError, match="more connections, or fuller queues"):
        read(data, pieces=10, most_bytes=60_000)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        [1],
        ["10.0.0.1", 80, "10.0.0.2"],
        ["10.0.0.1", 80, "10.0.0.2", 65536],
        ["10.0.0.1", True, "10.0.0.2", 1],
        ["10.0.0.1", "80", "10.0.0.2", 1],
        ["ten", 80, "10.0.0.2", 1],
        [b"10.0.0.1", 80, "10.0.0.2", 1],
    ],
)
def test_what_is_no_list_of_names_is_an_error(value: object) -> None:
    with pytest.raises(TransferError):
        plain.names_from_bytes(msgpack.packb(value))


def test_a_segment_without_a_whole_header_is_an_error() -> None:
    for data in (b"", bytes(19), bytes(20), bytes([0] * 12 + [0xF0] + [0] * 7)):
        packed = msgpack.packb([["10.0.0.1", 80, "10.0.0.2", 1], [data]])
        with pytest.raises(TransferError, match="TCP header"):
            plain.segments_from_bytes(packed)


@pytest.mark.parametrize(
    ("to_bytes", "from_bytes", "value"),
    [
        (plain.names_to_bytes, plain.names_from_bytes, [connection(1).four_tuple]),
        (
            plain.offers_to_bytes,
            plain.offers_from_bytes,
            [Offer(connection(1).four_tuple, Path.ANCHOR, None, Endpoint("10.0.0.9", 1))],
        ),
        (
            plain.tasks_to_bytes,
            plain.tasks_from_bytes,
            [Task(connection(1).four_tuple, Path.REBIND, connection(2).four_tuple)],
        ),
        (lambda value: next(plain.connections_to_parts(value)), read, [connection(1)]),
    ],
    ids=["names", "offers", "tasks", "connections"],
)
def test_whatever_is_changed_on_the_way_is_an_error_or_well_formed(
    to_bytes: Callable[[Any], bytes], from_bytes: Callable[[bytes], Any], value: Sequence[Any]
) -> None:
    good = to_bytes(value)
    chance = random.Random(4)
    for _ in range(MUTANTS // 4):
        data = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            match chance.randrange(3):
                case 0:
                    data[chance.randrange(len(data))] = chance.randrange(256)
                case 1:
                    del data[chance.randrange(len(data)) :]
                case 2:
                    data.insert(chance.randrange(len(data) + 1), chance.randrange(256))
            if not data:
                break
        try:
            found = from_bytes(bytes(data))
        except TransferError:
            continue
        assert isinstance(found, list)
