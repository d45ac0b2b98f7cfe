"""Sockets in SYN_SENT: the owner's connect(2) is under way.

Nothing has been agreed with the peer yet, so there is nothing to carry over but the endpoints: the
socket connects again from its new place. A peer that has seen the first SYN from the same address
answers the second one's unknown number with an acknowledgement, is told that this is void, and
takes the next SYN (RFC 9293, 3.10.7.4; ``tcp_check_req``, net/ipv4/tcp_minisocks.c). A task that
waits in connect(2) goes on waiting; its timeout begins anew.
"""

import os
import socket
from contextlib import suppress

from mycoproxy.addresses import Endpoint
from mycoproxy.socktable import addresses_in_use
from mycoproxy.tcp import abi, repair
from mycoproxy.tcp.ended import NO_WINDOW, NOTHING_NEGOTIATED, without_blocking
from mycoproxy.tcp.errors import TcpError, UnsupportedSocketError
from mycoproxy.tcp.options import Settings
from mycoproxy.tcp.state import ReceiveQueue, SendQueue, TcpState

_TCP = socket.IPPROTO_TCP


def capture(
    sock: socket.socket,
    *,
    family: socket.AddressFamily,
    reuse_address: bool,
    settings: Settings,
) -> TcpState:
    """The state of a socket in SYN_SENT, which is in repair mode.

    getpeername(2) does not tell the remote end of one, so it is looked up in the socket table of
    the calling thread's network namespace. Raises ``TcpError``, ``UnsupportedSocketError``.
    """
    info = sock.getsockopt(_TCP, abi.TCP_INFO, abi.INFO_UNACKED_OFFSET + abi.INFO_COUNTS.size)
    if abi.INFO_COUNTS.unpack_from(info, abi.INFO_UNACKED_OFFSET)[0] > 1:
        raise UnsupportedSocketError(
            f"{sock} sends data with its SYN (TCP fast open); it cannot be moved until it is "
            "answered"
        )
    inode = os.fstat(sock.fileno()).st_ino
    remote = next((one.remote for one in addresses_in_use() if one.inode == inode), None)
    if remote is None:
        raise TcpError(
            f"{sock} is connecting, and not in the socket table of this thread's namespace"
        )
    return TcpState(
        family=family,
        local=Endpoint(*sock.getsockname()[:2]),
        remote=remote,
        state=repair.connection_state(sock),
        send=SendQueue(0, b"", b""),
        receive=ReceiveQueue(0, b""),
        window=NO_WINDOW,
        # What the owner has asked for with TCP_MAXSEG, or TCP_MSS_DEFAULT.
        negotiated=NOTHING_NEGOTIATED._replace(mss_clamp=sock.getsockopt(_TCP, abi.TCP_MAXSEG)),
        buffers=repair.buffers(sock),
        reuse_address=reuse_address,
        options=settings,
    )


def connect(sock: socket.socket, state: TcpState) -> None:
    """Connect ``sock``, which ``establish`` has bound; does not wait. Raises ``OSError``."""
    repair.force_send_buffer(sock, state.buffers.send)
    repair.force_receive_buffer(sock, state.buffers.receive)
    repair.set_buffer_lock(sock, state.buffers.lock)
    if state.negotiated.mss_clamp != NOTHING_NEGOTIATED.mss_clamp:
        sock.setsockopt(_TCP, abi.TCP_MAXSEG, state.negotiated.mss_clamp)
    with without_blocking(sock), suppress(BlockingIOError):
        sock.connect(state.remote)
