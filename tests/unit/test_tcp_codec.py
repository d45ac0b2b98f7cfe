"""A state survives its wire format; anything else is refused, and the error names the field."""

import socket
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycoproxy import tcp
from mycoproxy.addresses import Endpoint
from mycoproxy.tcp import codec
from mycoproxy.tcp.abi import TcpConnectionState

U32 = st.integers(0, 0xFFFFFFFF)
PORT = st.integers(1, 0xFFFF)
SIZE = st.integers(0, 0x7FFFFFFF)
SHIFT = st.integers(0, 14)


@st.composite
def states(draw: st.DrawFn) -> tcp.TcpState:
    version = draw(st.sampled_from((4, 6)))
    addresses = st.ip_addresses(v=version).map(str)
    if version == 6:
        mapped = st.ip_addresses(v=4).map(lambda address: f"::ffff:{address}")
        addresses = st.one_of(addresses, mapped)
    return tcp.TcpState(
        family=socket.AF_INET if version == 4 else socket.AF_INET6,
        local=Endpoint(draw(addresses), draw(PORT)),
        remote=Endpoint(draw(addresses), draw(PORT)),
        state=draw(st.sampled_from(TcpConnectionState)),
        send=tcp.SendQueue(draw(U32), draw(st.binary()), draw(st.binary())),
        receive=tcp.ReceiveQueue(draw(U32), draw(st.binary())),
        window=tcp.Window(*(draw(U32) for _ in range(5))),
        negotiated=tcp.Negotiated(
            mss_clamp=draw(st.integers(48, 0xFFFF)),
            window_scale=draw(st.none() | st.builds(tcp.WindowScale, SHIFT, SHIFT)),
            sack=draw(st.booleans()),
            timestamps=draw(st.none() | st.builds(tcp.Timestamps, U32, st.booleans())),
            ecn=draw(st.booleans()),
        ),
        buffers=tcp.Buffers(*(draw(SIZE) for _ in range(4))),
        reuse_address=draw(st.booleans()),
    )


STATE = tcp.TcpState(
    family=socket.AF_INET,
    local=Endpoint("10.0.0.1", 6379),
    remote=Endpoint("10.0.0.2", 40000),
    state=TcpConnectionState.ESTABLISHED,
    send=tcp.SendQueue(7, b"sent", b"unsent"),
    receive=tcp.ReceiveQueue(9, b"received"),
    window=tcp.Window(1, 2, 3, 4, 5),
    negotiated=tcp.Negotiated(1460, tcp.WindowScale(7, 7), True, tcp.Timestamps(10, False), False),
    buffers=tcp.Buffers(87040, 131072, 0, 65536),
    reuse_address=True,
)


@given(states())
def test_what_is_encoded_decodes_to_the_same(state: tcp.TcpState) -> None:
    assert tcp.decode(tcp.encode(state)) == state


@given(states(), st.data())
def test_a_truncated_message_is_refused(state: tcp.TcpState, data: st.DataObject) -> None:
    encoded = tcp.encode(state)
    with pytest.raises(tcp.CodecError, match="message"):
        tcp.decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


@given(states(), st.data())
def test_a_corrupted_message_is_refused_or_still_a_state(
    state: tcp.TcpState, data: st.DataObject
) -> None:
    encoded = bytearray(tcp.encode(state))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decoded = tcp.decode(bytes(encoded))
    except tcp.CodecError:
        return
    assert isinstance(decoded, tcp.TcpState)


@given(st.binary())
def test_any_bytes_raise_nothing_but_a_codec_error(data: bytes) -> None:
    with pytest.raises(tcp.CodecError):
        tcp.decode(data)


def test_trailing_bytes_are_refused() -> None:
    with pytest.raises(tcp.CodecError, match="message"):
        tcp.decode(tcp.encode(STATE) + b"\0")


def test_a_newer_version_is_refused_by_number() -> None:
    fields = msgpack.unpackb(tcp.encode(STATE))
    fields[1] = codec.VERSION + 1
    with pytest.raises(tcp.CodecError, match=r"1 can be read, 2 found"):
        tcp.decode(msgpack.packb(fields))


def test_an_oversized_message_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "LARGEST_MESSAGE", 100)
    with pytest.raises(tcp.CodecError, match="at most 100 bytes"):
        tcp.decode(bytes(101))


def test_an_oversized_queue_is_refused_on_either_side(monkeypatch: pytest.MonkeyPatch) -> None:
    big = replace(STATE, receive=tcp.ReceiveQueue(9, bytes(101)))
    encoded = tcp.encode(big)
    monkeypatch.setattr(codec, "LARGEST_QUEUE", 100)
    with pytest.raises(tcp.CodecError, match="receive queue: at most 100 bytes, 101 found"):
        tcp.encode(big)
    with pytest.raises(tcp.CodecError, match="message"):
        tcp.decode(encoded)


@pytest.mark.parametrize(
    ("index", "value", "named"),
    [
        (2, 5, "family"),
        (2, "4", "family"),
        (3, ["10.0.0.1"], "local"),
        (3, ["10.0.0.256", 1], "local"),
        (3, ["::1", 1], "local"),
        (4, ["10.0.0.1", 0], "remote port"),
        (5, 99, "state"),
        (6, [1, b"", ""], "send unsent"),
        (6, [-1, b"", b""], "send una"),
        (7, [1 << 32, b""], "receive next"),
        (8, [0, 0, 0, 0], "window"),
        (9, 47, "mss_clamp"),
        (10, [15, 0], "window_scale"),
        (11, 1, "sack"),
        (12, [1, 1], "timestamps microseconds"),
        (13, None, "ecn"),
        (14, [0, 0, -1, 0], "buffers"),
        (15, "yes", "reuse_address"),
    ],
)
def test_the_error_names_the_field(index: int, value: Any, named: str) -> None:
    fields = msgpack.unpackb(tcp.encode(STATE))
    fields[index] = value
    with pytest.raises(tcp.CodecError, match=f"^{named}: .*found"):
        tcp.decode(msgpack.packb(fields))


def test_a_scoped_address_is_refused() -> None:
    fields = msgpack.unpackb(tcp.encode(STATE))
    fields[2:5] = [6, ["fe80::1%eth0", 1], ["fe80::2", 1]]
    with pytest.raises(tcp.CodecError, match=r"local: .* without scope"):
        tcp.decode(msgpack.packb(fields))


def test_a_moved_state_keeps_all_but_its_name() -> None:
    there = Endpoint("10.9.9.9", 6379)
    moved = STATE.moved_to(local=there)
    assert moved.connection == (there, STATE.remote)
    assert moved.moved_to(local=STATE.local) == STATE
