"""What nodes tell each other about UDP: the same after the journey, or an error."""

import random
import socket
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.handover import datagram_plain as plain
from mycoproxy.handover.datagram_routes import FlowOffer, FlowTask
from mycoproxy.handover.datagrams import DatagramEnd
from mycoproxy.handover.plain import TransferError, names_to_bytes
from mycoproxy.netfilter.entry import ConntrackEntry, Direction
from mycoproxy.netfilter.paths import Path
from mycoproxy.sockets import DescriptorName
from mycoproxy.sockets.datagram import Datagram
from mycoproxy.sockets.datagram_options import read_options

MUTANTS = 5_000

ports = st.integers(0, 0xFFFF)
plain_addresses = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str).filter(lambda one: not one.startswith("::ffff:")),
)
addresses = plain_addresses | st.ip_addresses(v=4).map(lambda one: f"::ffff:{one}")
endpoints = st.builds(Endpoint, addresses, ports)
names = st.builds(FourTuple, endpoints, endpoints)
directions = st.builds(Direction, endpoints, endpoints)
u32 = st.integers(0, 2**32 - 1)
entries = st.builds(
    ConntrackEntry,
    orig=directions,
    reply=directions,
    status=u32,
    timeout=u32,
    mark=u32,
    zone=ports,
    labels=st.binary(max_size=16),
    protocol=st.just(socket.IPPROTO_UDP),
)
paths = st.sampled_from(Path)
numbers = st.integers(0, 2**31 - 1)
ends = st.builds(
    DatagramEnd,
    endpoints,
    st.none() | endpoints,
    st.lists(st.builds(DescriptorName, numbers, numbers), max_size=3).map(tuple),
    st.dictionaries(st.text(max_size=64), st.integers(-(2**31), 2**31 - 1), max_size=5),
)
offers = st.builds(
    FlowOffer, names, paths, st.none() | entries, st.booleans(), st.none() | plain_addresses
)
tasks = st.builds(FlowTask, names, paths, names, st.none() | entries)
datagrams = st.builds(Datagram, names, st.binary(max_size=20))


@given(st.lists(ends, max_size=4))
def test_sockets(given_ends: list[DatagramEnd]) -> None:
    assert plain.ends_from_bytes(plain.ends_to_bytes(given_ends)) == given_ends


@given(st.lists(offers, max_size=4))
def test_offers_with_their_entries(given_offers: list[FlowOffer]) -> None:
    assert plain.offers_from_bytes(plain.offers_to_bytes(given_offers)) == given_offers


@given(st.lists(tasks, max_size=4))
def test_flow_tasks(given_tasks: list[FlowTask]) -> None:
    assert plain.tasks_from_bytes(plain.tasks_to_bytes(given_tasks)) == given_tasks


@given(st.lists(datagrams, max_size=4))
def test_datagrams(given_datagrams: list[Datagram]) -> None:
    (part,) = plain.datagrams_to_parts(given_datagrams)
    assert plain.datagrams_from_bytes(part) == given_datagrams


def test_many_datagrams_come_in_parts() -> None:
    given_datagrams = [Datagram(name(port), bytes(60_000)) for port in range(1, 40)]
    parts = [*plain.datagrams_to_parts(given_datagrams)]
    assert len(parts) == 3
    assert [one for part in parts for one in plain.datagrams_from_bytes(part)] == given_datagrams


@given(st.lists(st.text(max_size=20), max_size=4))
def test_remarks(remarks: list[str]) -> None:
    assert plain.remarks_from_plain(plain.remarks_to_plain(remarks)) == tuple(remarks)


def test_more_remarks_than_anybody_reads_are_left_out() -> None:
    told = plain.remarks_to_plain(["x" * 5000] * 5000)
    assert plain.remarks_from_plain(told) == ("x" * 2000,) * 1024


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_options_of_a_real_socket(family: socket.AddressFamily) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        end = DatagramEnd(Endpoint("::", 5), options=read_options(sock))
    assert plain.ends_from_bytes(plain.ends_to_bytes([end])) == [end]


def name(port: int) -> FourTuple:
    return FourTuple(Endpoint("10.0.0.1", 53), Endpoint("192.0.2.7", port))


ONE = names_to_bytes([name(4000)])


@pytest.mark.parametrize(
    ("read", "wrong"),
    [
        (plain.datagrams_from_bytes, [ONE, [b"x" * 0xFFF8]]),
        (plain.datagrams_from_bytes, [ONE, ["text"]]),
        (plain.datagrams_from_bytes, [ONE, [b"a", b"b"]]),
        (plain.datagrams_from_bytes, [ONE]),
        (plain.datagrams_from_bytes, {"a": 1}),
        (plain.tasks_from_bytes, [ONE, ["elsewhere"], ONE, [None]]),
        (plain.tasks_from_bytes, [ONE, ["rebind"], ONE, [b"rubbish"]]),
        (plain.tasks_from_bytes, [[1], ["rebind"], ONE, [None]]),
        (plain.offers_from_bytes, [ONE, ["rebind"], [None], [1], [None]]),
        (plain.offers_from_bytes, [ONE, ["rebind"], [None], [True], ["nowhere"]]),
        (plain.ends_from_bytes, [ONE, [True], [[1]], [{}]]),
        (plain.ends_from_bytes, [ONE, [True], [[1, -1]], [{}]]),
        (plain.ends_from_bytes, [ONE, [True], [[]], [{"IP_TOS": 1 << 31}]]),
        (plain.ends_from_bytes, [ONE, [True], [[]], [{"IP_TOS": True}]]),
        (plain.ends_from_bytes, [ONE, [True], [[]], [{"x" * 65: 1}]]),
        (plain.ends_from_bytes, [ONE, [True], [[]], [[]]]),
    ],
)
def test_what_is_wrong_is_refused(read: Callable[[bytes], object], wrong: object) -> None:
    with pytest.raises(TransferError):
        read(msgpack.packb(wrong))


@pytest.mark.parametrize("wrong", ["x", [65536], [True], [-1], None])
def test_what_is_no_port_is_refused(wrong: object) -> None:
    with pytest.raises(TransferError):
        plain.ports_from_plain(wrong)


@pytest.mark.parametrize("wrong", ["x", [b"x"], ["x" * 2001], ["x"] * 1025])
def test_what_is_no_remark_is_refused(wrong: object) -> None:
    with pytest.raises(TransferError):
        plain.remarks_from_plain(wrong)


def genuine() -> list[tuple[bytes, Callable[[bytes], object]]]:
    direction = Direction(Endpoint("192.0.2.7", 4000), Endpoint("10.0.0.1", 53))
    entry = ConntrackEntry(
        direction, direction.reversed(), 8, 30, protocol=socket.IPPROTO_UDP, labels=b"12"
    )
    end = DatagramEnd(Endpoint("::", 53), None, (DescriptorName(1, 3),), {"IP_TOS": 4})
    (part,) = plain.datagrams_to_parts([Datagram(name(4000), b"question")])
    offer = FlowOffer(name(4000), Path.REBIND, entry, False, "10.0.0.9")
    task = FlowTask(name(4000), Path.CARRY, name(4001), entry)
    return [
        (plain.ends_to_bytes([end]), plain.ends_from_bytes),
        (plain.offers_to_bytes([offer]), plain.offers_from_bytes),
        (plain.tasks_to_bytes([task]), plain.tasks_from_bytes),
        (part, plain.datagrams_from_bytes),
    ]


@pytest.mark.parametrize("number", range(4))
def test_rubbish_is_an_error_and_nothing_else(number: int) -> None:
    data, read = genuine()[number]
    dice = random.Random(number)
    refused = 0
    for _ in range(MUTANTS):
        mutant = bytearray(data)
        for _ in range(dice.randint(1, 4)):
            mutant[dice.randrange(len(mutant))] = dice.randrange(256)
        changed: Any = bytes(mutant[: dice.choice([len(mutant), dice.randrange(len(mutant))])])
        try:
            read(changed)
        except TransferError:
            refused += 1
    assert refused > MUTANTS // 4
