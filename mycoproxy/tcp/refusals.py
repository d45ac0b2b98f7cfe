"""What makes a TCP socket impossible to move, found out before anything is touched.

In the kernel such a socket has state that nobody can read, or put back. What cannot be seen from
outside at all: keys of TCP_MD5SIG on a socket that is neither connected nor listening.
"""

import errno
import socket
import struct
from typing import Final

from mycoproxy.tcp import abi, batch
from mycoproxy.tcp.abi import TcpConnectionState
from mycoproxy.tcp.signatures import SignatureLookup

_IPPROTO_SMC: Final = 256  # include/uapi/linux/in.h
_IPPROTO_MPTCP: Final = 262
_AF_SMC: Final = 43  # include/linux/socket.h
_SO_GET_FILTER: Final = 26  # include/uapi/asm-generic/socket.h
# include/uapi/linux/tcp.h
_TCP_FASTOPEN_CONNECT: Final = 30
_TCP_ULP: Final = 31
_TCP_AO_INFO: Final = 40
_TCP_AO_INFO_SIZE: Final = 48  # struct tcp_ao_info_opt
_TCP_ULP_NAME_SIZE: Final = 16
_INFO_SIZE: Final = 160  # struct tcp_info, up to tcpi_data_segs_out
_INFO_UNACKED: Final = 24
_INFO_DATA_SEGS_OUT: Final = 156
_SO_MEMINFO: Final = 55  # include/uapi/asm-generic/socket.h
_MEMINFO: Final = struct.Struct("=9I")
_OPTION_MEMORY: Final = 6  # SK_MEMINFO_OPTMEM, include/uapi/linux/sock_diag.h

_PROGRAM: Final = batch.Program(
    [
        batch.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN, must=True),
        batch.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL, must=True),
        batch.getsockopt(socket.IPPROTO_TCP, _TCP_ULP, _TCP_ULP_NAME_SIZE),
        batch.getsockopt(socket.IPPROTO_TCP, _TCP_AO_INFO, _TCP_AO_INFO_SIZE),
        batch.getsockopt(socket.SOL_SOCKET, _SO_GET_FILTER, 0),
        batch.getsockopt(socket.IPPROTO_TCP, _TCP_FASTOPEN_CONNECT),
        # From here on answers are another for each socket.
        batch.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size, must=True),
        batch.getsockopt(socket.IPPROTO_TCP, abi.TCP_INFO, _INFO_SIZE),
    ]
)
_DOMAIN, _PROTOCOL, _ULP, _AO, _FILTER, _FASTOPEN_CONNECT, _MEMORY, _INFO = range(8)
_COMMON: Final = slice(0, _PROGRAM.offsets[_MEMORY])
_harmless: Final[set[bytes]] = set()
_MOST_REMEMBERED: Final = 64


def refusal(sock: socket.socket, signatures: SignatureLookup | None = None) -> str | None:
    """Why ``sock`` cannot be moved, or None if nothing is in the way.

    ``signatures``, made in the socket's network namespace, saves making one for this call.
    Raises ``OSError``.
    """
    answer = _PROGRAM.run(sock.fileno())
    return _harm(answer) or _fast_open(answer) or _signed(sock, answer, signatures)


def _harm(answer: bytes) -> str | None:
    common = answer[_COMMON]
    if common in _harmless:  # thousands of sockets answer the same
        return None
    reason = _not_tcp(answer) or _upper_layer(answer) or _unreadable(answer)
    if reason is None and len(_harmless) < _MOST_REMEMBERED:
        _harmless.add(common)
    return reason


def _upper_layer(answer: bytes) -> str | None:
    ulp = _PROGRAM.output(answer, _ULP).rstrip(b"\0").decode(errors="replace")
    if not ulp:
        return None
    kind = "kernel TLS" if ulp == "tls" else "an upper layer protocol in the kernel"
    return f"it uses {kind} (TCP_ULP={ulp})"


def _unreadable(answer: bytes) -> str | None:
    if _PROGRAM.result(answer, _AO) == 0:
        return "it uses the TCP Authentication Option (TCP-AO)"
    if _PROGRAM.result(answer, _FILTER) == -errno.EACCES:
        return "it has an eBPF filter (SO_ATTACH_BPF), which cannot be read"
    return None


def _signed(sock: socket.socket, answer: bytes, signatures: SignatureLookup | None) -> str | None:
    # Keys are charged to this (sock_kmalloc), and looking for them takes longer than all the rest.
    memory = _MEMINFO.unpack_from(answer, _PROGRAM.offsets[_MEMORY])[_OPTION_MEMORY]
    signed = memory and _is_signed(sock, signatures)
    return "its segments are signed (TCP_MD5SIG)" if signed else None


def _is_signed(sock: socket.socket, signatures: SignatureLookup | None) -> bool:
    if signatures is not None:
        return signatures.signed(sock)
    with SignatureLookup(sock) as lookup:
        return lookup.signed(sock)


def _not_tcp(answer: bytes) -> str | None:
    domain, protocol = (
        struct.unpack("=i", _PROGRAM.output(answer, index))[0] for index in (_DOMAIN, _PROTOCOL)
    )
    if protocol == _IPPROTO_MPTCP:
        return "it is a Multipath TCP socket"
    if domain == _AF_SMC or protocol == _IPPROTO_SMC:
        return "it is an SMC socket"
    if domain not in (socket.AF_INET, socket.AF_INET6) or protocol != socket.IPPROTO_TCP:
        return f"it is not a TCP socket (family {domain}, protocol {protocol})"
    return None


def _fast_open(answer: bytes) -> str | None:
    """A handshake under way that carries data, or waits for some (RFC 7413)."""
    state = answer[_PROGRAM.offsets[_INFO]]
    if state not in (TcpConnectionState.SYN_RECV, TcpConnectionState.SYN_SENT):
        return None
    info = _PROGRAM.output(answer, _INFO)
    if state == TcpConnectionState.SYN_RECV:
        return "it was accepted by TCP Fast Open, and its handshake is not complete"
    unacked = abi.U32.unpack_from(info, _INFO_UNACKED)[0]
    if abi.U32.unpack_from(info, _INFO_DATA_SEGS_OUT)[0]:
        return "it sent data with its SYN (TCP Fast Open), and has no answer yet"
    if any(_PROGRAM.output(answer, _FASTOPEN_CONNECT)) and not unacked:
        return "it waits for data to send with its SYN (TCP_FASTOPEN_CONNECT)"
    return None
