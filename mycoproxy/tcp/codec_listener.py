"""``ListenerState`` as bytes. Layout and rules are those of ``codec``, with another magic.

A message: magic, version, CRC-32 of what follows; numbers and lengths; the address; options.
"""

import socket
import struct
import zlib
from typing import Final

from mycoproxy.addresses import Endpoint
from mycoproxy.tcp.codec_fields import LARGEST_OPTION, MOST_OPTIONS, check_settings
from mycoproxy.tcp.codec_options import PAIR_SIZE, pack_options, unpack_options
from mycoproxy.tcp.errors import CodecError
from mycoproxy.tcp.listener import ListenerState
from mycoproxy.tcp.state import Buffers

MAGIC: Final = b"mycoproxy.lsn"
VERSION: Final = 1

_PREAMBLE: Final = struct.Struct(f">{len(MAGIC)}sBI")
# family, reuse_address, port, backlog, segment size (0: none), buffers, number of options and the
# bytes of their values
_NUMBERS: Final = struct.Struct(">BBHIHIIBIBI")
_HEAD: Final = _PREAMBLE.size + _NUMBERS.size
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_ADDRESS_SIZES: Final = {4: 4, 6: 16}

LARGEST_MESSAGE: Final = _HEAD + 16 + MOST_OPTIONS * (PAIR_SIZE + LARGEST_OPTION)


def encode_listener(state: ListenerState) -> bytes:
    """The state as bytes. Raises ``CodecError``, naming the field that cannot be."""
    version = 4 if state.family == socket.AF_INET else 6
    check_settings(state.options, str(state.local))
    options, values = pack_options(state.options)
    try:
        address = socket.inet_pton(state.family, state.local.address)
        numbers = _NUMBERS.pack(
            version,
            state.reuse_address,
            state.local.port,
            state.backlog,
            state.segment_size or 0,
            *state.buffers,
            len(state.options),
            len(values),
        )
    except (OSError, ValueError, struct.error) as error:
        raise CodecError(f"listener {state.local}: {error}") from error
    rest = numbers + address + options + values
    return _PREAMBLE.pack(MAGIC, VERSION, zlib.crc32(rest)) + rest


def decode_listener(data: bytes | bytearray | memoryview) -> ListenerState:
    """What ``encode_listener`` made ``data`` of. Raises ``CodecError``, naming what is wrong."""
    size = len(data)
    if not _HEAD <= size <= LARGEST_MESSAGE:
        raise CodecError(f"message: {_HEAD} to {LARGEST_MESSAGE} bytes wanted, {size} found")
    view = memoryview(data)
    magic, layout, checksum = _PREAMBLE.unpack_from(view)
    if magic != MAGIC:
        raise CodecError(f"message: {MAGIC!r} wanted at its start, {magic!r} found")
    if layout != VERSION:
        raise CodecError(f"version: {VERSION} wanted, {layout} found: update the older mycoproxy")
    version, reuse, port, backlog, segment_size, *rest = _NUMBERS.unpack_from(view, _PREAMBLE.size)
    *buffers, count, value_bytes = rest
    if version not in _FAMILIES:
        raise CodecError(f"family: 4 or 6 wanted, {version} found")
    if reuse > 1:
        raise CodecError(f"reuse_address: 0 or 1 wanted, {reuse} found")
    options_at = _HEAD + _ADDRESS_SIZES[version]
    end = options_at + count * PAIR_SIZE + value_bytes
    if size != end:
        raise CodecError(f"message: {end} bytes wanted, {size} found")
    if zlib.crc32(view[_PREAMBLE.size :]) != checksum:
        raise CodecError("checksum: the message was damaged on its way: send it again")
    family = _FAMILIES[version]
    local = Endpoint(socket.inet_ntop(family, bytes(view[_HEAD:options_at])), port)
    options = unpack_options(view[options_at:], count) if count or value_bytes else ()
    check_settings(options, str(local))
    return ListenerState(
        family=family,
        local=local,
        backlog=backlog,
        segment_size=segment_size or None,
        buffers=Buffers(*buffers),
        reuse_address=bool(reuse),
        options=options,
    )
