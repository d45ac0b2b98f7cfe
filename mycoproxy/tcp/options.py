"""The options that a socket's owner has set: read from one socket, set on another.

What is kept and when it is set is data, in ``option_table``. An option counts as set if its value
differs from that of a fresh socket in the same network namespace: what the owner left alone
follows the namespace's sysctls, on the target the target's. (What was set to just the default of
the source's namespace cannot be told from what was not.)

Reading takes a third of a microsecond an option, nearly all of it in the kernel. What no longer
has an effect once a socket is connected is therefore left out on request. Tasks that are frozen
change nothing, so this can be done before the hold.
"""

import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Final, NamedTuple

from mycoproxy.tcp import batch, sockaddr
from mycoproxy.tcp.option_table import (
    BY_NUMBER,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPPROTO_TCP,
    LEVEL_NAMES,
    SOL_SOCKET,
    TABLE,
    Fate,
    Option,
    Special,
    When,
)
from mycoproxy.tcp.socket_namespace import SO_NETNS_COOKIE, call_in_namespace_of

Setting = tuple[int, int | bytes]
"""A number of ``option_table.BY_NUMBER`` and the value; see ``Option.form``."""
Settings = tuple[Setting, ...]

_PLACE: Final = {row.number: place for place, row in enumerate(TABLE) if row.number}
_SHORT: Final = 40  # bytes that are read at first of a value of any length
_LONG: Final = 4096  # an IPv6 extension header has at most half of that
_NAME_SIZE: Final = 16  # IFNAMSIZ, TCP_CA_NAME_MAX
_FILTER_INSTRUCTION: Final = 8  # struct sock_filter, include/uapi/linux/filter.h
_SIOCGIFNAME: Final = 0x8910  # include/uapi/linux/sockios.h
_SIOCGIFINDEX: Final = 0x8933
_IFREQ_SIZE: Final = 40
_UNKNOWN: Final = frozenset({errno.ENOPROTOOPT, errno.EOPNOTSUPP})
_MOST_REMEMBERED: Final = 1024


def read(sock: socket.socket, *, connected: bool = False) -> Settings:
    """What the owner of ``sock`` has set, of the options that are KEPT, in the order to set it.

    With ``connected`` those are left out that have no effect on a connection. Options that this
    kernel does not know are no options. Raises ``OSError``.
    """
    if sockaddr.tcp_family(sock) is socket.AF_INET:
        settings, _ = _reader(socket.AF_INET, _OWN_LEVELS[socket.AF_INET], connected).read(sock)
        return settings
    settings, name = _reader(socket.AF_INET6, _OWN_LEVELS[socket.AF_INET6], connected).read(sock)
    if connected and not _is_mapped(name):
        return settings
    return settings + _reader(socket.AF_INET6, (IPPROTO_IP,), connected).read(sock)[0]


def apply(sock: socket.socket, settings: Iterable[Setting], when: When) -> list[str]:
    """Set those of ``settings`` that are due at ``when``.

    Returns a message for each that the kernel refused; an option that has its value already is
    no refusal. Numbers that this version does not know are reported at ``BEFORE_BIND``.
    """
    unknown, due = _due(tuple(settings), when)
    refused = [
        f"{option.name}={_shown(option, value)}: {reason}"
        for option, value in due
        if (reason := _set(sock, option, value)) is not None
    ]
    return [*refused, *unknown]


# Thousands of connections of one workload have been set up alike.
@lru_cache(maxsize=1024)
def _due(
    settings: Settings, when: When
) -> tuple[tuple[str, ...], tuple[tuple[Option, int | bytes], ...]]:
    """The messages for those that are not known, and what is to be set, in its order."""
    unknown = tuple(
        f"option {number}: not known to this version of mycoproxy"
        for number, _ in settings
        if number not in BY_NUMBER and when is When.BEFORE_BIND
    )
    known = sorted((one for one in settings if one[0] in BY_NUMBER), key=_place)
    return unknown, tuple(
        (BY_NUMBER[number], value) for number, value in known if BY_NUMBER[number].when is when
    )


class Described(NamedTuple):
    """What becomes of one option, in words. ``on_connection``: see ``Option``."""

    name: str
    level: str
    fate: Fate
    on_connection: bool
    when: str
    remark: str


def describe() -> list[Described]:
    """Every option of the table, for the documentation."""
    return [
        Described(
            row.name,
            LEVEL_NAMES[row.level],
            row.fate,
            row.on_connection,
            row.when.value if row.fate is Fate.KEPT else "",
            "; ".join(part for part in (row.remark, row.since and f"Linux {row.since}") if part),
        )
        for row in TABLE
    ]


def _place(setting: Setting) -> int:
    return _PLACE.get(setting[0], len(TABLE))


_OWN_LEVELS: Final = {
    socket.AF_INET: (SOL_SOCKET, IPPROTO_TCP, IPPROTO_IP),
    socket.AF_INET6: (SOL_SOCKET, IPPROTO_TCP, IPPROTO_IPV6),
}


class _Reader:
    """Reads the options of some levels from sockets of one family.

    The program's first operation says which namespace the socket lives in, so its answer without
    the last one (the socket's name) says everything: it is looked up in what was seen before.
    """

    def __init__(
        self, family: socket.AddressFamily, levels: tuple[int, ...], connected: bool
    ) -> None:
        self._family = family
        rows = [
            row
            for row in TABLE
            if row.fate is Fate.KEPT
            and row.level in levels
            and (row.on_connection or not connected)
        ]
        with socket.socket(family, socket.SOCK_STREAM) as fresh:
            trial = batch.Program([_get(row) for row in rows])
            answer = trial.run(fresh.fileno())
        self._rows = [
            row for index, row in enumerate(rows) if -trial.result(answer, index) not in _UNKNOWN
        ]
        cookie = batch.getsockopt(
            SOL_SOCKET, SO_NETNS_COOKIE, 8, must=True, name="SO_NETNS_COOKIE (Linux 5.14)"
        )
        # Whether the IPv4 options matter to it, too, is in an IPv6 socket's name.
        named = [batch.getsockname()] if family == socket.AF_INET6 else []
        self._program = batch.Program([cookie, *(_get(row) for row in self._rows), *named])
        self._name_at = self._program.offsets[-1] if named else None
        self._defaults: dict[bytes, bytes] = {}  # by the namespace's cookie
        self._seen: dict[bytes, Settings] = {}

    def read(self, sock: socket.socket) -> tuple[Settings, bytes]:
        """The settings, and an IPv6 socket's local name as a ``struct sockaddr_in6``."""
        answer = self._program.run(sock.fileno())
        if self._name_at is None:
            essence, name = answer, b""
        else:
            essence, name = answer[: self._name_at], answer[self._name_at :]
        settings = self._seen.get(essence)
        if settings is None:
            settings = self._compare(sock, answer)
            if len(self._seen) >= _MOST_REMEMBERED:
                self._seen.clear()
            if not any(_says_too_little(BY_NUMBER[number]) for number, _ in settings):
                self._seen[essence] = settings
        return settings, name

    def _compare(self, sock: socket.socket, answer: bytes) -> Settings:
        default = self._default(sock, self._program.output(answer, 0))
        program = self._program
        settings: list[Setting] = []
        for index, row in enumerate(self._rows, 1):
            if program.result(answer, index) < 0:
                continue
            raw, length = program.output(answer, index), program.length(answer, index)
            if (raw, length) != (program.output(default, index), program.length(default, index)):
                value = _value(sock, row, raw)
                if value is not None:
                    settings.append((row.number, value))
        return tuple(settings)

    def _default(self, sock: socket.socket, cookie: bytes) -> bytes:
        """What a fresh socket in the same namespace answers."""
        if cookie not in self._defaults:
            answer = self._fresh()
            if self._program.output(answer, 0) != cookie:
                answer = call_in_namespace_of(sock, self._fresh)
            if len(self._defaults) >= _MOST_REMEMBERED:
                self._defaults.clear()
            self._defaults[cookie] = answer
        return self._defaults[cookie]

    def _fresh(self) -> bytes:
        with socket.socket(self._family, socket.SOCK_STREAM) as fresh:
            return self._program.run(fresh.fileno())


@cache
def _reader(family: socket.AddressFamily, levels: tuple[int, ...], connected: bool) -> _Reader:
    return _Reader(family, levels, connected)


def _is_mapped(name: bytes) -> bool:
    """Whether a ``struct sockaddr_in6`` has an address of the form ::ffff:192.0.2.1."""
    return name[8:20] == bytes(10) + b"\xff\xff"


def _get(row: Option) -> batch.Operation:
    if row.layout is not None:
        size = row.layout.size
    else:
        size = {
            Special.TEXT: _NAME_SIZE,
            Special.BYTES: _SHORT,
            Special.FILTER: 0,
            Special.INTERFACE: 4,
        }[Special(row.form)]
    return batch.getsockopt(row.level, row.option, size, name=row.name)


def _says_too_little(row: Option) -> bool:
    """Whether equal answers may stand for different values: a beginning, an index."""
    return row.form in (Special.BYTES, Special.FILTER, Special.INTERFACE)


def _value(sock: socket.socket, row: Option, raw: bytes) -> int | bytes | None:
    """``raw`` as it goes on the wire; None if there is nothing to set."""
    if row.layout is not None:
        fields = row.layout.unpack(raw)
        return fields[0] if len(fields) == 1 else struct.pack(f"<{row.form}", *fields)
    match row.form:
        case Special.TEXT:
            return raw.partition(b"\0")[0]
        case Special.BYTES:
            return _whole(sock, row) if len(raw) == _SHORT else raw
        case Special.FILTER:
            return _filter(sock, row)
        case _:
            request = bytes(_NAME_SIZE) + raw[::-1]  # the index in the order of this machine
            answer = fcntl.ioctl(sock.fileno(), _SIOCGIFNAME, request.ljust(_IFREQ_SIZE, b"\0"))
            return answer.partition(b"\0")[0]


def _whole(sock: socket.socket, row: Option) -> bytes:
    """A value that is longer than what was read at first."""
    program = batch.Program([batch.getsockopt(row.level, row.option, _LONG, must=True)])
    return program.output(program.run(sock.fileno()), 0)


def _filter(sock: socket.socket, row: Option) -> bytes | None:
    """The instructions. The kernel counts them in the length, not their bytes (sk_get_filter)."""
    asked = batch.Program([_get(row)])
    count = asked.length(asked.run(sock.fileno()), 0)
    if not count:
        return None
    program = batch.Program([batch.getsockopt(row.level, row.option, count * _FILTER_INSTRUCTION)])
    answer = program.run(sock.fileno())
    start = program.offsets[0]
    return answer[start : start + program.length(answer, 0) * _FILTER_INSTRUCTION]


_REASONS: Final = {
    errno.ENOPROTOOPT: "not known to this kernel",
    errno.EOPNOTSUPP: "not supported by this kernel",
    errno.ENOENT: "not available here",
    errno.ENODEV: "no such interface here",
    errno.EPERM: "not permitted here",
}


def _set(sock: socket.socket, row: Option, value: int | bytes) -> str | None:
    """Set one option; says why not."""
    try:
        if row.form is Special.FILTER and isinstance(value, bytes):
            program = ctypes.create_string_buffer(value, len(value))
            count = len(value) // _FILTER_INSTRUCTION
            raw = struct.pack("@HP", count, ctypes.addressof(program))  # struct sock_fprog
        else:
            raw = _raw(sock, row, value)
        sock.setsockopt(row.level, row.option, raw)
    except struct.error:
        return "no value of this option"
    except OSError as error:
        if row.layout is not None and _has(sock, row, raw):
            return None
        number = error.errno or 0
        return _REASONS.get(number, os.strerror(number))
    return None


def _raw(sock: socket.socket, row: Option, value: int | bytes) -> bytes:
    """``value`` as the kernel takes it. Raises ``struct.error`` if it is none of this option."""
    if isinstance(value, int):
        if row.layout is None:
            raise struct.error
        return row.layout.pack(value)
    if row.layout is not None:
        fields = struct.unpack(f"<{row.form}", value)
        if len(fields) == 1:  # has to be an int
            raise struct.error
        return row.layout.pack(*fields)
    if row.form is Special.INTERFACE:
        request = value[: _NAME_SIZE - 1].ljust(_IFREQ_SIZE, b"\0")
        answer = fcntl.ioctl(sock.fileno(), _SIOCGIFINDEX, request)
        return answer[_NAME_SIZE : _NAME_SIZE + 4][::-1]
    return value


def _has(sock: socket.socket, row: Option, raw: bytes) -> bool:
    try:
        return sock.getsockopt(row.level, row.option, len(raw)) == raw
    except OSError:
        return False


def _shown(row: Option, value: int | bytes) -> str:
    if isinstance(value, int):
        return str(value)
    if row.form in (Special.TEXT, Special.INTERFACE):
        return value.decode(errors="replace")
    if row.layout is not None and row.layout.size == len(value):
        return ",".join(str(field) for field in struct.unpack(f"<{row.form}", value))
    return value.hex()
