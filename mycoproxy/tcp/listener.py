"""A listening socket as data. What waits in its accept queue is in ``accept_queue``."""

import socket
from dataclasses import dataclass, replace
from typing import Self

from mycoproxy.addresses import Endpoint
from mycoproxy.tcp import abi, options, repair
from mycoproxy.tcp.abi import TcpConnectionState
from mycoproxy.tcp.capture import tcp_family
from mycoproxy.tcp.errors import TcpError, UnsupportedStateError
from mycoproxy.tcp.option_table import When
from mycoproxy.tcp.options import Settings
from mycoproxy.tcp.state import Buffers

_TCP = socket.IPPROTO_TCP
_SOCKET = socket.SOL_SOCKET
_DEFAULT_MSS = 536  # TCP_MSS_DEFAULT: what TCP_MAXSEG says if nobody has set it


@dataclass(frozen=True, slots=True)
class ListenerState:
    """A listening socket. ``backlog`` as the kernel took it; ``segment_size`` is the owner's
    TCP_MAXSEG in bytes, None if there is none."""

    family: socket.AddressFamily
    local: Endpoint
    backlog: int
    segment_size: int | None
    buffers: Buffers
    reuse_address: bool
    options: Settings

    def moved_to(self, local: Endpoint) -> Self:
        """The same listener elsewhere."""
        return replace(self, local=local)


def capture_listener(sock: socket.socket) -> ListenerState:
    """The state of a listening socket, which goes on listening.

    Raises ``UnsupportedSocketError``, ``UnsupportedStateError`` (it does not listen).
    """
    family = tcp_family(sock)
    state = repair.connection_state(sock)
    if state is not TcpConnectionState.LISTEN:
        raise UnsupportedStateError(state, None, "one that listens is wanted")
    segment_size = sock.getsockopt(_TCP, abi.TCP_MAXSEG)
    return ListenerState(
        family=family,
        local=Endpoint(*sock.getsockname()[:2]),
        backlog=repair.accept_queue(sock).limit,
        segment_size=None if segment_size == _DEFAULT_MSS else segment_size,
        buffers=repair.buffers(sock),
        reuse_address=bool(sock.getsockopt(_SOCKET, socket.SO_REUSEADDR)),
        options=options.read(sock),
    )


def listen(sock: socket.socket, state: ListenerState) -> list[str]:
    """Make a fresh socket what ``state`` says.

    Returns what could not be kept, in words. Raises ``TcpError`` (the address is missing or taken).
    """
    remarks = options.apply(sock, state.options, When.BEFORE_BIND)
    step = f"bind to {state.local} (the address must exist and be free)"
    try:
        sock.setsockopt(_SOCKET, socket.SO_REUSEADDR, int(state.reuse_address))
        sock.bind(state.local)
        step = "set its buffers"
        if state.segment_size is not None:
            sock.setsockopt(_TCP, abi.TCP_MAXSEG, state.segment_size)
        repair.force_send_buffer(sock, state.buffers.send)
        repair.force_receive_buffer(sock, state.buffers.receive)
        repair.set_buffer_lock(sock, state.buffers.lock)
        remarks += options.apply(sock, state.options, When.BEFORE_LIVE)
        step = "listen"
        sock.listen(state.backlog)
    except OSError as error:
        raise TcpError(f"cannot listen at {state.local}: cannot {step}: {error}") from error
    return remarks + options.apply(sock, state.options, When.LIVE)
