"""A state survives its wire format; anything else is refused, and the error names the field."""

import re
import socket
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycoproxy import tcp
from mycoproxy.addresses import Endpoint
from mycoproxy.tcp import codec, codec_fields, codec_options
from mycoproxy.tcp.abi import TcpConnectionState as State
from mycoproxy.tcp.state import FIN_RECEIVED, FIN_SENT

U32 = st.integers(0, 0xFFFFFFFF)
PORT = st.integers(1, 0xFFFF)
SIZE = st.integers(0, 0x7FFFFFFF)
SHIFT = st.integers(0, 14)
EVEN = st.integers(0, 0x7FFFFFFF).map(lambda half: 2 * half)

MOVABLE = sorted(FIN_SENT | FIN_RECEIVED | {State.ESTABLISHED, State.SYN_SENT, State.CLOSE})
NOT_MOVABLE = sorted(set(State) - set(MOVABLE))

V4 = st.binary(min_size=4, max_size=4).filter(any)
V6 = st.binary(min_size=16, max_size=16).filter(
    lambda packed: any(packed) and not packed.startswith(bytes(10) + b"\xff\xff")
)
MAPPED = V4.map(lambda packed: bytes(10) + b"\xff\xff" + packed)

OPTIONS = st.lists(
    st.tuples(
        st.integers(0, 1023),
        st.integers(-(1 << 63), (1 << 63) - 1) | st.binary(max_size=64),
    ),
    max_size=6,
    unique_by=lambda option: option[0],
).map(tuple)


@st.composite
def endpoints(
    draw: st.DrawFn, family: socket.AddressFamily, state: State
) -> tuple[Endpoint, Endpoint]:
    packed = V4 if family == socket.AF_INET else draw(st.sampled_from((V6, MAPPED)))
    addresses = packed.map(lambda address: socket.inet_ntop(family, address))
    local = Endpoint(draw(addresses), draw(PORT))
    if state is not State.CLOSE:
        return local, Endpoint(draw(addresses), draw(PORT))
    nowhere = Endpoint("0.0.0.0" if family == socket.AF_INET else "::", 0)
    return draw(st.sampled_from((local, nowhere))), nowhere


@st.composite
def windows(draw: st.DrawFn, expected: int) -> tcp.Window:
    """One that the kernel would take (tcp_repair_set_window)."""
    snd_wnd, rcv_wnd = draw(U32), draw(st.integers(0, 0x3FFFFFFF))
    behind = st.integers(0, 0x3FFFFFFF)
    return tcp.Window(
        snd_wl1=(expected - draw(behind)) % 2**32,
        snd_wnd=snd_wnd,
        max_window=draw(st.integers(snd_wnd, 0xFFFFFFFF)),
        rcv_wnd=rcv_wnd,
        rcv_wup=(expected - draw(behind)) % 2**32,
    )


@st.composite
def states(draw: st.DrawFn) -> tcp.TcpState:
    state = draw(st.sampled_from(MOVABLE))
    family = draw(st.sampled_from((socket.AF_INET, socket.AF_INET6)))
    local, remote = draw(endpoints(family, state))
    nothing = st.just(b"")
    closed, connecting = state is State.CLOSE, state is State.SYN_SENT
    shut_down = draw(st.booleans()) and not connecting
    to_send = nothing if closed or connecting or state is State.FIN_WAIT2 else st.binary()
    to_read = nothing if connecting or (closed and not shut_down) else st.binary()
    receive = tcp.ReceiveQueue(draw(U32), draw(to_read))
    return tcp.TcpState(
        family=family,
        local=local,
        remote=remote,
        state=state,
        send=tcp.SendQueue(draw(U32), draw(to_send), draw(to_send)),
        receive=receive,
        window=draw(windows((receive.next + (state in FIN_RECEIVED)) % 2**32)),
        negotiated=tcp.Negotiated(
            mss_clamp=draw(st.integers(48, 0xFFFF)),
            window_scale=draw(st.none() | st.builds(tcp.WindowScale, SHIFT, SHIFT)),
            sack=draw(st.booleans()),
            timestamps=draw(st.none() | st.builds(tcp.Timestamps, EVEN, st.booleans())),
            ecn=draw(st.booleans()),
        ),
        buffers=tcp.Buffers(draw(SIZE), draw(SIZE), draw(st.integers(0, 3)), draw(SIZE)),
        reuse_address=draw(st.booleans()),
        options=draw(OPTIONS),
        shut_down=shut_down,
        error=draw(st.integers(0, 4095)) if closed else 0,
    )


STATE = tcp.TcpState(
    family=socket.AF_INET,
    local=Endpoint("10.0.0.1", 6379),
    remote=Endpoint("10.0.0.2", 40000),
    state=State.ESTABLISHED,
    send=tcp.SendQueue(7, b"sent", b"unsent"),
    receive=tcp.ReceiveQueue(9, b"received"),
    window=tcp.Window(1, 2, 3, 4, 5),
    negotiated=tcp.Negotiated(1460, tcp.WindowScale(7, 7), True, tcp.Timestamps(10, False), False),
    buffers=tcp.Buffers(87040, 131072, 0, 65536),
    reuse_address=True,
)

IDLE = replace(
    STATE,
    send=tcp.SendQueue(0x80000007, b"", b""),
    receive=tcp.ReceiveQueue(0x80000009, b""),
    window=tcp.Window(0x80000009, 0x10000, 0x10000, 0x10000, 0x80000009),
    options=((1, 1), (2, 7200), (3, b"cubic")),
)
IDLE6 = replace(
    IDLE,
    family=socket.AF_INET6,
    local=Endpoint("fd00::1", 6379),
    remote=Endpoint("fd00::2", 40000),
)
MAPPED_STATE = replace(
    STATE,
    family=socket.AF_INET6,
    local=Endpoint("::ffff:10.0.0.1", 6379),
    remote=Endpoint("::ffff:10.0.0.2", 40000),
)
CONNECTING = replace(
    STATE,
    state=State.SYN_SENT,
    send=tcp.SendQueue(0, b"", b""),
    receive=tcp.ReceiveQueue(0, b""),
    window=tcp.Window(0, 0, 0, 0, 0),
)
ENDED = replace(
    CONNECTING,
    state=State.CLOSE,
    remote=Endpoint("0.0.0.0", 0),
    receive=tcp.ReceiveQueue(4, b"rest"),
    shut_down=True,
    error=104,
)


def sealed(message: bytes) -> bytes:
    """With the checksum that belongs to it."""
    start = codec._PREAMBLE.size
    checksum = zlib.crc32(message[start:]).to_bytes(4, "big")
    return message[: start - 4] + checksum + message[start:]


def with_number(state: tcp.TcpState, name: str, value: int) -> bytes:
    """An encoding in which the head has another number, with the checksum that belongs to it."""
    message = bytearray(tcp.encode(state))
    numbers = list(codec._NUMBERS.unpack_from(message, codec._PREAMBLE.size))
    numbers[[field for field, _ in codec._FIELDS].index(name)] = value
    codec._NUMBERS.pack_into(message, codec._PREAMBLE.size, *numbers)
    return sealed(bytes(message))


@given(states())
def test_what_is_encoded_decodes_to_the_same(state: tcp.TcpState) -> None:
    encoded = tcp.encode(state)
    assert tcp.decode(encoded) == state
    assert tcp.decode(memoryview(bytearray(encoded))) == state


@pytest.mark.parametrize("state", [STATE, IDLE, IDLE6, MAPPED_STATE, CONNECTING, ENDED])
def test_what_is_decoded_has_the_types_it_had(state: tcp.TcpState) -> None:
    decoded = tcp.decode(tcp.encode(state))
    assert repr(decoded) == repr(state)


def test_an_address_comes_back_in_the_form_of_getsockname() -> None:
    state = replace(IDLE6, local=Endpoint("FD00:0::0001", 6379))
    assert tcp.decode(tcp.encode(state)) == IDLE6


@pytest.mark.parametrize("state", [IDLE, IDLE6])
def test_an_idle_connection_takes_less_than_200_bytes(state: tcp.TcpState) -> None:
    assert len(tcp.encode(state)) < 200


@given(states())
def test_the_parts_are_the_message_and_the_queues_in_them_are_not_copied(
    state: tcp.TcpState,
) -> None:
    parts = codec.encode_parts(state)
    assert b"".join(parts) == tcp.encode(state)
    assert all(
        part is queue
        for part, queue in zip(
            parts[1:], (state.receive.data, state.send.sent, state.send.unsent), strict=True
        )
    )


@pytest.mark.parametrize("code", [tcp.encode, codec.encode_parts])
def test_encoding_copies_a_queue_at_most_once(code: Callable[[tcp.TcpState], object]) -> None:
    size = 4 * 1024 * 1024
    state = replace(STATE, receive=tcp.ReceiveQueue(9, bytes(size)))
    assert _peak(lambda: code(state)) < (1.1 * size if code is tcp.encode else 65536)


def test_decoding_copies_a_queue_once() -> None:
    size = 4 * 1024 * 1024
    encoded = tcp.encode(replace(STATE, send=tcp.SendQueue(7, bytes(size), b"")))
    assert _peak(lambda: tcp.decode(encoded)) < 1.1 * size


def _peak(code: Callable[[], object]) -> int:
    """Bytes that were allocated at once."""
    tracemalloc.start()
    try:
        code()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@given(states(), st.data())
def test_a_truncated_message_is_refused(state: tcp.TcpState, data: st.DataObject) -> None:
    encoded = tcp.encode(state)
    with pytest.raises(tcp.CodecError, match=r"^message: .*found|^message: truncated"):
        tcp.decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


@given(states(), st.data())
def test_a_corrupted_message_is_refused(state: tcp.TcpState, data: st.DataObject) -> None:
    encoded = bytearray(tcp.encode(state))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(tcp.CodecError):
        tcp.decode(bytes(encoded))


def test_damage_in_a_queue_is_found_by_the_checksum() -> None:
    encoded = bytearray(tcp.encode(STATE))
    encoded[-1] ^= 1
    with pytest.raises(tcp.CodecError, match=r"^checksum: .*wanted, .*found; .*send it again"):
        tcp.decode(encoded)


@given(st.binary())
def test_any_bytes_raise_nothing_but_a_codec_error(data: bytes) -> None:
    with pytest.raises(tcp.CodecError, match=r"^message: "):
        tcp.decode(data)


def test_trailing_bytes_are_refused() -> None:
    encoded = tcp.encode(STATE)
    told = f"message: something follows it: {len(encoded)} bytes wanted, {len(encoded) + 1} found"
    with pytest.raises(tcp.CodecError, match=told):
        tcp.decode(encoded + b"\0")


@pytest.mark.parametrize("version", [3, 4, 255])
def test_a_newer_version_is_refused_by_number(version: int) -> None:
    encoded = bytearray(tcp.encode(STATE))
    encoded[len(codec.MAGIC)] = version
    told = rf"^version: 2 wanted, {version} found; it is newer: update .* that reads it$"
    with pytest.raises(tcp.CodecError, match=told):
        tcp.decode(encoded)


def test_an_older_version_is_refused_by_number() -> None:
    """Version 1 was a list in msgpack."""
    encoded = msgpack.packb([codec.MAGIC.decode(), 1, *range(14)])
    told = "^version: 2 wanted, 1 found; it is older: update .* that wrote it$"
    with pytest.raises(tcp.CodecError, match=told):
        tcp.decode(encoded)


def test_an_oversized_message_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "LARGEST_MESSAGE", 100)
    with pytest.raises(tcp.CodecError, match="at most 100 bytes wanted, 101 found"):
        tcp.decode(bytes(101))


def test_an_oversized_queue_is_refused_on_either_side(monkeypatch: pytest.MonkeyPatch) -> None:
    big = replace(STATE, receive=tcp.ReceiveQueue(9, bytes(101)))
    encoded = tcp.encode(big)
    monkeypatch.setattr(codec_fields, "LARGEST_QUEUE", 100)
    for code in (lambda: tcp.encode(big), lambda: tcp.decode(encoded)):
        with pytest.raises(tcp.CodecError, match=r"^receive queue: .* to 100 .*wanted, 101 found"):
            code()


def test_lengths_that_are_not_those_of_the_message_are_refused_before_anything_is_allocated() -> (
    None
):
    for name in ("bytes of options", "receive queue", "sent bytes", "unsent bytes"):
        encoded = with_number(STATE, name, 0xFFFFFFFF)

        def refuse(message: bytes = encoded) -> None:
            with pytest.raises(tcp.CodecError, match=r"^message: truncated: .*wanted"):
                tcp.decode(message)

        assert _peak(refuse) < 65536


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("family", 5),
        ("state", 0),
        ("state", 99),
        *[("state", state.value) for state in NOT_MOVABLE],
        ("flags", 0x80),
        ("local port", 0),
        ("remote port", 0),
        ("window max_window", 1),
        ("window snd_wl1", 14),
        ("window rcv_wup", 10),
        ("mss_clamp", 47),
        ("window_scale send", 15),
        ("window_scale receive", 15),
        ("timestamps clock", 11),
        ("buffers send", 1 << 31),
        ("buffers receive", 1 << 31),
        ("buffers lock", 4),
        ("buffers window_clamp", 1 << 31),
        ("error", 111),
    ],
)
def test_a_wrong_number_is_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(tcp.CodecError, match=f"^{name}: .*wanted, .*found"):
        tcp.decode(with_number(STATE, name, value))


@pytest.mark.parametrize(
    ("flags", "named"), [(0b0000110, "window_scale"), (0b0000011, "timestamps")]
)
def test_what_is_not_flagged_has_no_value(flags: int, named: str) -> None:
    with pytest.raises(tcp.CodecError, match=f"^{named}: .*found"):
        tcp.decode(with_number(STATE, "flags", flags))


UNWRITABLE = [
    (replace(STATE, local=Endpoint("10.0.0.256", 1)), "local"),
    (replace(STATE, local=Endpoint("::1", 1)), "local"),
    (replace(STATE, local=Endpoint("10.0.0.1", 0x10000)), "local port"),
    (replace(IDLE6, local=Endpoint("fe80::1%eth0", 1)), "local"),
    (replace(IDLE6, local=Endpoint("10.0.0.1", 1)), "local"),
    (replace(IDLE6, local=Endpoint("fd00::1\0", 1)), "local"),
    (replace(STATE, send=tcp.SendQueue(-1, b"", b"")), "send una"),
    (replace(STATE, receive=tcp.ReceiveQueue(1 << 32, b"")), "receive next"),
    (replace(STATE, window=tcp.Window(1, 2, 1 << 32, 4, 5)), "window max_window"),
    (replace(STATE, options=((-1, 1),)), "option -1"),
    (replace(STATE, options=((1 << 16, b""),)), "option 65536"),
    (replace(STATE, options=((1, 1 << 63),)), "option 1"),
]

INCONSISTENT = [
    (replace(STATE, state=State.LISTEN), "state"),
    (replace(STATE, local=Endpoint("0.0.0.0", 1)), "local"),
    (replace(STATE, local=Endpoint("10.0.0.1", 0)), "local port"),
    (replace(IDLE6, remote=Endpoint("::ffff:10.0.0.2", 1)), "remote"),
    (replace(STATE, error=111), "error"),
    (replace(STATE, options=((1, 1), (2, 2), (1, 1))), "option 1"),
    (replace(STATE, options=((1024, 1),)), "option"),
    (replace(STATE, options=((1024, b"1"),)), "option"),
    (replace(STATE, options=((1, bytes(4097)),)), "option 1"),
    (replace(STATE, options=tuple((number, 0) for number in range(129))), "options"),
    (replace(STATE, state=State.FIN_WAIT2), "sent bytes"),
    (replace(STATE, state=State.FIN_WAIT2, send=tcp.SendQueue(7, b"", b"x")), "unsent bytes"),
    (replace(CONNECTING, send=tcp.SendQueue(0, b"fast open", b"")), "sent bytes"),
    (replace(CONNECTING, receive=tcp.ReceiveQueue(0, b"x")), "receive queue"),
    (replace(CONNECTING, shut_down=True), "shut_down"),
    (replace(CONNECTING, remote=Endpoint("0.0.0.0", 0)), "remote port"),
    (replace(ENDED, remote=STATE.remote), "remote"),
    (replace(ENDED, send=STATE.send), "sent bytes"),
    (replace(ENDED, shut_down=False), "receive queue"),
    (replace(ENDED, error=4096), "error"),
]


@pytest.mark.parametrize(("state", "named"), UNWRITABLE + INCONSISTENT)
def test_what_cannot_be_is_refused_by_its_writer(state: tcp.TcpState, named: str) -> None:
    with pytest.raises(tcp.CodecError, match=f"^{named}: .*wanted, .*found"):
        tcp.encode(state)


@pytest.mark.parametrize(("state", "named"), INCONSISTENT)
def test_what_cannot_be_is_refused_by_its_reader(
    state: tcp.TcpState, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as careless:
        careless.setattr(codec, "check", lambda *_: None)
        encoded = tcp.encode(state)
    with pytest.raises(tcp.CodecError, match=f"^{named}: .*wanted, .*found"):
        tcp.decode(encoded)


def test_an_option_of_more_bytes_than_there_are_is_refused() -> None:
    state = replace(IDLE, options=((1, b"123"), (2, b"4567")))
    encoded = tcp.encode(state)
    for wrong, named in ((8, "option 1"), (-1, "option 1"), (5, "option 2"), (2, "bytes of")):
        pair = codec_options._OPTION.pack(1 | codec_options._IS_BYTES, wrong)
        damaged = encoded.replace(codec_options._OPTION.pack(1 | codec_options._IS_BYTES, 3), pair)
        with pytest.raises(tcp.CodecError, match=f"^{named}.*: .*wanted, .*found"):
            tcp.decode(sealed(damaged))


def test_an_error_tells_which_connection_it_is_about() -> None:
    name = re.escape(str(STATE.connection))
    with pytest.raises(tcp.CodecError, match=rf"^mss_clamp: .*, 47 found \({name}\)$"):
        tcp.decode(with_number(STATE, "mss_clamp", 47))


def test_a_moved_state_keeps_all_but_its_name() -> None:
    there = Endpoint("10.9.9.9", 6379)
    moved = STATE.moved_to(local=there)
    assert moved.connection == (there, STATE.remote)
    assert moved.moved_to(local=STATE.local) == STATE
