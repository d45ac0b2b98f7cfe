"""A TCP connection as data: take it out of one socket, put it into another.

>>> state = capture(old)          # doctest: +SKIP
>>> establish(new, state, local=Endpoint("10.0.2.7", 6379))   # doctest: +SKIP
>>> release(new, state)           # doctest: +SKIP

What the peer sends in between is kept by a ``Tap`` and delivered by ``inject``.

``capture`` and ``establish`` leave their socket in repair mode, in which closing it is silent;
``resume`` goes back, ``release`` goes on. See the modules for the kernel's order of things.
"""

from mycoproxy.tcp.abi import TcpConnectionState
from mycoproxy.tcp.capture import capture, discard
from mycoproxy.tcp.codec import decode, encode
from mycoproxy.tcp.errors import CodecError, TcpError, UnsupportedSocketError, UnsupportedStateError
from mycoproxy.tcp.establish import abort, establish
from mycoproxy.tcp.live import release, resume
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
    "Negotiated",
    "ReceiveQueue",
    "Segment",
    "SendQueue",
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
    "decode",
    "discard",
    "encode",
    "establish",
    "inject",
    "release",
    "resume",
]
