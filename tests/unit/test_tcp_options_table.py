"""The table of socket options: numbers are for ever, rows are complete and consistent."""

import socket
import struct

from mycoproxy.tcp import options
from mycoproxy.tcp.option_table import BY_NUMBER, TABLE, Fate, Special, When

# What is on the wire. A row may be added; a number is never changed, and never given away again.
FROZEN = {
    1: "SO_DONTROUTE",
    2: "SO_MARK",
    3: "SO_BINDTODEVICE",
    4: "SO_REUSEPORT",
    5: "SO_OOBINLINE",
    6: "SO_LINGER",
    7: "SO_RCVTIMEO",
    8: "SO_SNDTIMEO",
    9: "SO_MAX_PACING_RATE",
    10: "SO_TXREHASH",
    11: "SO_SELECT_ERR_QUEUE",
    12: "SO_BUSY_POLL",
    13: "SO_PREFER_BUSY_POLL",
    14: "SO_ATTACH_FILTER",
    15: "SO_LOCK_FILTER",
    16: "SO_KEEPALIVE",
    17: "SO_RCVLOWAT",
    18: "SO_PEEK_OFF",
    19: "SO_TIMESTAMP",
    20: "SO_TIMESTAMPNS",
    21: "SO_TIMESTAMP_NEW",
    22: "SO_TIMESTAMPNS_NEW",
    23: "SO_TIMESTAMPING",
    24: "SO_TIMESTAMPING_NEW",
    25: "SO_ZEROCOPY",
    26: "SO_RESERVE_MEM",
    27: "SO_DEBUG",
    28: "SO_BROADCAST",
    29: "SO_NO_CHECK",
    30: "SO_RXQ_OVFL",
    31: "SO_WIFI_STATUS",
    32: "SO_NOFCS",
    33: "SO_TXTIME",
    34: "SO_RCVMARK",
    35: "SO_RCVPRIORITY",
    36: "SO_PASSCRED",
    37: "SO_PASSSEC",
    38: "SO_PASSPIDFD",
    39: "SO_PRIORITY",
    50: "TCP_NODELAY",
    51: "TCP_KEEPIDLE",
    52: "TCP_KEEPINTVL",
    53: "TCP_KEEPCNT",
    54: "TCP_LINGER2",
    55: "TCP_CONGESTION",
    56: "TCP_THIN_LINEAR_TIMEOUTS",
    57: "TCP_USER_TIMEOUT",
    58: "TCP_NOTSENT_LOWAT",
    59: "TCP_INQ",
    60: "TCP_TX_DELAY",
    61: "TCP_RTO_MAX_MS",
    62: "TCP_RTO_MIN_US",
    63: "TCP_DELACK_MAX_US",
    64: "TCP_CORK",
    65: "TCP_QUICKACK",
    66: "TCP_SYNCNT",
    67: "TCP_DEFER_ACCEPT",
    68: "TCP_SAVE_SYN",
    69: "TCP_FASTOPEN",
    70: "TCP_FASTOPEN_KEY",
    71: "TCP_FASTOPEN_NO_COOKIE",
    72: "TCP_FASTOPEN_CONNECT",
    100: "IP_TRANSPARENT",
    101: "IP_FREEBIND",
    102: "IP_TOS",
    103: "IP_MTU_DISCOVER",
    104: "IP_OPTIONS",
    105: "IP_TTL",
    106: "IP_MINTTL",
    107: "IP_RECVERR",
    108: "IP_BIND_ADDRESS_NO_PORT",
    109: "IP_LOCAL_PORT_RANGE",
    110: "IP_UNICAST_IF",
    111: "IP_RECVERR_RFC4884",
    112: "IP_PKTINFO",
    113: "IP_RECVTTL",
    114: "IP_RECVTOS",
    115: "IP_RECVOPTS",
    116: "IP_RETOPTS",
    117: "IP_PASSSEC",
    118: "IP_RECVORIGDSTADDR",
    119: "IP_CHECKSUM",
    120: "IP_MULTICAST_LOOP",
    121: "IP_MULTICAST_ALL",
    150: "IPV6_TRANSPARENT",
    151: "IPV6_FREEBIND",
    152: "IPV6_TCLASS",
    153: "IPV6_MTU_DISCOVER",
    154: "IPV6_HOPOPTS",
    155: "IPV6_RTHDRDSTOPTS",
    156: "IPV6_RTHDR",
    157: "IPV6_DSTOPTS",
    158: "IPV6_UNICAST_HOPS",
    159: "IPV6_MINHOPCOUNT",
    160: "IPV6_DONTFRAG",
    161: "IPV6_AUTOFLOWLABEL",
    162: "IPV6_FLOWINFO_SEND",
    163: "IPV6_RECVERR",
    164: "IPV6_V6ONLY",
    165: "IPV6_ADDR_PREFERENCES",
    166: "IPV6_UNICAST_IF",
    167: "IPV6_RECVERR_RFC4884",
    168: "IPV6_RECVPKTINFO",
    169: "IPV6_RECVHOPLIMIT",
    170: "IPV6_RECVTCLASS",
    171: "IPV6_FLOWINFO",
    172: "IPV6_2292PKTINFO",
    173: "IPV6_2292HOPLIMIT",
    174: "IPV6_RECVHOPOPTS",
    175: "IPV6_RECVRTHDR",
    176: "IPV6_RECVDSTOPTS",
    177: "IPV6_2292HOPOPTS",
    178: "IPV6_2292DSTOPTS",
    179: "IPV6_2292RTHDR",
    180: "IPV6_RECVPATHMTU",
    181: "IPV6_RECVORIGDSTADDR",
    182: "IPV6_RECVFRAGSIZE",
    183: "IPV6_MULTICAST_LOOP",
    184: "IPV6_MULTICAST_ALL",
}


def test_numbers_are_what_they_always_were() -> None:
    assert {number: row.name for number, row in BY_NUMBER.items()} == FROZEN


def test_numbers_names_and_options_are_unique() -> None:
    kept = [row for row in TABLE if row.fate is Fate.KEPT]
    assert len(BY_NUMBER) == len(kept)
    assert len({row.name for row in TABLE}) == len(TABLE)
    assert len({(row.level, row.option) for row in TABLE}) == len(TABLE)


def test_only_what_is_kept_has_a_number() -> None:
    assert all((row.fate is Fate.KEPT) == (row.number > 0) for row in TABLE)


def test_what_is_not_kept_says_why() -> None:
    for row in TABLE:
        assert row.remark or row.fate in (Fate.KEPT, Fate.IGNORED), row.name


def test_option_numbers_are_those_of_the_socket_module() -> None:
    for row in TABLE:
        known = getattr(socket, row.name, row.option)
        # The module has the forms with a 32-bit clock.
        if row.name not in ("SO_RCVTIMEO", "SO_SNDTIMEO"):
            assert known == row.option, row.name


def test_forms_can_be_packed() -> None:
    for row in TABLE:
        if isinstance(row.form, Special):
            assert row.layout is None
        else:
            assert row.layout is not None
            assert row.layout.size == struct.calcsize(f"<{row.form}"), row.name


def test_options_of_ipv6_are_for_ipv6_sockets_only() -> None:
    for row in TABLE:
        assert (socket.AF_INET in row.families) == (not row.name.startswith("IPV6_")), row.name


def test_what_changes_another_option_is_set_before_it() -> None:
    moments = list(When)
    place = {row.name: (moments.index(row.when), index) for index, row in enumerate(TABLE)}
    for first, then in (
        ("IP_TOS", "SO_PRIORITY"),
        ("SO_ATTACH_FILTER", "SO_LOCK_FILTER"),
        ("SO_TIMESTAMPING", "SO_TIMESTAMPING_NEW"),
        ("TCP_KEEPIDLE", "SO_KEEPALIVE"),
    ):
        assert place[first] < place[then]


def test_every_option_is_described() -> None:
    described = options.describe()
    assert [row.name for row in described] == [row.name for row in TABLE]
    assert {row.when for row in described if row.fate is Fate.KEPT} == {when.value for when in When}
