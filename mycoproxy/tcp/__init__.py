"""A TCP connection as data: take it out of one socket, put it into another.

>>> message = encode(capture(old))            # doctest: +SKIP
>>> state = decode(message)                   # doctest: +SKIP
>>> establish(new, state, local=Endpoint("10.0.2.7", 6379))   # doctest: +SKIP
>>> release(new, state)                       # doctest: +SKIP

``capture`` and ``establish`` leave their socket in repair mode, in which closing it is silent;
``resume`` goes back, ``release`` goes on. What the peer sends in between is kept by a ``Tap`` and
delivered by ``inject``. See the modules for the kernel's order of things, docs/tcp-states.md for
what is kept.

A listening socket is ``capture_listener`` and ``listen``; what waits in its accept queue is moved
by ``accept_queue`` (``take``, ``put``), handshakes under way by ``handshakes``.
``refusal`` says beforehand what cannot be moved.
"""

from mycoproxy.tcp.abi import TcpConnectionState
from mycoproxy.tcp.capture import capture, discard
from mycoproxy.tcp.codec import decode, encode, encode_parts
from mycoproxy.tcp.codec_listener import decode_listener, encode_listener
from mycoproxy.tcp.errors import CodecError, TcpError, UnsupportedSocketError, UnsupportedStateError
from mycoproxy.tcp.establish import abort, establish
from mycoproxy.tcp.listener import ListenerState, capture_listener, listen
from mycoproxy.tcp.live import release, release_again, resume
from mycoproxy.tcp.options import Settings
from mycoproxy.tcp.refusals import refusal
from mycoproxy.tcp.replay import Tap, beyond, inject
from mycoproxy.tcp.segments import Segment
from mycoproxy.tcp.state import (
    Buffers,
    Negotiated,
    ReceiveQueue,
    SendQueue,
    TcpState,
    Timestamps,
    Window,
    WindowScale,
)

__all__ = [
    "Buffers",
    "CodecError",
    "ListenerState",
    "Negotiated",
    "ReceiveQueue",
    "Segment",
    "SendQueue",
    "Settings",
    "Tap",
    "TcpConnectionState",
    "TcpError",
    "TcpState",
    "Timestamps",
    "UnsupportedSocketError",
    "UnsupportedStateError",
    "Window",
    "WindowScale",
    "abort",
    "beyond",
    "capture",
    "capture_listener",
    "decode",
    "decode_listener",
    "discard",
    "encode",
    "encode_listener",
    "encode_parts",
    "establish",
    "inject",
    "listen",
    "refusal",
    "release",
    "release_again",
    "resume",
]
