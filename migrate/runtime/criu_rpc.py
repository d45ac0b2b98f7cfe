"""CRIU's RPC messages, as far as this project reads and changes them.

runc and CRIU talk protocol buffers over a SOCK_SEQPACKET pair, one message in a packet. The gate
(``gate.py``) stands between the two: it reads a few fields of what passes and changes a few
options of a request. Everything else must go through untouched, fields that this file has never
heard of included, so a message is kept as its list of raw fields and is not modelled further.

Field numbers and enum values are those of CRIU's ``images/rpc.proto``; the encoding is that of
https://protobuf.dev/programming-guides/encoding/.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum

from mycoproxy.errors import MycoError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class RpcError(MycoError):
    """A packet is not a protocol buffers message."""


class RequestType(IntEnum):
    """``criu_req_type`` in rpc.proto."""

    EMPTY = 0
    DUMP = 1
    RESTORE = 2
    CHECK = 3
    PRE_DUMP = 4
    PAGE_SERVER = 5
    NOTIFY = 6
    CPUINFO_DUMP = 7
    CPUINFO_CHECK = 8
    FEATURE_CHECK = 9
    VERSION = 10


class Option(IntEnum):
    """Fields of ``criu_opts`` in rpc.proto that are set here."""

    IMAGES_DIR_FD = 1
    LOG_LEVEL = 9
    MANAGE_CGROUPS = 24
    MANAGE_CGROUPS_MODE = 34
    TIMEOUT = 45
    TCP_SKIP_IN_FLIGHT = 46
    TCP_CLOSE = 52
    NETWORK_LOCK = 64
    IMAGES_DIR = 68


class NetworkLock(IntEnum):
    """``criu_network_lock_method`` in rpc.proto."""

    IPTABLES = 1
    NFTABLES = 2
    SKIP = 3


class ManageCgroups(IntEnum):
    """``criu_cg_mode`` in rpc.proto."""

    IGNORE = 0
    SOFT = 3


OptionValue = int | str | bytes


@dataclass(frozen=True, slots=True)
class Field:
    """One field as it is on the wire. ``value`` is an int for varints, else the raw bytes."""

    number: int
    wire_type: int
    value: int | bytes


def parse(packet: bytes) -> list[Field]:
    """The fields of a message in their order. Raises ``RpcError`` if it is cut or malformed."""
    return list(_fields(packet))


def serialize(fields: list[Field]) -> bytes:
    """The inverse of ``parse``."""
    out = bytearray()
    for field in fields:
        out += _varint(field.number << 3 | field.wire_type)
        if isinstance(field.value, int):
            out += _varint(field.value)
        else:
            if field.wire_type == _BYTES:
                out += _varint(len(field.value))
            out += field.value
    return bytes(out)


def request_type(packet: bytes) -> int:
    """The type of a request (``criu_req.type``) or of a response (``criu_resp.type``)."""
    return _int(parse(packet), 1, "type")


def with_options(packet: bytes, options: Mapping[Option, OptionValue]) -> bytes:
    """The request with some fields of ``criu_req.opts`` set, replacing what was there."""
    request = parse(packet)
    opts = parse(_bytes(request, 2) or b"")
    opts = [field for field in opts if field.number not in options]
    opts += [_field(number, value) for number, value in options.items()]
    request = [field for field in request if field.number != 2]
    request.append(Field(2, _BYTES, serialize(opts)))
    return serialize(request)


@dataclass(frozen=True, slots=True)
class Response:
    """What is read of ``criu_resp``. ``script`` and ``pid`` are those of a notification."""

    type: int
    success: bool
    script: str | None = None
    pid: int | None = None
    errno: int | None = None
    message: str | None = None


def response(packet: bytes) -> Response:
    """Raises ``RpcError`` if the packet is no response."""
    fields = parse(packet)
    notify = _bytes(fields, 5)
    script = pid = None
    if notify is not None:
        inner = parse(notify)
        script = (_bytes(inner, 1) or b"").decode()
        pid = _optional_int(inner, 2)
    message = _bytes(fields, 9)
    return Response(
        type=_int(fields, 1, "type"),
        success=bool(_int(fields, 2, "success")),
        script=script,
        pid=pid,
        errno=_optional_int(fields, 7),
        message=message.decode(errors="replace") if message is not None else None,
    )


def notify_reply(*, success: bool) -> bytes:
    """The answer to a notification. ``success=False`` makes CRIU abort, where it still can."""
    return serialize([Field(1, _VARINT, RequestType.NOTIFY), Field(3, _VARINT, int(success))])


def failure(kind: int) -> bytes:
    """A response that says that a request of type ``kind`` failed."""
    return serialize([Field(1, _VARINT, kind), Field(2, _VARINT, 0)])


def _fields(packet: bytes) -> Iterator[Field]:
    at = 0
    while at < len(packet):
        tag, at = _read_varint(packet, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, at = _read_varint(packet, at)
            yield Field(number, wire_type, value)
            continue
        if wire_type == _BYTES:
            length, at = _read_varint(packet, at)
        elif wire_type in (_FIXED32, _FIXED64):
            length = 4 if wire_type == _FIXED32 else 8
        else:
            raise RpcError(f"CRIU RPC: wire type {wire_type} in field {number}")
        if at + length > len(packet):
            raise RpcError(f"CRIU RPC: field {number} is cut off at byte {len(packet)}")
        yield Field(number, wire_type, packet[at : at + length])
        at += length


def _field(number: int, value: OptionValue) -> Field:
    if isinstance(value, int):
        return Field(number, _VARINT, value & 0xFFFFFFFFFFFFFFFF)
    return Field(number, _BYTES, value.encode() if isinstance(value, str) else value)


def _bytes(fields: list[Field], number: int) -> bytes | None:
    """The last one wins, as protocol buffers have it for a field that is not repeated."""
    found = None
    for field in fields:
        if field.number == number and isinstance(field.value, bytes):
            found = field.value
    return found


def _optional_int(fields: list[Field], number: int) -> int | None:
    found = None
    for field in fields:
        if field.number == number and isinstance(field.value, int):
            found = field.value
    return found


def _int(fields: list[Field], number: int, name: str) -> int:
    value = _optional_int(fields, number)
    if value is None:
        raise RpcError(f"CRIU RPC: no {name} in the message")
    return value


def _read_varint(packet: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(packet) or shift > 63:
            raise RpcError(f"CRIU RPC: a number is cut off or too long at byte {at}")
        byte = packet[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
