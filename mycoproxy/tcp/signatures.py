"""Are a socket's segments signed (TCP_MD5SIG, RFC 2385)? No socket option tells; sock_diag does.

It adds the keys to what it says of a socket if the asker has CAP_NET_ADMIN and asks for
INET_DIAG_INFO (``inet_sk_diag_fill``, net/ipv4/inet_diag.c).
"""

import errno
import os
import socket
import struct
from functools import cache
from types import TracebackType
from typing import Final, Self

from mycoproxy.tcp import batch
from mycoproxy.tcp.socket_namespace import call_in_namespace_of

_NETLINK_SOCK_DIAG: Final = 4  # include/uapi/linux/netlink.h
_NLM_F_REQUEST: Final = 1
_NLMSG_ERROR: Final = 2
_SOCK_DIAG_BY_FAMILY: Final = 20  # include/uapi/linux/sock_diag.h
_INET_DIAG_INFO: Final = 2  # include/uapi/linux/inet_diag.h
_INET_DIAG_MD5SIG: Final = 18
_INET_DIAG_NOCOOKIE: Final = 0xFFFFFFFF
_SO_BINDTOIFINDEX: Final = 62  # include/uapi/asm-generic/socket.h
_TCP_MD5SIG: Final = 14  # include/uapi/linux/tcp.h
_MD5SIG_SIZE: Final = 216  # struct tcp_md5sig

_HEADER: Final = struct.Struct("=IHHII")
# struct inet_diag_req_v2: family, protocol, extensions, pad, states; then struct inet_diag_sockid:
# both ports and both addresses in network order, interface, cookie
_REQUEST: Final = struct.Struct("=BBBxI2s2s16s16sI2I")
_MESSAGE_SIZE: Final = 72  # struct inet_diag_msg
_ATTRIBUTE: Final = struct.Struct("=HH")
_ANSWER: Final = 16384
# Where in struct sockaddr_in and sockaddr_in6 the address lies; the port is before both.
_ADDRESS: Final = {socket.AF_INET: slice(4, 8), socket.AF_INET6: slice(8, 24)}
_PORT: Final = slice(2, 4)

_NAMES: Final = batch.Program(
    [
        batch.getsockname(),
        batch.getpeername(),
        batch.getsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX),
    ]
)


class SignatureLookup:
    """A connection to sock_diag of the network namespace that ``sock`` lives in.

    It keeps the namespace alive: close it.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._netlink = call_in_namespace_of(sock, _netlink) if known() else None

    def signed(self, sock: socket.socket) -> bool:
        """Whether a key is set on ``sock``, which is connected or listening.

        A closed socket cannot be found, and its keys not be seen. Raises ``OSError``.
        """
        if self._netlink is None:
            return False
        names = _NAMES.run(sock.fileno())
        family = sock.family
        local, remote = (_NAMES.output(names, index) for index in (0, 1))
        remote = remote or bytes(len(local))  # a listener
        request = _REQUEST.pack(
            family,
            socket.IPPROTO_TCP,
            1 << (_INET_DIAG_INFO - 1),
            0xFFFFFFFF,
            local[_PORT],
            remote[_PORT],
            local[_ADDRESS[family]],
            remote[_ADDRESS[family]],
            int.from_bytes(_NAMES.output(names, 2), "little"),
            _INET_DIAG_NOCOOKIE,
            _INET_DIAG_NOCOOKIE,
        )
        size = _HEADER.size + len(request)
        self._netlink.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0) + request)
        answer = self._netlink.recv(_ANSWER)
        if _HEADER.unpack_from(answer)[1] == _NLMSG_ERROR:
            number = -struct.unpack_from("=i", answer, _HEADER.size)[0]
            if number != errno.ENOENT:
                raise OSError(number, f"sock_diag of {sock}: {os.strerror(number)}")
            return False
        return _has_attribute(answer, _INET_DIAG_MD5SIG)

    def close(self) -> None:
        """Close the connection to the kernel."""
        if self._netlink is not None:
            self._netlink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@cache
def known() -> bool:
    """Whether this kernel can sign at all: taking away a key that is not there tells."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        nobody = struct.pack("=H", socket.AF_INET).ljust(_MD5SIG_SIZE, b"\0")
        try:
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_MD5SIG, nobody)
        except OSError as error:
            return error.errno == errno.ENOENT
    return True


def _netlink() -> socket.socket:
    made = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
    )
    made.bind((0, 0))
    return made


def _has_attribute(message: bytes, wanted: int) -> bool:
    at = _HEADER.size + _MESSAGE_SIZE
    while at + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        if kind == wanted:
            return True
        at += max(length, _ATTRIBUTE.size) + 3 & ~3
    return False
