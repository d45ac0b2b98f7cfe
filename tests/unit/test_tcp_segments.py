"""Segments are taken apart and put together without a network."""

import socket
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_tcp_codec import STATE

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.tcp import replay

HERE, THERE = Endpoint("10.0.0.1", 6379), Endpoint("10.0.0.2", 40000)
HERE6, THERE6 = Endpoint("fd00::1", 6379), Endpoint("fd00::2", 40000)


def segment(sequence: int = 9, *, flags: int = 0x10, data: bytes = b"") -> bytes:
    return (
        replay._TCP_HEADER.pack(1, 2, sequence, 7, 8 << 4, flags, 64, 0xBAD, 0) + bytes(12) + data
    )


def slow_checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


@given(st.binary(min_size=1).filter(any))
def test_the_checksum_is_that_of_rfc_1071(data: bytes) -> None:
    assert replay.checksum_of(data) == slow_checksum(data)


@pytest.mark.parametrize(("here", "there"), [(HERE, THERE), (HERE6, THERE6)])
def test_a_built_packet_parses_to_the_same_and_its_checksum_is_right(
    here: Endpoint, there: Endpoint
) -> None:
    packet = replay._packet(segment(data=b"hello"), source=there, destination=here)
    parsed = replay._parse(packet)
    assert parsed is not None
    assert parsed.connection == FourTuple(here, there)
    assert parsed.segment[4:16] == segment(data=b"hello")[4:16]
    assert parsed.segment.endswith(b"hello")
    family = socket.AF_INET if here.version == 4 else socket.AF_INET6
    pseudo = socket.inet_pton(family, there.address) + socket.inet_pton(family, here.address)
    pseudo += len(parsed.segment).to_bytes(4, "big") + (6).to_bytes(4, "big")
    assert slow_checksum(pseudo + parsed.segment) == 0


@given(st.binary(max_size=200))
def test_any_packet_parses_or_is_passed_over(packet: bytes) -> None:
    replay._parse(packet)


@pytest.mark.parametrize(
    ("sequence", "flags", "data", "beyond"),
    [
        (9, 0x10, b"x", True),
        (9, 0x10, b"", False),
        (8, 0x10, b"x", False),  # in the queue already
        (8, 0x10, b"xy", True),  # in part
        (9, 0x11, b"", True),  # FIN
        (9, 0x04, b"", True),  # RST
        (9, 0x02, b"", False),  # SYN
        (2**32 - 1, 0x10, b"x" * 9, False),  # numbers wrap around
        (2**32 - 1, 0x10, b"x" * 11, True),
    ],
)
def test_only_what_the_state_does_not_contain_is_lost(
    sequence: int, flags: int, data: bytes, beyond: bool
) -> None:
    state = replace(STATE, receive=STATE.receive._replace(next=9))
    assert replay._is_beyond(segment(sequence, flags=flags, data=data), state) is beyond


@given(st.integers(0, 2**32 - 1), st.integers(0, 70_000))
def test_pieces_are_the_whole(sequence: int, size: int) -> None:
    data = bytes(size)
    pieces = list(replay._cut(segment(sequence, flags=0x19, data=data)))
    expected = sequence
    for piece in pieces:
        assert int.from_bytes(piece[4:8], "big") == expected
        expected = (expected + len(piece) - 32) % 2**32
    assert expected == (sequence + size) % 2**32
    assert [piece[13] for piece in pieces] == [0x10] * (len(pieces) - 1) + [0x19]
    assert all(len(piece) <= 32 + 16 * 1024 for piece in pieces)
