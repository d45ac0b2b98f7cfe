"""Every option that is KEPT is read from a socket and set on another; what cannot move says so."""

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mycoproxy import tcp
from mycoproxy.tcp import option_table, options, repair
from mycoproxy.tcp.option_table import BY_NAME, BY_NUMBER, Fate, Option, Special, When

pytestmark = pytest.mark.timeout(20)

_TCP, _SOCKET = socket.IPPROTO_TCP, socket.SOL_SOCKET
_PAD = bytes.fromhex("0000010400000000")  # an extension header that holds nothing
_RETURN_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0xFFFFFFFF)  # BPF_RET | BPF_K

# A value that no fresh socket has, where 1 is not one: by name, or by form.
UNUSUAL: dict[str, Any] = {
    "IP_CHECKSUM": 1,
    "IP_LOCAL_PORT_RANGE": 0x9C509C40,
    "IP_MTU_DISCOVER": 2,
    "IP_MULTICAST_ALL": 0,
    "IP_MULTICAST_LOOP": 0,
    "IP_OPTIONS": b"\x01\x01\x01\x00",
    "IP_TOS": 0x28,
    "IP_TTL": 33,
    "IP_UNICAST_IF": b"lo",
    "IPV6_ADDR_PREFERENCES": 0x0402,
    "IPV6_AUTOFLOWLABEL": 0,
    "IPV6_MTU_DISCOVER": 2,
    "IPV6_MULTICAST_ALL": 0,
    "IPV6_MULTICAST_LOOP": 0,
    "IPV6_RTHDR": bytes.fromhex("0002040000000000") + bytes(15) + b"\x01",  # segments: ::1
    "IPV6_TCLASS": 0x28,
    "IPV6_UNICAST_HOPS": 33,
    "IPV6_UNICAST_IF": b"lo",
    "SO_BINDTODEVICE": b"lo",
    "SO_LINGER": (1, 5),
    "SO_MAX_PACING_RATE": 123_456_789,
    "SO_MARK": 7,
    "SO_PEEK_OFF": 0,
    "SO_RCVLOWAT": 3,
    "SO_RCVTIMEO": (2, 500_000),
    "SO_SNDTIMEO": (3, 0),
    "SO_TIMESTAMPING": (0x90, 0),  # OPT_ID | RAW... only once connected
    "SO_TIMESTAMPING_NEW": (0x18, 0),
    "SO_TXREHASH": 0,
    "SO_TXTIME": (1, 0),
    "TCP_CONGESTION": b"reno",
    "TCP_DELACK_MAX_US": 20_000,
    "TCP_FASTOPEN_KEY": bytes(range(16)),
    "TCP_LINGER2": 7,
    "TCP_NOTSENT_LOWAT": 4096,
    "TCP_QUICKACK": 0,
    "TCP_RTO_MAX_MS": 5000,
    "TCP_RTO_MIN_US": 52_000,
    "TCP_USER_TIMEOUT": 1500,
}
"""Ints, structures' fields, or bytes; an interface by its name."""

UNUSUAL_IN_IPV6 = {"IP_MULTICAST_ALL": 1}
UNCONNECTED = {"IPV6_RTHDR", "IPV6_RTHDRDSTOPTS"}
"""With these packets go, or do not go, elsewhere."""
# Refused by a kernel, each for its reason.
CONDITIONAL = {
    "SO_PASSCRED": errno.EOPNOTSUPP,
    "SO_PASSPIDFD": errno.EOPNOTSUPP,
    "SO_PASSSEC": errno.EOPNOTSUPP,
    "SO_RESERVE_MEM": errno.EOPNOTSUPP,
}
KEPT = [row for row in option_table.TABLE if row.fate is Fate.KEPT]
CASES = [
    (kind, row)
    for row in KEPT
    for kind in ("v4", "v6", "mapped")
    if not (kind == "v4" and row.level == socket.IPPROTO_IPV6)
    and not (kind == "v6" and row.level == socket.IPPROTO_IP and row.on_connection)
]


class Ends(NamedTuple):
    """Where a connection goes to, and a socket that goes there."""

    listener: socket.socket
    family: socket.AddressFamily
    target: tuple[Any, ...]

    def fresh(self) -> socket.socket:
        return socket.socket(self.family, socket.SOCK_STREAM)

    def connect(self, sock: socket.socket) -> socket.socket:
        """Connect; returns the other end, whose closing would change TCP_QUICKACK."""
        sock.connect(self.target)
        return self.listener.accept()[0]


@pytest.fixture(scope="module")
def ends() -> Iterator[dict[str, Ends]]:
    with ExitStack() as stack:
        v4 = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        v6 = stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
        yield {
            "v4": Ends(v4, socket.AF_INET, v4.getsockname()),
            "v6": Ends(v6, socket.AF_INET6, v6.getsockname()),
            "mapped": Ends(v4, socket.AF_INET6, ("::ffff:127.0.0.1", v4.getsockname()[1])),
        }


def wire_value(row: Option, family: socket.AddressFamily = socket.AF_INET) -> int | bytes:
    value = UNUSUAL.get(row.name, _RETURN_ALL if row.form is Special.FILTER else 1)
    if family == socket.AF_INET6:
        value = UNUSUAL_IN_IPV6.get(row.name, value)
    if row.form is Special.BYTES and value == 1:
        return _PAD
    return struct.pack(f"<{row.form}", *value) if isinstance(value, tuple) else value


def set_by_owner(sock: socket.socket, row: Option) -> None:
    """What the owner does, with the module's own means where it has them."""
    refused = options.apply(sock, [(row.number, wire_value(row, sock.family))], row.when)
    if refused and CONDITIONAL.get(row.name):
        pytest.skip(f"this kernel: {refused[0]}")
    assert refused == []


@pytest.mark.parametrize(("kind", "row"), CASES, ids=[f"{row.name}-{kind}" for kind, row in CASES])
def test_a_setting_goes_from_a_connection_to_another(
    ends: dict[str, Ends], kind: str, row: Option
) -> None:
    end = ends[kind]
    connected = row.on_connection and row.name not in UNCONNECTED
    with ExitStack() as stack:
        old, new = (stack.enter_context(end.fresh()) for _ in range(2))

        def connect(sock: socket.socket) -> None:
            if connected:
                stack.enter_context(end.connect(sock))

        if row.when is not When.BEFORE_BIND:
            connect(old)
        set_by_owner(old, row)
        if row.when is When.BEFORE_BIND:
            connect(old)
        settings = options.read(old, connected=connected)
        assert (row.number, wire_value(row, end.family)) in settings

        assert options.apply(new, settings, When.BEFORE_BIND) == []
        connect(new)
        assert options.apply(new, settings, When.BEFORE_LIVE) == []
        assert options.apply(new, settings, When.LIVE) == []
        assert options.read(new, connected=connected) == settings


@pytest.mark.parametrize("kind", ["v4", "v6", "mapped"])
def test_everything_at_once_goes_from_a_closed_socket_to_another(
    ends: dict[str, Ends], kind: str
) -> None:
    end = ends[kind]
    with end.fresh() as old, end.fresh() as new:
        for row in KEPT:
            # One socket has one kind of timestamp; a locked filter and an address stay.
            if end.family in row.families and not row.name.startswith(
                ("SO_TIMESTAMP", "IPV6_RTHDR")
            ):
                options.apply(old, [(row.number, wire_value(row, end.family))], row.when)
        settings = options.read(old)
        assert len(settings) > 60
        for when in When:
            assert options.apply(new, reversed(settings), when) == []
        assert options.read(new) == settings


@pytest.mark.root
@pytest.mark.parametrize("kind", ["v4", "v6", "mapped"])
def test_everything_at_once_goes_along_with_a_moved_connection(
    ends: dict[str, Ends], kind: str
) -> None:
    """In repair mode the same can be read and set (``test_tcp_states`` moves far)."""
    end = ends[kind]
    with end.fresh() as old, end.fresh() as new:
        for when in When:
            if when is When.BEFORE_LIVE:
                peer = end.connect(old)
            for row in KEPT:
                # One socket has one kind of timestamp; what changes the header changes the MSS.
                if (
                    row.when is when
                    and row.on_connection
                    and end.family in row.families
                    and row.name not in (*CONDITIONAL, "IP_OPTIONS", *UNCONNECTED)
                    and not row.name.startswith("SO_TIMESTAMP")
                ):
                    wanted = (row.number, wire_value(row, end.family))
                    assert options.apply(old, [wanted], when) == []
        with peer:
            settings = options.read(old, connected=True)
            assert len(settings) > 35
            repair.enter(old)
            assert options.read(old, connected=True) == settings
            repair.leave(old, probe=False)
            state = tcp.capture(old)
            old.close()

            assert state.options == settings
            assert tcp.establish(new, state) == []
            assert tcp.release(new, state) == []
            assert options.read(new, connected=True) == settings


def test_a_fresh_socket_has_no_settings(ends: dict[str, Ends]) -> None:
    for end in ends.values():
        with end.fresh() as sock:
            assert options.read(sock) == ()
            with end.connect(sock):
                assert options.read(sock, connected=True) == ()


def test_a_setting_that_was_taken_back_is_none(ends: dict[str, Ends]) -> None:
    with ends["v4"].fresh() as sock:
        sock.setsockopt(_TCP, socket.TCP_NODELAY, 1)
        assert options.read(sock) == ((BY_NAME["TCP_NODELAY"].number, 1),)
        sock.setsockopt(_TCP, socket.TCP_NODELAY, 0)
        assert options.read(sock) == ()


def test_long_values_that_begin_alike_are_told_apart(ends: dict[str, Ends]) -> None:
    row = BY_NAME["IPV6_DSTOPTS"]
    one = bytes.fromhex("0007") + b"\x01\x3c" + bytes(60)
    other = bytes.fromhex("0007") + b"\x01\x3b" + bytes(59) + b"\x00"
    tail = bytes.fromhex("0009") + b"\x01\x4c" + bytes(76)
    for value in (one, other, tail, one):
        with ends["v6"].fresh() as sock:
            sock.setsockopt(row.level, row.option, value)
            assert options.read(sock) == ((row.number, value),)
    # and filters of any length
    row = BY_NAME["SO_ATTACH_FILTER"]
    for count in (1, 2, 3):
        with ends["v4"].fresh() as sock:
            assert options.apply(sock, [(row.number, _RETURN_ALL * count)], row.when) == []
            assert options.read(sock) == ((row.number, _RETURN_ALL * count),)


def test_priority_is_not_overwritten_by_type_of_service(ends: dict[str, Ends]) -> None:
    with ends["v4"].fresh() as old, ends["v4"].fresh() as new:
        old.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x10)
        old.setsockopt(_SOCKET, socket.SO_PRIORITY, 3)
        settings = options.read(old)
        for when in When:
            assert options.apply(new, settings, when) == []
        assert new.getsockopt(_SOCKET, socket.SO_PRIORITY) == 3
        assert new.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 0x10


def test_what_is_refused_is_reported_by_name_and_value_and_the_rest_is_set() -> None:
    settings = (
        (BY_NAME["SO_BINDTODEVICE"].number, b"nowhere0"),
        (BY_NAME["TCP_CONGESTION"].number, b"nonesuch"),
        (BY_NAME["TCP_NODELAY"].number, 1),
        (BY_NAME["TCP_KEEPCNT"].number, 100_000),
        (BY_NAME["SO_LINGER"].number, b"short"),
        (BY_NAME["SO_PRIORITY"].number, 1 << 40),
        (BY_NAME["IP_UNICAST_IF"].number, b"nowhere0"),
        (BY_NAME["TCP_USER_TIMEOUT"].number, b"text"),
        (BY_NAME["TCP_FASTOPEN_KEY"].number, 1),
        (9999, 1),
    )
    with socket.socket() as sock:
        assert options.apply(sock, settings, When.BEFORE_BIND) == [
            "SO_BINDTODEVICE=nowhere0: no such interface here",
            "IP_UNICAST_IF=nowhere0: no such interface here",
            "option 9999: not known to this version of mycoproxy",
        ]
        assert sorted(options.apply(sock, settings, When.BEFORE_LIVE)) == [
            "SO_LINGER=73686f7274: no value of this option",
            "SO_PRIORITY=1099511627776: no value of this option",
            "TCP_CONGESTION=nonesuch: not available here",
            "TCP_FASTOPEN_KEY=1: no value of this option",
            "TCP_KEEPCNT=100000: Invalid argument",
            "TCP_USER_TIMEOUT=1954047348: no value of this option",
        ]
        assert options.apply(sock, settings, When.LIVE) == []
        assert sock.getsockopt(_TCP, socket.TCP_NODELAY) == 1


def test_what_cannot_be_set_but_is_so_already_is_no_refusal() -> None:
    row = BY_NAME["IPV6_V6ONLY"]
    with socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
        assert options.apply(sock, [(row.number, 1)], row.when) == []
        assert options.apply(sock, [(row.number, 0)], row.when) == [
            "IPV6_V6ONLY=0: Invalid argument"
        ]


def test_an_option_that_this_kernel_does_not_know_is_skipped_when_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    future = Option(9998, "TCP_FROM_THE_FUTURE", _TCP, 9998, Fate.KEPT)
    monkeypatch.setattr(options, "TABLE", (*option_table.TABLE, future))
    monkeypatch.setitem(BY_NUMBER, future.number, future)
    options._reader.cache_clear()
    try:
        with socket.socket() as sock:
            sock.setsockopt(_TCP, socket.TCP_NODELAY, 1)
            assert options.read(sock) == ((BY_NAME["TCP_NODELAY"].number, 1),)
            assert options.apply(sock, [(future.number, 1)], future.when) == [
                "TCP_FROM_THE_FUTURE=1: not known to this kernel"
            ]
    finally:
        options._reader.cache_clear()


@pytest.mark.root
def test_what_a_namespaces_sysctls_say_is_not_the_owners_setting(network: Any) -> None:
    node = network.node("tuned")
    node.sysctl("net.ipv4.tcp_keepalive_time", 111)
    node.sysctl("net.ipv4.ip_default_ttl", 99)
    node.sysctl("net.ipv4.tcp_congestion_control", "reno")
    keep_idle = BY_NAME["TCP_KEEPIDLE"].number
    usual = int(Path("/proc/sys/net/ipv4/tcp_keepalive_time").read_text())
    for family in (socket.AF_INET, socket.AF_INET6):
        with node.call(socket.socket, family) as there, socket.socket(family) as here:
            # From outside and from inside, in this order and the other.
            assert options.read(there) == options.read(here) == ()
            assert node.call(options.read, there) == node.call(options.read, here) == ()
            there.setsockopt(_TCP, socket.TCP_KEEPIDLE, usual)
            here.setsockopt(_TCP, socket.TCP_KEEPIDLE, 111)
            assert options.read(there) == ((keep_idle, usual),)
            assert node.call(options.read, here) == ((keep_idle, 111),)
