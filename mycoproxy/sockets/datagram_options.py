"""The options of a UDP socket that CRIU does not restore: read from one socket, set on another.

CRIU 4.2 restores IP_PKTINFO, IP_TOS, IP_TTL and IP_FREEBIND of IPv4 sockets, and IPV6_RECVPKTINFO.
Not the others: without IP_RECVERR, SO_TIMESTAMP or UDP_GRO a server that asked for them goes on
deaf on one ear. All are looked at, for what CRIU does is up to its version.
"""

import socket
import struct
from collections.abc import Mapping
from typing import Final

Options = Mapping[str, int]

_SOL_UDP: Final = 17  # include/linux/socket.h

# (level, number) by name; all are an int. Only for the level that the socket's family has.
_OPTIONS: Final = {
    # include/uapi/asm-generic/socket.h
    "SO_NO_CHECK": (socket.SOL_SOCKET, 11),
    "SO_TIMESTAMP": (socket.SOL_SOCKET, 29),
    "SO_TIMESTAMPNS": (socket.SOL_SOCKET, 35),
    "SO_RXQ_OVFL": (socket.SOL_SOCKET, 40),
    # include/uapi/linux/in.h
    "IP_TOS": (socket.IPPROTO_IP, 1),
    "IP_TTL": (socket.IPPROTO_IP, 2),
    "IP_RECVOPTS": (socket.IPPROTO_IP, 6),
    "IP_PKTINFO": (socket.IPPROTO_IP, 8),
    "IP_MTU_DISCOVER": (socket.IPPROTO_IP, 10),
    "IP_RECVERR": (socket.IPPROTO_IP, 11),
    "IP_RECVTTL": (socket.IPPROTO_IP, 12),
    "IP_RECVTOS": (socket.IPPROTO_IP, 13),
    "IP_FREEBIND": (socket.IPPROTO_IP, 15),
    "IP_TRANSPARENT": (socket.IPPROTO_IP, 19),
    "IP_RECVORIGDSTADDR": (socket.IPPROTO_IP, 20),
    "IP_MINTTL": (socket.IPPROTO_IP, 21),
    "IP_RECVFRAGSIZE": (socket.IPPROTO_IP, 25),
    "IP_MULTICAST_TTL": (socket.IPPROTO_IP, 33),
    "IP_MULTICAST_LOOP": (socket.IPPROTO_IP, 34),
    "IP_MULTICAST_ALL": (socket.IPPROTO_IP, 49),
    # include/uapi/linux/in6.h
    "IPV6_UNICAST_HOPS": (socket.IPPROTO_IPV6, 16),
    "IPV6_MULTICAST_HOPS": (socket.IPPROTO_IPV6, 18),
    "IPV6_MULTICAST_LOOP": (socket.IPPROTO_IPV6, 19),
    "IPV6_MTU_DISCOVER": (socket.IPPROTO_IPV6, 23),
    "IPV6_RECVERR": (socket.IPPROTO_IPV6, 25),
    "IPV6_RECVPKTINFO": (socket.IPPROTO_IPV6, 49),
    "IPV6_RECVHOPLIMIT": (socket.IPPROTO_IPV6, 51),
    "IPV6_DONTFRAG": (socket.IPPROTO_IPV6, 62),
    "IPV6_RECVTCLASS": (socket.IPPROTO_IPV6, 66),
    "IPV6_TCLASS": (socket.IPPROTO_IPV6, 67),
    "IPV6_AUTOFLOWLABEL": (socket.IPPROTO_IPV6, 70),
    "IPV6_RECVORIGDSTADDR": (socket.IPPROTO_IPV6, 74),
    "IPV6_RECVFRAGSIZE": (socket.IPPROTO_IPV6, 77),
    # include/uapi/linux/udp.h
    "UDP_ENCAP": (_SOL_UDP, 100),
    "UDP_NO_CHECK6_TX": (_SOL_UDP, 101),
    "UDP_NO_CHECK6_RX": (_SOL_UDP, 102),
    "UDP_SEGMENT": (_SOL_UDP, 103),
    "UDP_GRO": (_SOL_UDP, 104),
}


def read_options(sock: socket.socket) -> dict[str, int]:
    """Those that this kernel has for this socket."""
    found = {}
    for name, option in _OPTIONS.items():
        value = _read(sock, option)
        if value is not None:
            found[name] = value
    return found


def set_options(sock: socket.socket, wanted: Options) -> list[str]:
    """Make the socket's options what is wanted. Returns the names of those that cannot be set."""
    refused = []
    for name, value in wanted.items():
        option = _OPTIONS.get(name)
        if option is None:
            refused.append(name)
        elif _read(sock, option) != value:
            try:
                sock.setsockopt(*option, value)
            except OSError:
                refused.append(name)
    return refused


def _read(sock: socket.socket, option: tuple[int, int]) -> int | None:
    level, _ = option
    if level == socket.IPPROTO_IPV6 and sock.family != socket.AF_INET6:
        return None
    try:
        data = sock.getsockopt(*option, 4)
    except OSError:
        return None
    return int.from_bytes(data, "little") if len(data) < 4 else int(struct.unpack("=i", data)[0])
