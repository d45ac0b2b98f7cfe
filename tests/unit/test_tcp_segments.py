"""Segments are taken apart and put together without a network."""

import socket
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_tcp_codec import STATE

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.tcp import segments
from mycoproxy.tcp.abi import TcpConnectionState
from mycoproxy.tcp.replay import beyond
from mycoproxy.tcp.segments import Segment

HERE, THERE = Endpoint("10.0.0.1", 6379), Endpoint("10.0.0.2", 40000)
HERE6, THERE6 = Endpoint("fd00::1", 6379), Endpoint("fd00::2", 40000)


def segment(sequence: int = 9, *, flags: int = 0x10, data: bytes = b"") -> bytes:
    return (
        segments._TCP_HEADER.pack(1, 2, sequence, 7, 8 << 4, flags, 64, 0xBAD, 0) + bytes(12) + data
    )


def slow_checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


@given(st.binary(min_size=1).filter(any))
def test_the_checksum_is_that_of_rfc_1071(data: bytes) -> None:
    assert segments.checksum_of(data) == slow_checksum(data)


@pytest.mark.parametrize(("here", "there"), [(HERE, THERE), (HERE6, THERE6)])
def test_a_built_packet_parses_to_the_same_and_its_checksum_is_right(
    here: Endpoint, there: Endpoint
) -> None:
    packet = segments.ip_packet(segment(data=b"hello"), source=there, destination=here)
    parsed = segments.parse_packet(packet)
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
    segments.parse_packet(packet)


@pytest.mark.parametrize(
    ("sequence", "flags", "data", "new"),
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
    sequence: int, flags: int, data: bytes, new: bool
) -> None:
    state = replace(STATE, receive=STATE.receive._replace(next=9))
    arrived = Segment(state.connection, segment(sequence, flags=flags, data=data))
    assert beyond([arrived], [state]) == ((arrived,) if new else ())


@pytest.mark.parametrize(
    ("state", "una", "new"),
    [
        (TcpConnectionState.ESTABLISHED, 6, False),  # its window probe is answered
        (TcpConnectionState.FIN_WAIT1, 6, True),
        (TcpConnectionState.CLOSE_WAIT, 6, True),
        (TcpConnectionState.FIN_WAIT1, 7, False),  # nothing new
    ],
)
def test_acknowledgements_are_kept_for_those_who_send_no_probe(
    state: TcpConnectionState, una: int, new: bool
) -> None:
    held = replace(
        STATE,
        state=state,
        receive=STATE.receive._replace(next=9),
        send=STATE.send._replace(una=una),
    )
    arrived = Segment(held.connection, segment(9))  # it acknowledges 7
    assert beyond([arrived], [held]) == ((arrived,) if new else ())


def test_a_fin_that_is_known_is_no_news() -> None:
    state = replace(
        STATE,
        state=TcpConnectionState.CLOSE_WAIT,
        receive=STATE.receive._replace(next=9),
        send=STATE.send._replace(una=7),
    )
    assert beyond([Segment(state.connection, segment(9, flags=0x11))], [state]) == ()


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=50),
    st.binary(max_size=12),
)
def test_a_segment_that_is_built_says_what_was_put_in(
    sequence: int, acknowledgement: int, data: bytes, options: bytes
) -> None:
    built = segments.segment(
        FourTuple(HERE, THERE),
        flags=segments.FIN | segments.ACK,
        sequence=sequence,
        acknowledgement=acknowledgement,
        window=1 << 20,
        options=options,
        data=data,
    )
    header = built.header
    assert header == (sequence, acknowledgement, 0x11, 0xFFFF, len(data))
    assert header.end == (sequence + len(data) + 1) % 2**32
    assert built.segment.endswith(data)


@given(st.integers(0, 2**32 - 1), st.integers(0, 70_000))
def test_pieces_are_the_whole(sequence: int, size: int) -> None:
    data = bytes(size)
    pieces = list(segments.cut(segment(sequence, flags=0x19, data=data)))
    expected = sequence
    for piece in pieces:
        assert int.from_bytes(piece[4:8], "big") == expected
        expected = (expected + len(piece) - 32) % 2**32
    assert expected == (sequence + size) % 2**32
    assert [piece[13] for piece in pieces] == [0x10] * (len(pieces) - 1) + [0x19]
    assert all(len(piece) <= 32 + 16 * 1024 for piece in pieces)
