"""The source of a handover in a network namespace of this machine."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from mycoproxy.addresses import FourTuple
from mycoproxy.errors import MycoError
from mycoproxy.handover.sides import Connection
from mycoproxy.namespaces import NamespaceWorker
from mycoproxy.netfilter.hold import Hold
from mycoproxy.netfilter.nft import Nft
from mycoproxy.netfilter.shield import Shield
from mycoproxy.sockets import HeldSocket, HeldSockets, take, tasks_of
from mycoproxy.socktable import addresses_in_use
from mycoproxy.tcp import (
    Segment,
    Tap,
    TcpConnectionState,
    TcpState,
    capture,
    inject,
    resume,
)

_SYN_RECV = 3  # include/net/tcp_states.h
_POLL = 0.001  # seconds


class SourceError(MycoError):
    """The source's connections cannot be handed over."""


@dataclass(slots=True)
class _Taken:
    held: HeldSocket
    name: FourTuple
    state: TcpState | None = None


class LocalSource:
    """The workload's connections where it still is.

    ``prepare`` and ``drain`` while it runs, ``collect`` once it is frozen, then the handover;
    ``silence`` before its tasks are killed, ``close`` in the end.
    """

    def __init__(self, worker: NamespaceWorker, init_pid: int, move: str) -> None:
        self._worker = worker
        self._init_pid = init_pid
        self._move = move
        self._opened = False
        self._nft: Nft
        self._hold: Hold
        self._shield: Shield
        self._sockets: HeldSockets | None = None
        self._taken: list[_Taken] = []
        self._tap: Tap | None = None

    async def prepare(self) -> None:
        """Make the (empty) hold."""
        await self._worker.run(self._prepare)

    def _prepare(self) -> None:
        self._nft = Nft()
        self._opened = True
        self._hold = Hold(self._nft, self._move)
        self._hold.install()
        self._shield = Shield(self._nft, self._move)

    async def drain(self, *, timeout: float) -> None:
        """Let no new connection in, and wait until every listener's accept queue is empty.

        A connection that no task has accepted belongs to no descriptor, and would be lost. Raises
        ``SourceError`` if the queues are not empty after ``timeout`` seconds.
        """
        await self._worker.run(self._drain, timeout)

    def _drain(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        with take(tasks_of(self._init_pid)) as sockets:
            listeners = [(one.local, one) for one in sockets.listeners]
            for held in (*sockets.connections, *sockets.closed):
                held.sock.close()  # ours must not keep one open that the task closes
            self._hold.hold_new([local for local, _ in listeners])
            while True:
                waiting = {
                    local: listener.accept_queue
                    for local, listener in listeners
                    if listener.accept_queue
                }
                handshakes = [one for one in addresses_in_use() if one.state == _SYN_RECV]
                if not waiting and not handshakes:
                    return
                if time.monotonic() > deadline:
                    where = next(iter(waiting), None) or handshakes[0].local
                    raise SourceError(
                        f"connections wait at {where} and are not accepted within {timeout:g} s; "
                        "a connection in an accept queue cannot be moved yet"
                    )
                time.sleep(_POLL)

    async def undrain(self) -> None:
        """Let new connections in again."""
        if self._opened:
            await self._worker.run(self._hold.release_new)

    async def collect(self) -> Sequence[FourTuple]:
        """Take a duplicate of every connection's socket. The tasks must stand.

        Returns the connections' names. Raises ``SourceError`` for a connection that cannot be
        moved, by name.
        """
        return await self._worker.run(self._collect)

    def _collect(self) -> Sequence[FourTuple]:
        self._sockets = take(tasks_of(self._init_pid))
        for held in self._sockets.connections:
            if held.connection is None or held.state != TcpConnectionState.ESTABLISHED:
                name = held.connection or held.names[0]
                state = TcpConnectionState(held.state).name
                raise SourceError(f"connection {name} is in state {state}; only ESTABLISHED moves")
            self._taken.append(_Taken(held, held.connection))
        return [taken.name for taken in self._taken]

    async def hold(self) -> Sequence[FourTuple]:
        """See ``Source``."""
        return await self._worker.run(self._hold_all)

    def _hold_all(self) -> Sequence[FourTuple]:
        names = [taken.name for taken in self._taken]
        # Ahead of the hold: the tap sees what netfilter drops.
        self._tap = Tap()
        self._hold.hold(names)
        return names

    async def capture(self) -> Sequence[Connection]:
        """See ``Source``."""
        return await self._worker.run(self._capture)

    def _capture(self) -> Sequence[Connection]:
        connections = []
        for taken in self._taken:
            taken.state = capture(taken.held.sock)
            connections.append(Connection(taken.held.names, taken.state))
        return connections

    async def lost_segments(self) -> Sequence[Segment]:
        """See ``Source``."""
        return await self._worker.run(self._lost_segments)

    def _lost_segments(self) -> Sequence[Segment]:
        states = [taken.state for taken in self._taken if taken.state is not None]
        return self._tap.lost(states) if self._tap is not None else ()

    async def resume(self) -> None:
        """See ``Source``."""
        await self._worker.run(self._resume)

    def _resume(self) -> None:
        self._hold.let_go([taken.name for taken in self._taken])
        failures: list[Exception] = []
        for taken in self._taken:
            if taken.state is not None:
                try:
                    resume(taken.held.sock, taken.state)
                except (MycoError, OSError) as error:
                    failures.append(error)
        if failures:
            raise SourceError("; ".join(str(failure) for failure in failures))

    async def release_hold(self, lost: Sequence[Segment]) -> None:
        """See ``Source``."""
        await self._worker.run(self._release_hold, lost)

    def _release_hold(self, lost: Sequence[Segment]) -> None:
        self._hold.let_go([taken.name for taken in self._taken])
        inject([*self._lost_segments(), *lost])

    async def silence(self) -> None:
        """Let nothing out of the namespace any more, whatever becomes of its sockets.

        The shield stays until the namespace is removed: its address no longer has a workload, and
        a packet that comes late must not be answered with a reset.
        """
        await self._worker.run(self._shield.raise_)

    async def close(self) -> None:
        """Close the duplicates and remove the hold."""
        if self._opened:
            await self._worker.run(self._close)

    def _close(self) -> None:
        self._opened = False
        if self._tap is not None:
            self._tap.close()
        if self._sockets is not None:
            self._sockets.close()
        self._hold.release()
        self._nft.close()
