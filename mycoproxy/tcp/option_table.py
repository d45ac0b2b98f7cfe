"""Every option that the owner of a TCP socket can set, and what becomes of it in a move.

One table; ``options`` reads and sets by it, ``docs/tcp-options.md`` is written from it. Its order
is the order in which options are set: SO_PRIORITY after IP_TOS, which changes it; a lock after
what it locks; of two options that share one field in the kernel the newer one last.

Not in here is what belongs to the open file and not to the socket (O_NONBLOCK, O_ASYNC and its
owner and signal: CRIU keeps them), and what can only be read.
"""

import socket
import struct
from dataclasses import dataclass
from enum import Enum
from typing import Final

SOL_SOCKET: Final = socket.SOL_SOCKET
IPPROTO_IP: Final = socket.IPPROTO_IP
IPPROTO_TCP: Final = socket.IPPROTO_TCP
IPPROTO_IPV6: Final = socket.IPPROTO_IPV6

LEVEL_NAMES: Final = {
    SOL_SOCKET: "SOL_SOCKET",
    IPPROTO_TCP: "IPPROTO_TCP",
    IPPROTO_IP: "IPPROTO_IP",
    IPPROTO_IPV6: "IPPROTO_IPV6",
}


class Fate(Enum):
    """What a move does with an option."""

    KEPT = "kept"
    """Read from the old socket and set on the new one."""
    RECREATED = "recreated"
    """``capture`` and ``establish`` bring it about in another way."""
    TRANSIENT = "transient"
    """An act, or a state that the kernel changes by itself; there is no setting to keep."""
    LOST = "lost"
    """The kernel gives no way to read it, or what it names means nothing on another node."""
    REFUSED = "refused"
    """A socket with this cannot move, and ``refusal`` says so before anything is touched."""
    IGNORED = "ignored"
    """The kernel accepts it and does nothing with it."""


class When(Enum):
    """The moment at which an option has to be set."""

    BEFORE_BIND = "before bind"
    """bind(2) or connect(2) depend on it: the address, the route, the size of segments."""
    BEFORE_LIVE = "before going live"
    """Once connected in repair mode (or before listen(2)), and before the first packet."""
    LIVE = "live"
    """After repair mode is left: it starts a timer, wakes a reader, or needs a live connection."""


class Special(Enum):
    """Values that are more than a C structure."""

    TEXT = "a name"
    """Bytes without the closing zero."""
    BYTES = "bytes"
    """Of any length, in network order or none."""
    FILTER = "a classic BPF program"
    """An array of ``struct sock_filter``."""
    INTERFACE = "an interface"
    """An index in network byte order to the kernel, a name to us."""


@dataclass(frozen=True, slots=True)
class Option:
    """A row. ``number`` stands for the option on the wire and is never used again (0: not KEPT).

    ``form`` is the value's layout: a ``struct`` format without byte order, or ``Special``. The
    value of a format with one field is an int, everything else is bytes, little-endian.
    ``on_connection``: whether it has an effect on a socket once that is connected.
    ``since`` is the first kernel that knows it, if that is younger than 5.15.
    """

    number: int
    name: str
    level: int
    option: int
    fate: Fate
    form: str | Special = "i"
    when: When = When.BEFORE_LIVE
    on_connection: bool = True
    since: str = ""
    remark: str = ""

    @property
    def families(self) -> tuple[socket.AddressFamily, ...]:
        """The sockets it can be set on. IP_* are for IPv4-mapped addresses in AF_INET6 ones."""
        if self.level == IPPROTO_IPV6:
            return (socket.AF_INET6,)
        return (socket.AF_INET, socket.AF_INET6)

    @property
    def layout(self) -> struct.Struct | None:
        """As the kernel has it, or None for a special value."""
        return struct.Struct("=" + self.form) if isinstance(self.form, str) else None


_BIND, _LATER, _LIVE = When.BEFORE_BIND, When.BEFORE_LIVE, When.LIVE


def _kept(
    number: int,
    name: str,
    level: int,
    option: int,
    when: When = _LATER,
    *,
    remark: str = "",
    form: str | Special = "i",
    since: str = "",
) -> Option:
    return Option(number, name, level, option, Fate.KEPT, form, when, True, since, remark)


def _idle(
    number: int,
    name: str,
    level: int,
    option: int,
    when: When = _LATER,
    *,
    remark: str = "",
    form: str | Special = "i",
    since: str = "",
) -> Option:
    """KEPT, but without effect on a connection."""
    return Option(number, name, level, option, Fate.KEPT, form, when, False, since, remark)


def _other(
    name: str, level: int, option: int, fate: Fate, *, remark: str, since: str = ""
) -> Option:
    return Option(0, name, level, option, fate, since=since, remark=remark)


_COUNTERS = "its counter starts again"
_CONTROL = "TCP delivers no such control message, only {} shows it"
_PKTOPTIONS = _CONTROL.format("IP_PKTOPTIONS")
_PKTOPTIONS6 = _CONTROL.format("IPV6_2292PKTOPTIONS")
_NO_TCP = "no meaning for TCP"

# include/uapi/asm-generic/socket.h
_SOCKET_ROWS: Final = (
    _kept(1, "SO_DONTROUTE", SOL_SOCKET, 5, _BIND),
    _kept(2, "SO_MARK", SOL_SOCKET, 36, _BIND),
    _kept(
        3,
        "SO_BINDTODEVICE",
        SOL_SOCKET,
        25,
        _BIND,
        remark="by name; the target needs an interface of that name",
        form=Special.TEXT,
    ),
    _kept(4, "SO_REUSEPORT", SOL_SOCKET, 15, _BIND),
    _kept(5, "SO_OOBINLINE", SOL_SOCKET, 10),
    _kept(6, "SO_LINGER", SOL_SOCKET, 13, form="ii"),
    _kept(7, "SO_RCVTIMEO", SOL_SOCKET, 66, remark="rounded up to the kernel's ticks", form="qq"),
    _kept(8, "SO_SNDTIMEO", SOL_SOCKET, 67, remark="rounded up to the kernel's ticks", form="qq"),
    _kept(9, "SO_MAX_PACING_RATE", SOL_SOCKET, 47, form="Q"),
    _kept(10, "SO_TXREHASH", SOL_SOCKET, 74, since="5.18"),
    _kept(11, "SO_SELECT_ERR_QUEUE", SOL_SOCKET, 45),
    _kept(12, "SO_BUSY_POLL", SOL_SOCKET, 46),
    _kept(13, "SO_PREFER_BUSY_POLL", SOL_SOCKET, 69),
    _kept(
        14,
        "SO_ATTACH_FILTER",
        SOL_SOCKET,
        26,
        remark="a classic program; for eBPF see SO_ATTACH_BPF",
        form=Special.FILTER,
    ),
    _kept(15, "SO_LOCK_FILTER", SOL_SOCKET, 44),
    _kept(16, "SO_KEEPALIVE", SOL_SOCKET, 9, _LIVE, remark="the time without traffic starts again"),
    _kept(17, "SO_RCVLOWAT", SOL_SOCKET, 18, _LIVE),
    _kept(18, "SO_PEEK_OFF", SOL_SOCKET, 42, _LIVE, remark="for TCP since 6.9"),
    _kept(19, "SO_TIMESTAMP", SOL_SOCKET, 29, _LIVE),
    _kept(20, "SO_TIMESTAMPNS", SOL_SOCKET, 35, _LIVE),
    _kept(21, "SO_TIMESTAMP_NEW", SOL_SOCKET, 63, _LIVE),
    _kept(22, "SO_TIMESTAMPNS_NEW", SOL_SOCKET, 64, _LIVE),
    _kept(23, "SO_TIMESTAMPING", SOL_SOCKET, 37, _LIVE, remark=_COUNTERS, form="ii"),
    _kept(24, "SO_TIMESTAMPING_NEW", SOL_SOCKET, 65, _LIVE, remark=_COUNTERS, form="ii"),
    _kept(
        25,
        "SO_ZEROCOPY",
        SOL_SOCKET,
        60,
        _LIVE,
        remark=f"{_COUNTERS}, and notifications that were not read are lost",
    ),
    _kept(
        26, "SO_RESERVE_MEM", SOL_SOCKET, 73, _LIVE, remark="needs a memory cgroup", since="5.16"
    ),
    _idle(27, "SO_DEBUG", SOL_SOCKET, 1),
    _idle(28, "SO_BROADCAST", SOL_SOCKET, 6, remark=_NO_TCP),
    _idle(29, "SO_NO_CHECK", SOL_SOCKET, 11, remark=_NO_TCP),
    _idle(30, "SO_RXQ_OVFL", SOL_SOCKET, 40, remark=_NO_TCP),
    _idle(31, "SO_WIFI_STATUS", SOL_SOCKET, 41, remark=_NO_TCP),
    _idle(32, "SO_NOFCS", SOL_SOCKET, 43, remark=_NO_TCP),
    _idle(33, "SO_TXTIME", SOL_SOCKET, 61, remark=_NO_TCP, form="iI"),
    _idle(34, "SO_RCVMARK", SOL_SOCKET, 75, remark=_NO_TCP, since="5.19"),
    _idle(35, "SO_RCVPRIORITY", SOL_SOCKET, 82, remark=_NO_TCP, since="6.14"),
    _idle(36, "SO_PASSCRED", SOL_SOCKET, 16, remark="not for TCP any more since 6.16"),
    _idle(37, "SO_PASSSEC", SOL_SOCKET, 34, remark="not for TCP any more since 6.16"),
    _idle(38, "SO_PASSPIDFD", SOL_SOCKET, 76, remark="not for TCP any more since 6.16"),
)

# include/uapi/linux/tcp.h
_TCP_ROWS: Final = (
    _kept(50, "TCP_NODELAY", IPPROTO_TCP, 1),
    _kept(51, "TCP_KEEPIDLE", IPPROTO_TCP, 4),
    _kept(52, "TCP_KEEPINTVL", IPPROTO_TCP, 5),
    _kept(53, "TCP_KEEPCNT", IPPROTO_TCP, 6),
    _kept(54, "TCP_LINGER2", IPPROTO_TCP, 8),
    _kept(
        55,
        "TCP_CONGESTION",
        IPPROTO_TCP,
        13,
        remark="its window and estimates start again; the target's kernel needs the algorithm",
        form=Special.TEXT,
    ),
    _kept(56, "TCP_THIN_LINEAR_TIMEOUTS", IPPROTO_TCP, 16),
    _kept(57, "TCP_USER_TIMEOUT", IPPROTO_TCP, 18),
    _kept(58, "TCP_NOTSENT_LOWAT", IPPROTO_TCP, 25, form="I"),
    _kept(59, "TCP_INQ", IPPROTO_TCP, 36),
    _kept(60, "TCP_TX_DELAY", IPPROTO_TCP, 37),
    _kept(61, "TCP_RTO_MAX_MS", IPPROTO_TCP, 44, since="6.15"),
    _kept(62, "TCP_RTO_MIN_US", IPPROTO_TCP, 45, since="6.15"),
    _kept(63, "TCP_DELACK_MAX_US", IPPROTO_TCP, 46, since="6.15"),
    _kept(64, "TCP_CORK", IPPROTO_TCP, 3, _LIVE),
    _kept(
        65,
        "TCP_QUICKACK",
        IPPROTO_TCP,
        12,
        _LIVE,
        remark="reads as whether acknowledgements are delayed at the moment; the kernel changes it",
    ),
    _idle(66, "TCP_SYNCNT", IPPROTO_TCP, 7, _BIND),
    _idle(
        67,
        "TCP_DEFER_ACCEPT",
        IPPROTO_TCP,
        9,
        remark="reads as what its number of retransmissions takes, and is stable from there on",
    ),
    _idle(68, "TCP_SAVE_SYN", IPPROTO_TCP, 27, remark="a SYN that was saved already is lost"),
    _idle(69, "TCP_FASTOPEN", IPPROTO_TCP, 23),
    _idle(70, "TCP_FASTOPEN_KEY", IPPROTO_TCP, 33, form=Special.BYTES),
    _idle(71, "TCP_FASTOPEN_NO_COOKIE", IPPROTO_TCP, 34),
    _idle(72, "TCP_FASTOPEN_CONNECT", IPPROTO_TCP, 30),
)

# include/uapi/linux/in.h
_IP_ROWS: Final = (
    _kept(100, "IP_TRANSPARENT", IPPROTO_IP, 19, _BIND),
    _kept(101, "IP_FREEBIND", IPPROTO_IP, 15, _BIND),
    _kept(
        102, "IP_TOS", IPPROTO_IP, 1, _BIND, remark="without the two bits of ECN, which TCP owns"
    ),
    _kept(103, "IP_MTU_DISCOVER", IPPROTO_IP, 10, _BIND),
    _kept(104, "IP_OPTIONS", IPPROTO_IP, 4, _BIND, form=Special.BYTES),
    _kept(105, "IP_TTL", IPPROTO_IP, 2),
    _kept(106, "IP_MINTTL", IPPROTO_IP, 21),
    _kept(107, "IP_RECVERR", IPPROTO_IP, 11, remark="errors that were not read are lost"),
    _idle(108, "IP_BIND_ADDRESS_NO_PORT", IPPROTO_IP, 24, _BIND),
    _idle(109, "IP_LOCAL_PORT_RANGE", IPPROTO_IP, 51, _BIND, form="I", since="6.3"),
    _idle(110, "IP_UNICAST_IF", IPPROTO_IP, 50, _BIND, form=Special.INTERFACE),
    _idle(111, "IP_RECVERR_RFC4884", IPPROTO_IP, 26, remark=_NO_TCP),
    _idle(112, "IP_PKTINFO", IPPROTO_IP, 8, remark=_PKTOPTIONS),
    _idle(113, "IP_RECVTTL", IPPROTO_IP, 12, remark=_PKTOPTIONS),
    _idle(114, "IP_RECVTOS", IPPROTO_IP, 13, remark=_PKTOPTIONS),
    _idle(115, "IP_RECVOPTS", IPPROTO_IP, 6, remark=_NO_TCP),
    _idle(116, "IP_RETOPTS", IPPROTO_IP, 7, remark=_NO_TCP),
    _idle(117, "IP_PASSSEC", IPPROTO_IP, 18, remark=_NO_TCP),
    _idle(118, "IP_RECVORIGDSTADDR", IPPROTO_IP, 20, remark=_NO_TCP),
    _idle(119, "IP_CHECKSUM", IPPROTO_IP, 23, remark=_NO_TCP),
    _idle(120, "IP_MULTICAST_LOOP", IPPROTO_IP, 34, remark=_NO_TCP),
    _idle(121, "IP_MULTICAST_ALL", IPPROTO_IP, 49, remark=_NO_TCP),
)

# include/uapi/linux/in6.h
_IPV6_ROWS: Final = (
    _kept(150, "IPV6_TRANSPARENT", IPPROTO_IPV6, 75, _BIND),
    _kept(151, "IPV6_FREEBIND", IPPROTO_IPV6, 78, _BIND),
    _kept(152, "IPV6_TCLASS", IPPROTO_IPV6, 67, _BIND, remark="without the two bits of ECN"),
    _kept(153, "IPV6_MTU_DISCOVER", IPPROTO_IPV6, 23, _BIND),
    _kept(154, "IPV6_HOPOPTS", IPPROTO_IPV6, 54, _BIND, form=Special.BYTES),
    _kept(155, "IPV6_RTHDRDSTOPTS", IPPROTO_IPV6, 55, _BIND, form=Special.BYTES),
    _kept(156, "IPV6_RTHDR", IPPROTO_IPV6, 57, _BIND, form=Special.BYTES),
    _kept(157, "IPV6_DSTOPTS", IPPROTO_IPV6, 59, _BIND, form=Special.BYTES),
    _kept(158, "IPV6_UNICAST_HOPS", IPPROTO_IPV6, 16),
    _kept(159, "IPV6_MINHOPCOUNT", IPPROTO_IPV6, 73),
    _kept(160, "IPV6_DONTFRAG", IPPROTO_IPV6, 62),
    _kept(161, "IPV6_AUTOFLOWLABEL", IPPROTO_IPV6, 70),
    _kept(162, "IPV6_FLOWINFO_SEND", IPPROTO_IPV6, 33),
    _kept(163, "IPV6_RECVERR", IPPROTO_IPV6, 25, remark="errors that were not read are lost"),
    _idle(
        164, "IPV6_V6ONLY", IPPROTO_IPV6, 26, _BIND, remark="bind to an IPv6 address sets it too"
    ),
    _idle(165, "IPV6_ADDR_PREFERENCES", IPPROTO_IPV6, 72, _BIND),
    _idle(166, "IPV6_UNICAST_IF", IPPROTO_IPV6, 76, _BIND, form=Special.INTERFACE),
    _idle(167, "IPV6_RECVERR_RFC4884", IPPROTO_IPV6, 31, remark=_NO_TCP),
    _idle(168, "IPV6_RECVPKTINFO", IPPROTO_IPV6, 49, remark=_PKTOPTIONS6),
    _idle(169, "IPV6_RECVHOPLIMIT", IPPROTO_IPV6, 51, remark=_PKTOPTIONS6),
    _idle(170, "IPV6_RECVTCLASS", IPPROTO_IPV6, 66, remark=_PKTOPTIONS6),
    _idle(171, "IPV6_FLOWINFO", IPPROTO_IPV6, 11, remark=_PKTOPTIONS6),
    _idle(172, "IPV6_2292PKTINFO", IPPROTO_IPV6, 2, remark=_PKTOPTIONS6),
    _idle(173, "IPV6_2292HOPLIMIT", IPPROTO_IPV6, 8, remark=_PKTOPTIONS6),
    _idle(174, "IPV6_RECVHOPOPTS", IPPROTO_IPV6, 53, remark=_NO_TCP),
    _idle(175, "IPV6_RECVRTHDR", IPPROTO_IPV6, 56, remark=_NO_TCP),
    _idle(176, "IPV6_RECVDSTOPTS", IPPROTO_IPV6, 58, remark=_NO_TCP),
    _idle(177, "IPV6_2292HOPOPTS", IPPROTO_IPV6, 3, remark=_NO_TCP),
    _idle(178, "IPV6_2292DSTOPTS", IPPROTO_IPV6, 4, remark=_NO_TCP),
    _idle(179, "IPV6_2292RTHDR", IPPROTO_IPV6, 5, remark=_NO_TCP),
    _idle(180, "IPV6_RECVPATHMTU", IPPROTO_IPV6, 60, remark=_NO_TCP),
    _idle(181, "IPV6_RECVORIGDSTADDR", IPPROTO_IPV6, 74, remark=_NO_TCP),
    _idle(182, "IPV6_RECVFRAGSIZE", IPPROTO_IPV6, 77, remark=_NO_TCP),
    _idle(183, "IPV6_MULTICAST_LOOP", IPPROTO_IPV6, 19, remark=_NO_TCP),
    _idle(184, "IPV6_MULTICAST_ALL", IPPROTO_IPV6, 29, remark=_NO_TCP),
)

# IP_TOS sets it too.
_AFTER_IP_TOS: Final = (_kept(39, "SO_PRIORITY", SOL_SOCKET, 12),)

_BUFFERS = "by size and whether it is auto-tuned, above the sysctl's limit too"
_REPAIR = "the mover's own tool; leaving repair mode ends it"
_MEMBERSHIP = "refused for TCP by the kernel, or no meaning for TCP"
_NOT_KEPT: Final = (
    _other("SO_REUSEADDR", SOL_SOCKET, 2, Fate.RECREATED, remark="repair mode overwrites it"),
    _other("SO_SNDBUF", SOL_SOCKET, 7, Fate.RECREATED, remark=_BUFFERS),
    _other("SO_RCVBUF", SOL_SOCKET, 8, Fate.RECREATED, remark=_BUFFERS),
    _other("SO_SNDBUFFORCE", SOL_SOCKET, 32, Fate.RECREATED, remark="as SO_SNDBUF"),
    _other("SO_RCVBUFFORCE", SOL_SOCKET, 33, Fate.RECREATED, remark="as SO_RCVBUF"),
    _other("SO_BUF_LOCK", SOL_SOCKET, 72, Fate.RECREATED, remark="with the buffers"),
    _other("SO_BINDTOIFINDEX", SOL_SOCKET, 62, Fate.RECREATED, remark="as SO_BINDTODEVICE"),
    _other("TCP_MAXSEG", IPPROTO_TCP, 2, Fate.RECREATED, remark="as what was negotiated with it"),
    _other("TCP_WINDOW_CLAMP", IPPROTO_TCP, 10, Fate.RECREATED, remark="with the window"),
    _other("SO_INCOMING_CPU", SOL_SOCKET, 49, Fate.TRANSIENT, remark="each packet sets it"),
    _other("SO_CNX_ADVICE", SOL_SOCKET, 53, Fate.TRANSIENT, remark="an act: look for another path"),
    _other("SO_DEVMEM_DONTNEED", SOL_SOCKET, 80, Fate.TRANSIENT, remark="an act: give memory back"),
    _other("TCP_REPAIR", IPPROTO_TCP, 19, Fate.TRANSIENT, remark=_REPAIR),
    _other("TCP_REPAIR_QUEUE", IPPROTO_TCP, 20, Fate.TRANSIENT, remark=_REPAIR),
    _other("TCP_QUEUE_SEQ", IPPROTO_TCP, 21, Fate.TRANSIENT, remark=_REPAIR),
    _other("TCP_REPAIR_OPTIONS", IPPROTO_TCP, 22, Fate.TRANSIENT, remark=_REPAIR),
    _other("TCP_REPAIR_WINDOW", IPPROTO_TCP, 29, Fate.TRANSIENT, remark=_REPAIR),
    _other("TCP_TIMESTAMP", IPPROTO_TCP, 24, Fate.TRANSIENT, remark=_REPAIR),
    _other(
        "IPV6_ADDRFORM", IPPROTO_IPV6, 1, Fate.TRANSIENT, remark="an act: becomes an IPv4 socket"
    ),
    _other("SO_BUSY_POLL_BUDGET", SOL_SOCKET, 70, Fate.LOST, remark="cannot be read"),
    _other(
        "SO_ATTACH_REUSEPORT_CBPF",
        SOL_SOCKET,
        51,
        Fate.LOST,
        remark="listeners' choice; cannot be read",
    ),
    _other(
        "SO_ATTACH_REUSEPORT_EBPF",
        SOL_SOCKET,
        52,
        Fate.LOST,
        remark="listeners' choice; cannot be read",
    ),
    _other("IP_IPSEC_POLICY", IPPROTO_IP, 16, Fate.LOST, remark="cannot be read"),
    _other("IP_XFRM_POLICY", IPPROTO_IP, 17, Fate.LOST, remark="cannot be read"),
    _other("IPV6_IPSEC_POLICY", IPPROTO_IPV6, 34, Fate.LOST, remark="cannot be read"),
    _other("IPV6_XFRM_POLICY", IPPROTO_IPV6, 35, Fate.LOST, remark="cannot be read"),
    _other(
        "IPV6_MTU", IPPROTO_IPV6, 24, Fate.LOST, remark="reads as the path's, not as what was set"
    ),
    _other(
        "IPV6_PKTINFO", IPPROTO_IPV6, 50, Fate.LOST, remark="cannot be read; the address is bound"
    ),
    _other(
        "IPV6_FLOWLABEL_MGR",
        IPPROTO_IPV6,
        32,
        Fate.LOST,
        remark="a lease in the old network namespace; the kernel chooses another label",
    ),
    _other("IPV6_MULTICAST_IF", IPPROTO_IPV6, 17, Fate.LOST, remark=_NO_TCP),
    _other("IPV6_JOIN_ANYCAST", IPPROTO_IPV6, 27, Fate.LOST, remark=_MEMBERSHIP),
    _other(
        "TCP_ULP", IPPROTO_TCP, 31, Fate.REFUSED, remark="kTLS and its like: state in the kernel"
    ),
    _other(
        "TCP_MD5SIG",
        IPPROTO_TCP,
        14,
        Fate.REFUSED,
        remark="its key is a secret of two hosts, and stays",
    ),
    _other("TCP_MD5SIG_EXT", IPPROTO_TCP, 32, Fate.REFUSED, remark="as TCP_MD5SIG"),
    _other(
        "TCP_AO_ADD_KEY", IPPROTO_TCP, 38, Fate.REFUSED, remark="keys cannot be read", since="6.7"
    ),
    _other("TCP_AO_INFO", IPPROTO_TCP, 40, Fate.REFUSED, remark="as TCP_AO_ADD_KEY", since="6.7"),
    _other("TCP_AO_REPAIR", IPPROTO_TCP, 42, Fate.REFUSED, remark="as TCP_AO_ADD_KEY", since="6.7"),
    _other("SO_ATTACH_BPF", SOL_SOCKET, 50, Fate.REFUSED, remark="an eBPF filter cannot be read"),
    _other("SO_BSDCOMPAT", SOL_SOCKET, 14, Fate.IGNORED, remark=""),
    _other("TCP_THIN_DUPACK", IPPROTO_TCP, 17, Fate.IGNORED, remark=""),
)

TABLE: Final = (*_SOCKET_ROWS, *_TCP_ROWS, *_IP_ROWS, *_IPV6_ROWS, *_AFTER_IP_TOS, *_NOT_KEPT)
BY_NUMBER: Final = {row.number: row for row in TABLE if row.number}
BY_NAME: Final = {row.name: row for row in TABLE}
