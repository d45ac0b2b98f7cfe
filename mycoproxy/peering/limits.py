"""Every bound of the peer protocol in one place: memory, numbers, and how long is waited."""

from dataclasses import dataclass
from typing import Final

LARGEST_HELLO: Final = 4096
"""Bytes of the first frame's payload: all that a peer may send before it has said hello."""

LARGEST_CHUNK: Final = 128 * 1024
"""Bytes of a body in one frame, as this side sends them. Any that fit a frame are taken."""

SMALLEST_WINDOW: Final = 64 * 1024
LARGEST_WINDOW: Final = 1 << 30
LARGEST_ID: Final = (1 << 63) - 1
LONGEST_DEADLINE_MS: Final = 24 * 3600 * 1000
LONGEST_WORD: Final = 64
LONGEST_MESSAGE: Final = 2000
MOST_FEATURES: Final = 64


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """What one link may use. Bytes and seconds.

    The bodies that wait in memory for the handlers of a link are at most ``requests * window``;
    ``window`` divided by the round trip time is the rate at which one body can arrive.
    """

    window: int = 2 * 1024 * 1024
    """Bytes of one body that the other side may send ahead of its reader."""
    requests: int = 32
    """Requests of the other side that may be open at once."""
    write_buffer: int = 512 * 1024
    """Bytes that wait for the socket before bodies and new requests are held back."""
    handshake: float = 5.0
    """From the connection to the end of TLS' handshake."""
    hello: float = 5.0
    """From there to the other side's hello."""
    idle: float = 10.0
    """Silence after which a ping is sent; as long again without an answer ends the link."""
    stall: float = 10.0
    """A peer that takes none of the bytes that wait for it for so long loses the link."""
    linger: float = 2.0
    """After the goodbye: how long the other side may take to close."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """How many links a server holds."""

    links: int = 1024
    """Links that are up, in all. More are refused."""
    links_per_node: int = 4
    """Links of one node. The oldest is closed for a newer one: a node that was restarted comes
    back before its old link is found to be dead."""
    strangers: int = 256
    """Connections that have not yet authenticated themselves and said hello. When there are more,
    the oldest one of the address that has most of them is closed."""
    backlog: int = 4096
    """Connections that wait in the kernel, of each listening socket."""
