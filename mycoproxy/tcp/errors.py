"""What can go wrong with one connection, by type.

Each is a ``MycoError`` (exit status 1); the first two are also what a preflight asks about.
"""

from mycoproxy.addresses import FourTuple
from mycoproxy.errors import MycoError
from mycoproxy.tcp.abi import TcpConnectionState


class TcpError(MycoError):
    """A connection could not be captured, established or released."""


class UnsupportedStateError(TcpError):
    """The socket is in a TCP state that this is not for. ``wanted``: what it is for, in words."""

    def __init__(
        self, state: TcpConnectionState, connection: FourTuple | None, wanted: str
    ) -> None:
        self.state = state
        self.connection = connection
        super().__init__(f"{connection or 'the socket'} is in state {state.name}; {wanted}")


class UnsupportedSocketError(TcpError):
    """The socket is not TCP over IPv4 or IPv6, or has an address that cannot be moved."""


class CodecError(TcpError):
    """Bytes that should be an encoded ``TcpState`` are not."""
