"""``TcpState`` as bytes, for the peer protocol and the journal.

A message is a head of fixed layout (``struct``, network byte order) and what has no fixed length::

    magic, version, CRC-32 of what follows
    numbers, flags, and the lengths of all the rest
    local and remote address, 4 or 16 bytes each
    options: (number, value) pairs, then the values that are bytes
    receive queue, sent bytes, unsent bytes

Why a struct: a field has its type and its range by construction, and nothing that the lengths say
is believed before their sum is that of the message, so nothing is allocated for a hostile one.
The queues stand at the end: ``encode_parts`` hands them out uncopied, ``decode`` copies each once.

Whatever comes in may be hostile or broken: the checksum finds accidents, and every field is
checked; ``decode`` accepts only what ``encode`` would write. The byte after the magic is the
version in every format so far (version 1 was msgpack). A reader refuses all versions but its own,
as it could not know what it would drop or miss.
"""

import socket
import struct
import zlib
from typing import Final

from mycoproxy.addresses import Endpoint
from mycoproxy.tcp.abi import TcpConnectionState
from mycoproxy.tcp.codec_fields import (
    LARGEST_OPTION,
    LARGEST_QUEUE,
    MOST_OPTIONS,
    check,
    wrong,
)
from mycoproxy.tcp.codec_options import PAIR_SIZE, pack_options, unpack_options
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

MAGIC: Final = b"mycoproxy.tcp"
VERSION: Final = 2

_PREAMBLE: Final = struct.Struct(f">{len(MAGIC)}sBI")
_LATEST_MAGIC: Final = 4  # where it stood in version 1

_FIELDS: Final = (
    ("family", "B"),
    ("state", "B"),
    ("flags", "B"),
    ("local port", "H"),
    ("remote port", "H"),
    ("send una", "I"),
    ("receive next", "I"),
    ("receive urgent", "I"),
    ("window snd_wl1", "I"),
    ("window snd_wnd", "I"),
    ("window max_window", "I"),
    ("window rcv_wnd", "I"),
    ("window rcv_wup", "I"),
    ("mss_clamp", "H"),
    ("window_scale send", "B"),
    ("window_scale receive", "B"),
    ("timestamps clock", "I"),
    ("buffers send", "I"),
    ("buffers receive", "I"),
    ("buffers lock", "B"),
    ("buffers window_clamp", "I"),
    ("error", "H"),
    ("round trip", "I"),
    ("options", "B"),
    ("bytes of options", "I"),
    ("receive queue", "I"),
    ("sent bytes", "I"),
    ("unsent bytes", "I"),
)
_NUMBERS: Final = struct.Struct(">" + "".join(form for _, form in _FIELDS))
_HEAD: Final = _PREAMBLE.size + _NUMBERS.size

_SCALED, _SACK, _STAMPED, _MICROSECONDS, _ECN, _REUSE, _SHUT_DOWN = (1 << bit for bit in range(7))
_ALL_FLAGS: Final = 0x7F

_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_ADDRESS_SIZES: Final = {4: 4, 6: 16}
_STATES: Final = {state.value: state for state in TcpConnectionState}

LARGEST_MESSAGE: Final = (
    _HEAD + 2 * 16 + MOST_OPTIONS * (PAIR_SIZE + LARGEST_OPTION) + 3 * LARGEST_QUEUE
)
"""Bytes; what is longer is refused unread."""


def encode(state: TcpState) -> bytes:
    """The state as bytes. Raises ``CodecError``, naming the field that ``decode`` would refuse.

    Addresses come back in the form that getsockname(2) gives them (inet_ntop).
    """
    return b"".join(encode_parts(state))


def encode_parts(state: TcpState) -> tuple[bytes, bytes, bytes, bytes]:
    """``encode`` in pieces, for sendmsg(2) and writev(2): the queues in it are the state's own.

    The head, the receive queue, the sent bytes, the unsent bytes.
    """
    version = 4 if state.family == socket.AF_INET else 6
    local = _packed("local", state.local, version)
    remote = _packed("remote", state.remote, version)
    options, values = pack_options(state.options)
    una, sent, unsent = state.send
    following, received, urgent = state.receive
    mss_clamp, scale, sack, timestamps, ecn = state.negotiated
    numbers = (
        version,
        state.state,
        (scale is not None and _SCALED)
        | (sack and _SACK)
        | (timestamps is not None and _STAMPED | (timestamps.microseconds and _MICROSECONDS))
        | (ecn and _ECN)
        | (state.reuse_address and _REUSE)
        | (state.shut_down and _SHUT_DOWN),
        state.local.port,
        state.remote.port,
        una,
        following,
        _NOT_URGENT if urgent is None else urgent,
        *state.window,
        mss_clamp,
        *(scale or (0, 0)),
        timestamps.clock if timestamps is not None else 0,
        *state.buffers,
        state.error,
        state.round_trip,
        len(state.options),
        len(values),
        len(received),
        len(sent),
        len(unsent),
    )
    try:
        packed = _NUMBERS.pack(*numbers)
    except struct.error:
        raise _unpackable(numbers, state) from None
    check(state, local, remote)
    rest = b"".join((packed, local, remote, options, values))
    checksum = zlib.crc32(rest)
    for queue in (received, sent, unsent):
        if queue:
            checksum = zlib.crc32(queue, checksum)
    return _PREAMBLE.pack(MAGIC, VERSION, checksum) + rest, received, sent, unsent


def decode(data: bytes | bytearray | memoryview) -> TcpState:
    """The state that ``encode`` made ``data`` of. Raises ``CodecError``, naming what is wrong."""
    size = len(data)
    if size > LARGEST_MESSAGE:
        raise CodecError(f"message: at most {LARGEST_MESSAGE} bytes wanted, {size} found")
    view = memoryview(data)
    if view[: len(MAGIC) + 1] != _START:
        raise _not_this_version(bytes(view[: _LATEST_MAGIC + len(MAGIC) + 1]))
    if size < _HEAD:
        raise CodecError(f"message: truncated: at least {_HEAD} bytes wanted, {size} found")
    (
        version,
        number,
        flags,
        local_port,
        remote_port,
        una,
        following,
        urgent,
        snd_wl1,
        snd_wnd,
        max_window,
        rcv_wnd,
        rcv_wup,
        mss_clamp,
        scale_send,
        scale_receive,
        clock,
        send_buffer,
        receive_buffer,
        lock,
        window_clamp,
        error,
        round_trip,
        option_count,
        option_bytes,
        received_size,
        sent_size,
        unsent_size,
    ) = _NUMBERS.unpack_from(view, _PREAMBLE.size)
    if version not in _FAMILIES:
        raise CodecError(f"family: 4 or 6 wanted, {version} found")
    local_at = _HEAD
    remote_at = local_at + _ADDRESS_SIZES[version]
    options_at = remote_at + _ADDRESS_SIZES[version]
    received_at = options_at + option_count * PAIR_SIZE + option_bytes
    sent_at = received_at + received_size
    unsent_at = sent_at + sent_size
    end = unsent_at + unsent_size
    if size != end:
        what = "truncated" if size < end else "something follows it"
        raise CodecError(f"message: {what}: {end} bytes wanted, {size} found")
    _check_sum(view)
    if number not in _STATES:
        raise CodecError(f"state: a TCP state wanted, {number} found")
    _check_flags(flags, scale_send, scale_receive, clock)
    local, remote = bytes(view[local_at:remote_at]), bytes(view[remote_at:options_at])
    family = _FAMILIES[version]
    options = (
        unpack_options(view[options_at:received_at], option_count)
        if received_at > options_at
        else ()
    )
    state = TcpState(
        family,
        Endpoint(socket.inet_ntop(family, local), local_port),
        Endpoint(socket.inet_ntop(family, remote), remote_port),
        _STATES[number],
        SendQueue(una, bytes(view[sent_at:unsent_at]), bytes(view[unsent_at:])),
        ReceiveQueue(
            following,
            bytes(view[received_at:sent_at]),
            None if urgent == _NOT_URGENT else urgent,
        ),
        Window(snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup),
        Negotiated(
            mss_clamp,
            WindowScale(scale_send, scale_receive) if flags & _SCALED else None,
            flags & _SACK != 0,
            Timestamps(clock, flags & _MICROSECONDS != 0) if flags & _STAMPED else None,
            flags & _ECN != 0,
        ),
        Buffers(send_buffer, receive_buffer, lock, window_clamp),
        flags & _REUSE != 0,
        options,
        flags & _SHUT_DOWN != 0,
        error,
        round_trip,
    )
    check(state, local, remote)
    return state


_NOT_URGENT: Final = 0xFFFFFFFF
_START: Final = MAGIC + bytes([VERSION])


def _not_this_version(start: bytes) -> CodecError:
    at = start.find(MAGIC)
    if at < 0:
        return CodecError(f"message: {MAGIC!r} wanted at its start, {start!r} found")
    after = start[at + len(MAGIC) :]
    if not after:
        return CodecError("message: truncated: it ends after the magic")
    if at > 0 and after[0] != 1:
        return CodecError(f"message: {MAGIC!r} wanted at its start, {start!r} found")
    newer = after[0] > VERSION
    where = "that reads it" if newer else "that wrote it"
    return CodecError(
        f"version: {VERSION} wanted, {after[0]} found; it is {'newer' if newer else 'older'}: "
        f"update mycoproxy on the node {where}"
    )


def _check_sum(view: memoryview) -> None:
    found: int = _PREAMBLE.unpack_from(view)[2]
    wanted = zlib.crc32(view[_PREAMBLE.size :])
    if found != wanted:
        raise CodecError(
            f"checksum: {wanted:#010x} wanted, {found:#010x} found; the message was damaged on its "
            "way: send it again"
        )


def _check_flags(flags: int, scale_send: int, scale_receive: int, clock: int) -> None:
    """What is absent is zero: one state has one encoding."""
    if flags > _ALL_FLAGS:
        raise CodecError(f"flags: at most {_ALL_FLAGS:#x} wanted, {flags:#x} found")
    if not flags & _SCALED and (scale_send or scale_receive):
        raise CodecError(
            f"window_scale: 0, 0 wanted where none is flagged, {scale_send}, {scale_receive} found"
        )
    if not flags & _STAMPED and (clock or flags & _MICROSECONDS):
        raise CodecError(
            f"timestamps: clock 0 wanted where none are flagged, {clock} (flags {flags:#x}) found"
        )


def _packed(name: str, endpoint: Endpoint, version: int) -> bytes:
    try:
        # Also refuses a scope, which inet_pton does not know.
        return socket.inet_pton(_FAMILIES[version], endpoint.address)
    except (OSError, ValueError):
        raise CodecError(
            f"{name}: an IPv{version} address without scope wanted, {endpoint.address!r} found"
        ) from None


def _unpackable(numbers: tuple[object, ...], state: TcpState) -> CodecError:
    for (name, form), number in zip(_FIELDS, numbers, strict=True):
        try:
            struct.pack(">" + form, number)
        except struct.error:
            most = (1 << 8 * struct.calcsize(">" + form)) - 1
            return wrong(state, name, f"a number from 0 to {most}", number)
    return wrong(state, "message", "numbers", numbers)
