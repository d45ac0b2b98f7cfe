"""The protocol that agents speak with each other: mutual TLS 1.3, msgpack frames.

The wire format is in docs/peer-protocol.md. ``PeerServer`` takes links and hands requests to a
handler, ``Peers`` calls other nodes; who may ask for what is the handler's to decide, by the
name of the node in the peer's certificate.
"""

from mycoproxy.peering.bodies import Body
from mycoproxy.peering.client import Peers
from mycoproxy.peering.connection import Local
from mycoproxy.peering.counters import Counters
from mycoproxy.peering.errors import (
    DeadlineError,
    FrameError,
    HandshakeError,
    LinkLost,
    PeeringError,
    ProtocolError,
    RequestError,
)
from mycoproxy.peering.frames import pack, unpack
from mycoproxy.peering.limits import LinkLimits, ServerLimits
from mycoproxy.peering.link import Answer
from mycoproxy.peering.server import PeerServer
from mycoproxy.peering.serving import Handler, Reply

__all__ = [
    "Answer",
    "Body",
    "Counters",
    "DeadlineError",
    "FrameError",
    "Handler",
    "HandshakeError",
    "LinkLimits",
    "LinkLost",
    "Local",
    "PeerServer",
    "PeeringError",
    "Peers",
    "ProtocolError",
    "Reply",
    "RequestError",
    "ServerLimits",
    "pack",
    "unpack",
]
