"""The source of a handover in a network namespace of this machine."""

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, replace

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.errors import MycoError
from mycoproxy.handover.orphans import orphans
from mycoproxy.handover.sides import Connection, Known
from mycoproxy.handover.waiting import WaitingConnections, is_covered
from mycoproxy.namespaces import NamespaceWorker
from mycoproxy.netfilter.elements import on_the_wire
from mycoproxy.netfilter.hold import Hold
from mycoproxy.netfilter.nft import Nft
from mycoproxy.netfilter.shield import Shield
from mycoproxy.netfilter.translate import Translate
from mycoproxy.sockets import HeldSocket, HeldSockets, take, tasks_of
from mycoproxy.tcp import (
    Segment,
    Settings,
    Tap,
    TcpConnectionState,
    TcpState,
    beyond,
    capture,
    inject,
    options,
    repair,
    resume,
)

_AT_ONCE = 500  # connections that are captured before the target gets them: some 12 ms


class SourceError(MycoError):
    """The source's connections cannot be handed over."""


@dataclass(slots=True)
class _Taken:
    held: HeldSocket
    settings: Settings
    state: TcpState | None = None
    is_resumed: bool = False


class LocalSource:
    """The workload's connections where it still is.

    ``prepare`` while it runs, ``collect`` once it is frozen, then the handover; ``silence`` before
    its tasks are killed, ``close`` in the end.
    """

    def __init__(self, worker: NamespaceWorker, init_pid: int, move: str) -> None:
        self._worker = worker
        self._init_pid = init_pid
        self._move = move
        self._begun = False
        self._opened = False
        self._is_held = False
        self._nft: Nft
        self._hold: Hold
        self._shield: Shield
        self._sockets = HeldSockets()
        self._taken: list[_Taken] = []
        self._waiting = WaitingConnections([])
        self._via: dict[FourTuple, Endpoint] = {}
        self._tap: Tap | None = None

    async def prepare(self, *, is_held: bool = False) -> None:
        """Make the (empty) hold. ``is_held``: another process has made it, and may have used it."""
        self._begun = True
        await self._worker.run(self._prepare, is_held)

    def _prepare(self, is_held: bool) -> None:
        self._nft = Nft()
        self._opened = True
        self._hold = Hold(self._nft, self._move)
        self._is_held = is_held
        if not is_held:
            self._hold.install()
        self._shield = Shield(self._nft, self._move)

    async def collect(self) -> Sequence[Known]:
        """Take a duplicate of every socket. The tasks must stand.

        Returns the connections that there are now; some may come until ``capture``.
        """
        return await self._worker.run(self._collect)

    def _collect(self) -> Sequence[Known]:
        self._via = anchored(self._nft)
        self._sockets = take(tasks_of(self._init_pid))
        for held in (*self._sockets.connections, *self._sockets.closed):
            connected = held.connection is not None
            # It takes longer than the capture, and tasks that stand change nothing.
            self._taken.append(_Taken(held, options.read(held.sock, connected=connected)))
        self._waiting = WaitingConnections(self._sockets.listeners)
        return [self._known(name) for name in (*self._names(), *self._waiting.watch())]

    def _known(self, name: FourTuple) -> Known:
        return Known(name, self._via.get(FourTuple(*map(on_the_wire, name))))

    def _names(self) -> list[FourTuple]:
        return [one.held.connection for one in self._taken if one.held.connection is not None]

    async def hold(self) -> None:
        """See ``Source``."""
        await self._worker.run(self._hold_all)

    def _hold_all(self) -> None:
        listening = [one.local for one in self._sockets.listeners]
        # Ahead of the hold: the tap sees what netfilter drops.
        self._tap = Tap(outgoing=True)
        if listening:
            self._hold.hold_new(listening)
            self._waiting.learn(self._tap)
        others = [name for name in self._names() if not is_covered(name.local, listening)]
        self._hold.hold(self._as_they_pass(others), listeners=listening)

    def _as_they_pass(self, names: Sequence[FourTuple]) -> list[FourTuple]:
        """What their packets are called where the hold sees them, coming and going."""
        return [*names, *(known.on_the_wire for known in map(self._known, names) if known.via)]

    async def capture(self) -> Sequence[Connection]:
        """See ``Source``."""
        return [one async for some in self.capturing() for one in some]

    async def capturing(self) -> AsyncIterator[Sequence[Connection]]:
        """``capture``, some at a time. Those that wait at listeners come last, together."""
        for index in range(0, len(self._taken), _AT_ONCE):
            yield await self._worker.run(self._capture, self._taken[index : index + _AT_ONCE])
        yield await self._worker.run(self._take_waiting)

    def _capture(self, some: Sequence[_Taken]) -> Sequence[Connection]:
        connections = []
        for taken in some:
            taken.state = state = capture(taken.held.sock, settings=taken.settings)
            if state.state is not TcpConnectionState.CLOSE or state.shut_down:
                connections.append(Connection(taken.held.names, state))
        return connections

    def _take_waiting(self) -> Sequence[Connection]:
        return [
            Connection((), one.state, listener=one.listener.names, handshake=one.handshake)
            for one in self._waiting.take()
        ]

    async def recall(self, noted: Sequence[Connection]) -> None:
        """Take over sockets that another process has captured: for ``resume`` and ``silence``.

        After ``collect``. ``noted``: those of what its ``capture`` returned that ``is_only_copy``.
        """
        await self._worker.run(self._recall, noted)

    def _recall(self, noted: Sequence[Connection]) -> None:
        kept = {one.names: one.state for one in noted if not one.listener}
        for taken in self._taken:
            if taken.held.names in kept:
                taken.state = kept[taken.held.names]
            elif repair.is_in_repair(taken.held.sock):
                # What SO_REUSEADDR was, repair mode has overwritten; set, no restart can fail.
                state = capture(taken.held.sock, settings=taken.settings)
                taken.state = replace(state, reuse_address=True)
        self._waiting.recall([one for one in noted if one.listener])

    async def newcomers(self) -> Sequence[Segment]:
        """See ``Source``."""
        return await self._worker.run(self._waiting.newcomers)

    async def lost_segments(self) -> Sequence[Segment]:
        """See ``Source``."""
        return await self._worker.run(self._lost_segments)

    def _lost_segments(self) -> Sequence[Segment]:
        states = [taken.state for taken in self._taken if taken.state is not None]
        if self._tap is None:
            return ()
        inner = {
            FourTuple(name.local, via): FourTuple(name.local, name.remote)
            for name, via in self._via.items()
        }
        arrived = [
            one.moved_to(inner.get(one.connection, one.connection)) for one in self._tap.arrived()
        ]
        return beyond(arrived, [*states, *self._waiting.states])

    async def resume(self, leave: Collection[FourTuple] = ()) -> None:
        """See ``Source``. Those to ``leave`` stay held, until ``release_hold`` without them: their
        tasks can go on writing, and nothing of it gets out."""
        await self._worker.run(self._resume, frozenset(leave))

    def _resume(self, leave: frozenset[FourTuple]) -> None:
        failures = self._waiting.put_back()
        self._let_go(leave)
        for taken in self._taken:
            if taken.state is None or taken.is_resumed:
                continue
            try:
                resume(taken.held.sock, taken.state)
                taken.is_resumed = True
            except (MycoError, OSError) as error:
                failures.append(error)
        if failures:
            raise SourceError("; ".join(str(failure) for failure in failures))

    async def release_hold(
        self, lost: Sequence[Segment], leave: Collection[FourTuple] = ()
    ) -> None:
        """See ``Source``. ``leave``: as for ``resume``."""
        await self._worker.run(self._release_hold, lost, frozenset(leave))

    def _release_hold(self, lost: Sequence[Segment], leave: frozenset[FourTuple]) -> None:
        self._let_go(leave)
        found = self._lost_segments()
        newcomers = self._waiting.newcomers()
        self._waiting.announce()
        inject([*found, *lost, *newcomers])

    def _let_go(self, leave: frozenset[FourTuple]) -> None:
        if self._is_held:  # what is in it only the other process knew
            self._is_held = False
            self._hold.install()
        if leave:
            self._hold.hold(self._as_they_pass([*leave]))
        free = [name for name in self._names() if name not in leave]
        self._hold.let_go(self._as_they_pass(free))
        self._hold.let_go_listeners()

    async def silence(self) -> None:
        """Let nothing out of the namespace any more, whatever becomes of its sockets.

        The shield stays until the namespace is removed: its address no longer has a workload, and
        a packet that comes late must not be answered with a reset. What the workload had closed
        before, and is still being delivered, passes: see ``orphans``.
        """
        await self._worker.run(self._silence)

    def _silence(self) -> None:
        self._shield.raise_(passing=orphans())
        self._hold.release()

    async def close(self) -> None:
        """Close the duplicates and remove the hold."""
        if self._begun:  # it may be under way, and cannot be stopped
            self._begun = False
            await self._worker.run(self._close)

    def _close(self) -> None:
        if not self._opened:
            return
        self._opened = False
        if self._tap is not None:
            self._tap.close()
        self._waiting.close()
        self._sockets.close()
        self._hold.release()
        self._nft.close()


def anchored(nft: Nft) -> dict[FourTuple, Endpoint]:
    """The workload's connections that lead through an anchor node, by their names in its sockets,
    with what their packets have in the place of the other end.

    In the workload's own namespace it is the other end that is translated.
    """
    return {
        FourTuple(local=name.remote, remote=name.local): now
        for name, now in Translate(nft).list().items()
    }
