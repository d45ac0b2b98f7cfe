"""Set elements, conntrack entries and port lists as bytes, without a kernel."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.errors import UsageError
from mycoproxy.netfilter import abi
from mycoproxy.netfilter.elements import SetChange, change_requests, pair_key, read_pair
from mycoproxy.netfilter.entry import (
    ConntrackEntry,
    Direction,
    TcpTracking,
    decode_entry,
    encode_entry,
)
from mycoproxy.netfilter.hold import flow_element, listener_element, table_name
from mycoproxy.netfilter.nfnetlink import attribute, nested, parse, walk
from mycoproxy.netfilter.reserved_ports import read_ranges, write_ranges

CLIENT = Endpoint("192.0.2.1", 40000)
POD = Endpoint("10.0.0.1", 80)

ports = st.integers(1, 65535)
v4 = st.builds(Endpoint, st.ip_addresses(v=4).map(str), ports)
v6 = st.builds(Endpoint, st.ip_addresses(v=6).map(str), ports)


@given(st.tuples(v4, v4) | st.tuples(v6, v6))
def test_a_pair_key_is_read_back(pair: tuple[Endpoint, Endpoint]) -> None:
    assert read_pair(pair_key(*pair)) == pair


def test_fields_of_a_key_are_filled_up_to_four_bytes() -> None:
    assert pair_key(CLIENT, POD) == bytes.fromhex("c0000201 9c400000 0a000001 00500000")


def test_attributes_are_padded_and_nest() -> None:
    inner = attribute(3, b"abcde")
    assert len(inner) == 12
    outer = nested(1, inner, attribute(4, b""))
    assert [kind for kind, _ in walk(outer)] == [1]
    assert parse(parse(outer)[1]) == {3: b"abcde", 4: b""}


def test_walking_ends_at_a_broken_length() -> None:
    assert list(walk(b"\0\0\0\0" + attribute(1, b"x"))) == []


def test_many_elements_are_split_so_that_no_attribute_overflows() -> None:
    keys = [pair_key(Endpoint(f"fd00::{n:x}", n + 1), Endpoint("fd01::1", 80)) for n in range(2000)]
    requests = change_requests("t", [SetChange("s", keys, [key[:16] for key in keys])])
    assert len(requests) > 1
    assert all(len(request.attributes) < 1 << 16 for request in requests)


def test_deleting_without_keys_is_a_flush() -> None:
    (request,) = change_requests("t", [SetChange("s", delete=True)])
    assert request.operation == abi.NFT_MSG_DELSETELEM
    assert abi.NFTA_SET_ELEM_LIST_ELEMENTS not in parse(request.attributes)
    assert change_requests("t", [SetChange("s")]) == []


ENTRY = ConntrackEntry(
    orig=Direction(CLIENT, Endpoint("10.96.0.1", 443)),
    reply=Direction(POD, CLIENT),
    status=abi.IPS_CONFIRMED | abi.IPS_ASSURED,
    timeout=100,
    tcp=TcpTracking(3, (7, 9), (9, 9)),
    mark=5,
    zone=6,
    labels=b"\1" + bytes(15),
)


def test_an_entry_is_inserted_by_its_tuple_before_nat_and_the_nat() -> None:
    fields = parse(encode_entry(ENTRY))
    assert abi.CTA_NAT_DST in fields
    assert abi.CTA_NAT_SRC in fields
    read = decode_entry(encode_entry(ENTRY))
    assert read == replace(ENTRY, reply=ENTRY.orig.reversed())


def test_an_entry_without_nat_says_nothing_of_nat() -> None:
    plain = replace(ENTRY, reply=ENTRY.orig.reversed())
    assert not plain.has_nat
    fields = parse(encode_entry(plain))
    assert abi.CTA_NAT_DST not in fields
    assert abi.CTA_NAT_SRC not in fields


def test_an_entry_of_another_protocol_is_left_out() -> None:
    tcp = attribute(abi.CTA_PROTO_NUM, b"\x06")
    udp = attribute(abi.CTA_PROTO_NUM, b"\x11")
    assert decode_entry(encode_entry(ENTRY).replace(tcp, udp)) is None


def test_a_mapped_address_stands_in_the_ipv4_set() -> None:
    mapped = FourTuple(Endpoint("::ffff:10.0.0.1", 80), Endpoint("::ffff:192.0.2.1", 40000))
    assert (
        flow_element(mapped)
        == flow_element(FourTuple(POD, CLIENT))
        == (
            "flows4",
            pair_key(POD, CLIENT),
        )
    )


@pytest.mark.parametrize(
    ("address", "set_name"),
    [
        ("0.0.0.0", "newport"),
        ("::", "newport"),
        ("::ffff:0.0.0.0", "newport"),
        ("10.0.0.1", "new4"),
        ("::ffff:10.0.0.1", "new4"),
        ("fd00::1", "new6"),
    ],
)
def test_a_listener_on_any_address_is_held_by_its_port(address: str, set_name: str) -> None:
    assert listener_element("new", Endpoint(address, 80))[0] == set_name


@pytest.mark.parametrize("name", ["", "a b", "-a", "a;flush ruleset", "a\n", "x" * 200])
def test_a_name_that_nftables_cannot_have_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        table_name("hold", name)
    assert table_name("hold", "move-1.a_b") == "mycoproxy-hold-move-1.a_b"


@given(st.sets(ports))
def test_port_lists_are_read_back(wanted: set[int]) -> None:
    assert read_ranges(write_ranges(wanted)) == wanted


def test_neighbouring_ports_are_written_as_a_range() -> None:
    assert write_ranges([7, 5, 6, 9]) == "5-7,9\n"
    assert write_ranges([]) == "\n"
