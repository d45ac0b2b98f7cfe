"""The kernel's ABI for TCP_REPAIR: numbers and struct layouts, each with its header of origin.

Python's ``socket`` module has most TCP options, but none of the repair ones. Everything here is
the same on every architecture whose byte order is native to ``struct``.
"""

import struct
from enum import IntEnum
from typing import Final

# include/uapi/linux/tcp.h
TCP_MAXSEG: Final = 2
TCP_WINDOW_CLAMP: Final = 10
TCP_INFO: Final = 11
TCP_REPAIR: Final = 19
TCP_REPAIR_QUEUE: Final = 20
TCP_QUEUE_SEQ: Final = 21
TCP_REPAIR_OPTIONS: Final = 22
TCP_TIMESTAMP: Final = 24
TCP_NOTSENT_LOWAT: Final = 25
TCP_REPAIR_WINDOW: Final = 29

TCP_REPAIR_ON: Final = 1
TCP_REPAIR_OFF: Final = 0
TCP_REPAIR_OFF_NO_WP: Final = -1  # without a window probe

TCP_NO_QUEUE: Final = 0
TCP_RECV_QUEUE: Final = 1
TCP_SEND_QUEUE: Final = 2

# struct tcp_repair_window: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup
REPAIR_WINDOW: Final = struct.Struct("=5I")
# struct tcp_repair_opt: opt_code, opt_val
REPAIR_OPT: Final = struct.Struct("=II")
# struct tcp_info, its first eight bytes: state, ca_state, retransmits, probes, backoff, options,
# snd_wscale:4 rcv_wscale:4, flags. Bit fields start at the low bit on little-endian machines.
INFO_HEAD: Final = struct.Struct("=8B")
# The same, and tcpi_rtt (microseconds), with what is between them left out.
INFO_ROUND_TRIP: Final = struct.Struct("=8B60xI")
# tcpi_unacked of a listening socket is the length of its accept queue, tcpi_sacked its limit.
INFO_UNACKED_OFFSET: Final = 24
INFO_COUNTS: Final = struct.Struct("=II")

U32: Final = struct.Struct("=I")

# include/uapi/asm-generic/socket.h
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33
SO_PEEK_OFF: Final = 42
SO_MEMINFO: Final = 55
SO_BUF_LOCK: Final = 72  # Linux 5.14

IPPROTO_MPTCP: Final = 262  # include/uapi/linux/in.h

# The first of SO_MEMINFO's numbers (SK_MEMINFO_*, include/uapi/linux/sock_diag.h): received bytes
# with their overhead, SO_RCVBUF, bytes under way, SO_SNDBUF.
MEMINFO_HEAD: Final = struct.Struct("=4I")

# include/uapi/linux/sockios.h
SIOCINQ: Final = 0x541B
SIOCOUTQ: Final = 0x5411
SIOCOUTQNSD: Final = 0x894B

# include/net/tcp.h: the options as they are numbered in a TCP header
TCPOPT_MSS: Final = 2
TCPOPT_WINDOW: Final = 3
TCPOPT_SACK_PERM: Final = 4
TCPOPT_TIMESTAMP: Final = 8

TCP_MAX_WSCALE: Final = 14


# tcpi_options (include/uapi/linux/tcp.h). Plain numbers: operators of IntFlag take a microsecond.
TCPI_OPT_TIMESTAMPS: Final = 1
TCPI_OPT_SACK: Final = 2
TCPI_OPT_WSCALE: Final = 4
TCPI_OPT_ECN: Final = 8
TCPI_OPT_USEC_TS: Final = 64  # Linux 6.7


class TcpConnectionState(IntEnum):
    """The state of a TCP socket (include/net/tcp_states.h)."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11
    NEW_SYN_RECV = 12
