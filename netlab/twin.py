"""A moved connection and its twin, which had the same history and stayed: what differs?

Read is what ``ss -tino`` says (iproute2), as that is what a person would look at, and the options
that a socket's owner sets, which ``ss`` does not show. Most of it is measured anew after a move,
and no two connections measure the same; so each field has a rule of its own in ``RULES``, or none:
then it is shown, no more. Counters begin anew with a move.
"""

import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from mycoproxy.addresses import Endpoint
from mycoproxy.errors import MycoError, RefusedError
from mycoproxy.namespaces import NamespaceWorker

Fields = Mapping[str, str]
"""Names as ``ss`` prints them, in its order. A flag (``ts``, ``sack``, ``ecn``) is ``yes``."""

_TIMEOUT: Final = 10.0  # seconds
_NAMES_AT: Final = 3  # columns: state, receive queue, send queue, the two names
_VALUE_APART: Final = frozenset({"send", "pacing_rate", "delivery_rate"})
_FLAGS: Final = frozenset({"ts", "sack", "ecn", "ecnseen", "fastopen", "app_limited"})

# What grows with the traffic differs by a factor of three between equals; what is stuck stays at
# a hundredth.
_STUCK: Final = 0.1

_TCP, _SOCKET, _IP = socket.IPPROTO_TCP, socket.SOL_SOCKET, socket.IPPROTO_IP
OPTIONS: Final = {
    "TCP_NODELAY": (_TCP, socket.TCP_NODELAY),
    "TCP_USER_TIMEOUT": (_TCP, socket.TCP_USER_TIMEOUT),
    "TCP_NOTSENT_LOWAT": (_TCP, socket.TCP_NOTSENT_LOWAT),
    "SO_KEEPALIVE": (_SOCKET, socket.SO_KEEPALIVE),
    "TCP_KEEPIDLE": (_TCP, socket.TCP_KEEPIDLE),
    "TCP_KEEPINTVL": (_TCP, socket.TCP_KEEPINTVL),
    "TCP_KEEPCNT": (_TCP, socket.TCP_KEEPCNT),
    "IP_TOS": (_IP, socket.IP_TOS),
    "IP_TTL": (_IP, socket.IP_TTL),
    "SO_PRIORITY": (_SOCKET, socket.SO_PRIORITY),
    "SO_REUSEADDR": (_SOCKET, socket.SO_REUSEADDR),
}
"""Options that are compared: level and number. All of them are integers."""


def read(worker: NamespaceWorker, sock: socket.socket) -> dict[str, str]:
    """The fields of ``sock``, which is in the namespace of ``worker``, and its options.

    Raises ``RefusedError`` if there is no ``ss``, ``MycoError`` if it does not find the socket.
    """
    local, remote = Endpoint(*sock.getsockname()[:2]), Endpoint(*sock.getpeername()[:2])
    command = ["ss", "-tinoOH", "src", str(local), "dst", str(remote)]
    try:
        ended = worker.call(
            subprocess.run, command, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except FileNotFoundError:
        raise RefusedError("ss is needed and was not found; install iproute2") from None
    lines = ended.stdout.splitlines()
    if ended.returncode or len(lines) != 1:
        raise MycoError(f"{' '.join(command)}: one socket wanted, {lines or ended.stderr!r} found")
    options = {name: str(sock.getsockopt(*which)) for name, which in OPTIONS.items()}
    return parse(lines[0]) | options


def parse(line: str) -> dict[str, str]:
    """The fields of one line of ``ss -tinoOH``."""
    words = line.split()
    fields = dict(zip(("state", "recv-q", "send-q"), words, strict=False))
    rest = iter(words[_NAMES_AT + 2 :])
    for word in rest:
        name, colon, value = word.partition(":")
        if word in _VALUE_APART:
            fields[word] = next(rest, "")
        elif colon:
            fields[name] = value
        elif word in _FLAGS:
            fields[word] = "yes"
        else:
            fields["congestion"] = word
    return fields


Rule = Callable[[str | None, str | None], str | None]
"""Given the twin's value and the moved connection's: what is wrong, in words, or None."""


def _same(stayed: str | None, moved: str | None) -> str | None:
    return None if stayed == moved else "differs"


def _same_scale(stayed: str | None, moved: str | None) -> str | None:
    # Repair mode can say "by nothing" only, where the handshake said nothing.
    return _same(stayed or "0,0", moved or "0,0")


def _same_but_timestamps(stayed: str | None, moved: str | None) -> str | None:
    # advmss is what we would announce. The handshake takes off what timestamps need, repair mode
    # does not, and nothing is announced any more.
    found = abs(_number(stayed) - _number(moved))
    return None if found in (0, 12) else "differs"


def _not_begun(stayed: str | None, moved: str | None) -> str | None:
    return _same(None, moved) if stayed is None else None


def _measured(_: str | None, moved: str | None) -> str | None:
    return None if _number(moved) > 0 else "is not measured"


def _at_least(share: float) -> Rule:
    def rule(stayed: str | None, moved: str | None) -> str | None:
        return None if _number(moved) >= share * _number(stayed) else "is stuck"

    return rule


def _window(stayed: str | None, moved: str | None) -> str | None:
    if _number(moved) < 10:
        return "is below that of a new connection"
    return _at_least(_STUCK)(stayed, moved)


def _timeout(_: str | None, moved: str | None) -> str | None:
    # Without an estimate of the round trip it is 3 s (TCP_TIMEOUT_FALLBACK, include/net/tcp.h),
    # and ss does not show it then. With one it is 200 ms and more.
    return None if 0 < _number(moved) < 1000 else "does not come from a round trip"


RULES: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(("state", "recv-q", "send-q"), _same),
    **dict.fromkeys(("ts", "sack", "mss", "pmtu", "rcvmss", "congestion"), _same),
    "wscale": _same_scale,
    "advmss": _same_but_timestamps,
    "rto": _timeout,
    "rtt": _measured,
    "minrtt": _measured,
    "rcv_rtt": _measured,
    "cwnd": _window,
    "pacing_rate": _measured,
    "snd_wnd": _at_least(_STUCK),
    "rcv_ssthresh": _at_least(_STUCK),
    "rcv_space": _at_least(_STUCK),
    **dict.fromkeys(("retrans", "bytes_retrans", "lost", "backoff", "dsack_dups"), _not_begun),
    **dict.fromkeys(OPTIONS, _same),
}
"""Not among them: ``ecn``, which is given up by a move (repair mode cannot set it)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One field of both; ``wrong`` is what its rule found."""

    field: str
    stayed: str | None
    moved: str | None
    wrong: str | None


def side_by_side(stayed: Fields, moved: Fields) -> list[Row]:
    """Every field that either has, in order."""
    rows = []
    for field in dict.fromkeys([*stayed, *moved]):
        values = stayed.get(field), moved.get(field)
        rule = RULES.get(field)
        rows.append(Row(field, *values, rule(*values) if rule else None))
    return rows


def differences(rows: list[Row]) -> list[str]:
    """What is wrong, each in one line. Nothing: the moved connection is as good as its twin."""
    return [
        f"{row.field} {row.wrong}: {row.moved or 'none'}, the twin has {row.stayed or 'none'}"
        for row in rows
        if row.wrong
    ]


def _number(value: str | None) -> float:
    """The first number in a value: ``0.05/0.02``, ``1234bps``, ``0/3``. None is 0."""
    if value is None:
        return 0.0
    digits = value.partition("/")[0].removesuffix("bps").removesuffix("ms")
    try:
        return float(digits)
    except ValueError:
        return 0.0
