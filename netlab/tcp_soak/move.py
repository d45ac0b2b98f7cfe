"""Move what is at one place of a course to the other, as ``mycoproxy.handover`` does it.

Hold, capture, encode; switch the route; decode, establish under the shield; lift it, release,
deliver what the hold dropped. What the source sends from then on is not to be heard: its shield
stays up until it is the target of the next move.
"""

import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.handover.waiting import WaitingConnections
from mycoproxy.sockets import Listener
from mycoproxy.tcp import (
    Segment,
    Tap,
    TcpState,
    accept_queue,
    capture,
    decode,
    encode,
    establish,
    inject,
    release,
)
from netlab.tcp_soak.course import Course, Site
from netlab.tcp_soak.ends import End


@dataclass(frozen=True, slots=True)
class Moved:
    """What was moved: the states of the ends, and of what nobody had accepted yet."""

    ends: tuple[TcpState, ...]
    waiting: tuple[TcpState, ...]
    lost: int
    """Segments that the hold dropped, and that were delivered afterwards."""

    def __len__(self) -> int:
        return len(self.ends) + len(self.waiting)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """What travels of a connection out of an accept queue."""

    listener: Listener
    state: bytes
    handshake: bool


class _Source:
    """On the thread of the place that is left."""

    def __init__(self, site: Site, ends: Sequence[End], *, waiting: bool) -> None:
        self._site = site
        self._ends = ends
        self._listeners = list(site.listeners.values()) if waiting else []
        self._waiting = WaitingConnections(self._listeners)
        self._tap: Tap
        self._states: list[TcpState] = []
        self._names = [name for end in ends if (name := _name(end.sock)) is not None]

    def capture(self) -> list[bytes]:
        hold, ports = self._site.hold, [one.local for one in self._listeners]
        self._waiting.watch()
        self._tap = Tap(outgoing=True)
        if ports:
            hold.hold_new(ports)
            self._waiting.learn(self._tap)
        hold.hold(self._names, listeners=ports)
        self._states = [capture(end.sock) for end in self._ends]
        return [encode(state) for state in self._states]

    def take(self) -> list[_Waiting]:
        return [
            _Waiting(one.listener, encode(one.state), one.handshake) for one in self._waiting.take()
        ]

    def lost(self) -> tuple[Segment, ...]:
        return self._tap.lost([*self._states, *self._waiting.states])

    def forget(self, sockets: Sequence[socket.socket]) -> Tap:
        """Nothing of the source is to be heard any more."""
        self._site.shield.raise_()
        for sock in sockets:
            sock.close()
        self._site.hold.let_go(self._names)
        self._site.hold.let_go_listeners()
        self._waiting.close()
        return self._tap


class _Target:
    """On the thread of the place that is entered."""

    def __init__(self, site: Site, ends: Sequence[End]) -> None:
        self._site = site
        self._ends = ends
        self._tap: Tap
        self._states: list[TcpState] = []
        self._agreed: list[TcpState] = []
        self._handshakes: list[TcpState] = []

    def prepare(self) -> None:
        self._tap = Tap()

    def establish(self, encoded: Sequence[bytes]) -> list[socket.socket]:
        before = []
        for end, each in zip(self._ends, encoded, strict=True):
            state = decode(each)
            before.append(end.exchange(socket.socket(state.family, socket.SOCK_STREAM)))
            end.sock.setblocking(False)
            establish(end.sock, state)
            self._states.append(state)
        return before

    def put(self, waiting: Sequence[_Waiting]) -> None:
        for version, listener in self._site.listeners.items():
            here = [one for one in waiting if one.listener.local.version == version]
            states = [decode(one.state) for one in here]
            agreed = accept_queue.put(listener.sock, states) if states else []
            self._agreed += agreed
            self._handshakes += [
                state for one, state in zip(here, agreed, strict=True) if one.handshake
            ]

    def go_live(self, lost: Sequence[Segment]) -> tuple[Moved, Tap]:
        self._site.shield.lift()
        for end, state in zip(self._ends, self._states, strict=True):
            release(end.sock, state)
        accept_queue.announce(self._handshakes)
        here = self._tap.lost([*self._states, *self._agreed])
        count = inject([*lost, *here])
        return Moved(tuple(self._states), tuple(self._agreed), count), self._tap


def move(course: Course, ends: Sequence[End], *, waiting: bool = False) -> Moved:
    """Move ``ends``, all that are open of the server, to the other place; nobody may use them.

    With ``waiting`` also everything that its listeners have not accepted, handshakes under way
    included. Raises ``MycoError``, ``OSError``: the course is of no use then.
    """
    source = _Source(course.here, ends, waiting=waiting)
    target = _Target(course.there, ends)
    leave, enter = course.here.place.call, course.there.place.call
    enter(target.prepare)
    encoded = leave(source.capture)
    taken = leave(source.take)
    course.lead_to(course.there)
    with ExitStack() as stack:
        before = enter(target.establish, encoded)
        for sock in before:
            stack.callback(sock.close)
        enter(target.put, taken)
        moved, tap = enter(target.go_live, leave(source.lost))
        for each in (tap, leave(source.forget, before)):
            course.aside.submit(each.close)
    course.swap()
    return moved


def _name(sock: socket.socket) -> FourTuple | None:
    """None if the connection has ended; the kernel may just be about to end it."""
    try:
        return FourTuple(Endpoint(*sock.getsockname()[:2]), Endpoint(*sock.getpeername()[:2]))
    except OSError:
        return None
