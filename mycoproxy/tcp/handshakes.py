"""Handshakes under way at a listener (SYN_RECV): learn their numbers, and complete them.

The kernel keeps such a connection as a request, which belongs to no descriptor, and tells neither
its sequence numbers nor its options. They are made to tell: a segment outside of a request's
window is answered with both numbers (``tcp_check_req``, net/ipv4/tcp_minisocks.c). The answer goes
to the client, who sees an acknowledgement that says nothing new. Then, under the hold, the client's
part of the handshake is played, the connection comes into the accept queue, and can be taken and
captured like any other. Whether its client really has got as far is not known;
``accept_queue.announce`` does right by both: it answers the SYN once more.

A listener with TCP_DEFER_ACCEPT keeps requests this way until their first data arrives.
"""

import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final, NamedTuple

from mycoproxy.addresses import FourTuple
from mycoproxy.tcp.replay import Tap, inject
from mycoproxy.tcp.segments import ACK, PSH, SEQUENCE_SPACE, on_the_wire, segment

_TCP = socket.IPPROTO_TCP
_ANY_SEQUENCE: Final = 0x6D79636F
"""Outside of the window with a probability of 65,535 in 65,536."""


class Handshake(NamedTuple):
    """A handshake under way: the initial sequence numbers of its two ends."""

    connection: FourTuple
    ours: int
    theirs: int


def learn(requests: Iterable[FourTuple], tap: Tap) -> list[Handshake]:
    """The numbers of those ``requests`` (``local`` is the listener's end) that are under way here.

    On a thread of their network namespace; no hold on their packets may be in place, and ``tap``
    sees outgoing ones. Raises ``TcpError``.
    """
    asked = {_reversed(on_the_wire(name)): name for name in requests}
    tap.arrived()
    # Not an ACK: one with a wrong number would be answered with a reset before its place in the
    # window is looked at. Where there is no request (any more) this is ignored. With a byte of
    # data, for only then the answer is sure: others are answered once in half a second, and a SYN
    # that came twice has been one of them (tcp_oow_rate_limited, net/ipv4/tcp_input.c).
    inject(
        segment(on_the_wire(name), flags=PSH, sequence=_ANY_SEQUENCE, data=b"?")
        for name in asked.values()
    )
    found: dict[FourTuple, Handshake] = {}
    for answer in tap.arrived():
        name = asked.get(answer.connection)
        header = answer.header
        if name is not None and header.flags == ACK:
            found.setdefault(
                name,
                Handshake(
                    name,
                    ours=(header.sequence - 1) % SEQUENCE_SPACE,
                    theirs=(header.acknowledgement - 1) % SEQUENCE_SPACE,
                ),
            )
    return list(found.values())


def complete(listeners: Iterable[socket.socket], handshakes: Sequence[Handshake]) -> None:
    """Play the clients' last segments: the connections come into their listeners' accept queues.

    Under the hold, on a thread of the network namespace. Raises ``TcpError``, ``OSError``.
    """
    if not handshakes:
        return
    with ExitStack() as deferring:
        for listener in listeners:
            deferring.enter_context(_without_deferring(listener))
        inject(
            segment(
                on_the_wire(one.connection),
                flags=ACK,
                sequence=one.theirs + 1,
                acknowledgement=one.ours + 1,
                # What its SYN announced is not known. The client tells when it is answered once
                # more (``accept_queue.announce``); until then nobody writes more than it can take.
                window=0,
            )
            for one in handshakes
        )


@contextmanager
def _without_deferring(listener: socket.socket) -> Iterator[None]:
    deferred = listener.getsockopt(_TCP, socket.TCP_DEFER_ACCEPT)
    if not deferred:
        yield
        return
    listener.setsockopt(_TCP, socket.TCP_DEFER_ACCEPT, 0)
    try:
        yield
    finally:
        listener.setsockopt(_TCP, socket.TCP_DEFER_ACCEPT, deferred)


def _reversed(name: FourTuple) -> FourTuple:
    return FourTuple(local=name.remote, remote=name.local)
