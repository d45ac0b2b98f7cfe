"""``TcpState`` as bytes, for the peer protocol and the journal.

msgpack: ``["mycoproxy.tcp", version, field, ...]``, fields in the order of ``encode``.
Whatever comes in may be hostile or broken: it is bounded before it is unpacked, every field is
checked for type and range, and the error names the field. A reader refuses a newer version, as it
could not know what it would drop.
"""

import socket
from typing import Any, Final

import msgpack

from mycoproxy.addresses import Endpoint
from mycoproxy.tcp.abi import TCP_MAX_WSCALE, TcpConnectionState
from mycoproxy.tcp.errors import CodecError
from mycoproxy.tcp.state import (
    Buffers,
    Negotiated,
    ReceiveQueue,
    SendQueue,
    TcpState,
    Timestamps,
    Window,
    WindowScale,
)

MAGIC: Final = "mycoproxy.tcp"
VERSION: Final = 1

LARGEST_QUEUE: Final = 64 * 1024 * 1024
"""Bytes a queue may hold; the kernel's defaults are 4 MiB (send) and 6 to 32 MiB (receive)."""

LARGEST_MESSAGE: Final = 3 * LARGEST_QUEUE + 4096

_LARGEST_U32 = 0xFFFFFFFF
_LARGEST_BUFFER = 0x7FFFFFFF
_LARGEST_MSS = 0xFFFF
_SMALLEST_MSS = 48  # TCP_MIN_SND_MSS, include/net/tcp.h
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_TEXT_LENGTH = 64


def encode(state: TcpState) -> bytes:
    """The state as bytes. Raises ``CodecError`` if a queue is longer than ``LARGEST_QUEUE``."""
    for name, data in (
        ("receive queue", state.receive.data),
        ("sent bytes", state.send.sent),
        ("unsent bytes", state.send.unsent),
    ):
        if len(data) > LARGEST_QUEUE:
            raise CodecError(
                f"{state.connection}: {name}: at most {LARGEST_QUEUE} bytes, {len(data)} found"
            )
    negotiated = state.negotiated
    packed: bytes = msgpack.packb(
        [
            MAGIC,
            VERSION,
            4 if state.family == socket.AF_INET else 6,
            list(state.local),
            list(state.remote),
            int(state.state),
            list(state.send),
            list(state.receive),
            list(state.window),
            negotiated.mss_clamp,
            negotiated.window_scale and list(negotiated.window_scale),
            negotiated.sack,
            negotiated.timestamps and list(negotiated.timestamps),
            negotiated.ecn,
            list(state.buffers),
            state.reuse_address,
        ]
    )
    return packed


def decode(data: bytes) -> TcpState:
    """The state that ``encode`` made ``data`` of. Raises ``CodecError``, naming what is wrong."""
    if len(data) > LARGEST_MESSAGE:
        raise CodecError(f"message: at most {LARGEST_MESSAGE} bytes, {len(data)} found")
    try:
        fields = msgpack.unpackb(
            data,
            max_bin_len=LARGEST_QUEUE,
            max_str_len=_TEXT_LENGTH,
            max_array_len=32,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise CodecError(f"message: not msgpack, truncated, or too long: {error}") from error
    if not isinstance(fields, list) or len(fields) < 2 or fields[0] != MAGIC:
        raise CodecError(f"message: does not start with {MAGIC!r}")
    version = _number("version", fields[1], 1, _LARGEST_U32)
    if version != VERSION:
        raise CodecError(f"version: {VERSION} can be read, {version} found; update the reader")
    if len(fields) != _FIELD_COUNT:
        raise CodecError(f"message: {_FIELD_COUNT} fields wanted, {len(fields)} found")
    return _state(fields[2:])


_FIELD_COUNT = 16


def _state(fields: list[Any]) -> TcpState:
    (
        family,
        local,
        remote,
        state,
        send,
        receive,
        window,
        mss_clamp,
        window_scale,
        sack,
        timestamps,
        ecn,
        buffers,
        reuse_address,
    ) = fields
    version = _number("family", family, 4, 6)
    if version not in _FAMILIES:
        raise CodecError(f"family: 4 or 6 wanted, {version} found")
    return TcpState(
        family=_FAMILIES[version],
        local=_endpoint("local", local, version),
        remote=_endpoint("remote", remote, version),
        state=_connection_state(state),
        send=_send_queue(send),
        receive=_receive_queue(receive),
        window=Window(*_numbers("window", window, 5, _LARGEST_U32)),
        negotiated=Negotiated(
            mss_clamp=_number("mss_clamp", mss_clamp, _SMALLEST_MSS, _LARGEST_MSS),
            window_scale=None
            if window_scale is None
            else WindowScale(*_numbers("window_scale", window_scale, 2, TCP_MAX_WSCALE)),
            sack=_flag("sack", sack),
            timestamps=_timestamps(timestamps),
            ecn=_flag("ecn", ecn),
        ),
        buffers=Buffers(*_numbers("buffers", buffers, 4, _LARGEST_BUFFER)),
        reuse_address=_flag("reuse_address", reuse_address),
    )


def _endpoint(name: str, value: object, version: int) -> Endpoint:
    text, port = _items(name, value, 2)
    try:
        # Also refuses a scope, which inet_pton does not know.
        socket.inet_pton(_FAMILIES[version], text)
    except (OSError, TypeError, ValueError):
        raise CodecError(
            f"{name}: an IPv{version} address without scope wanted, {_brief(text)} found"
        ) from None
    return Endpoint(text, _number(f"{name} port", port, 1, 0xFFFF))


def _connection_state(value: object) -> TcpConnectionState:
    number = _number("state", value, 1, max(TcpConnectionState))
    return TcpConnectionState(number)


def _send_queue(value: object) -> SendQueue:
    una, sent, unsent = _items("send", value, 3)
    return SendQueue(
        _number("send una", una, 0, _LARGEST_U32),
        _data("send sent", sent),
        _data("send unsent", unsent),
    )


def _receive_queue(value: object) -> ReceiveQueue:
    following, data = _items("receive", value, 2)
    return ReceiveQueue(
        _number("receive next", following, 0, _LARGEST_U32), _data("receive data", data)
    )


def _timestamps(value: object) -> Timestamps | None:
    if value is None:
        return None
    clock, microseconds = _items("timestamps", value, 2)
    return Timestamps(
        _number("timestamps clock", clock, 0, _LARGEST_U32),
        _flag("timestamps microseconds", microseconds),
    )


def _items(name: str, value: object, count: int) -> list[Any]:
    if not isinstance(value, list) or len(value) != count:
        raise CodecError(f"{name}: a list of {count} wanted, {_brief(value)} found")
    return value


def _number(name: str, value: object, lowest: int, highest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise CodecError(
            f"{name}: a number from {lowest} to {highest} wanted, {_brief(value)} found"
        )
    return value


def _numbers(name: str, value: object, count: int, highest: int) -> list[int]:
    return [_number(name, item, 0, highest) for item in _items(name, value, count)]


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise CodecError(f"{name}: true or false wanted, {_brief(value)} found")
    return value


def _data(name: str, value: object) -> bytes:
    if not isinstance(value, bytes):
        raise CodecError(f"{name}: bytes wanted, {_brief(value)} found")
    return value


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _TEXT_LENGTH else f"{text[:_TEXT_LENGTH]}..."
