"""The target of a handover in a network namespace of this machine."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.errors import MycoError
from mycoproxy.handover.routes import moved_address
from mycoproxy.handover.sides import Connection, WentLive, is_inside
from mycoproxy.namespaces import NamespaceWorker
from mycoproxy.netfilter.elements import on_the_wire
from mycoproxy.netfilter.nft import Nft
from mycoproxy.netfilter.shield import Shield
from mycoproxy.netfilter.translate import Move, Translate
from mycoproxy.sockets import (
    DescriptorName,
    HeldSocket,
    HeldSockets,
    Listener,
    Matcher,
    match,
    take,
    tasks_of,
)
from mycoproxy.tcp import (
    Segment,
    Tap,
    TcpState,
    abort,
    accept_queue,
    beyond,
    establish,
    inject,
    release,
    release_again,
)


class TargetError(MycoError):
    """The copy has not the sockets that the source has."""


@dataclass(frozen=True, slots=True)
class _Queue:
    """What is to wait at one listener, in order."""

    names: tuple[DescriptorName, ...]
    connections: tuple[Connection, ...]


class LocalTarget:
    """The workload's connections where it is to be.

    ``prepare`` raises the shield, long before; ``collect`` once the copy is there and stands; then
    the handover; ``close`` in the end.
    """

    def __init__(self, worker: NamespaceWorker, move: str) -> None:
        self._worker = worker
        self._move = move
        self._begun = False
        self._opened = False
        self._nft: Nft
        self._shield: Shield
        self._collecting: Future[HeldSockets] | None = None
        self._closed: Matcher[HeldSocket] | None = None
        self._recalled = False
        self._established: list[tuple[HeldSocket, TcpState]] = []
        self._waiting: list[TcpState] = []
        self._handshakes: list[TcpState] = []
        self._new_names: dict[FourTuple, FourTuple] = {}
        self._via: dict[FourTuple, FourTuple] = {}  # names on the wire: the sockets' names
        self._moves: list[Move] = []
        self._remarks: list[str] = []
        self._tap: Tap | None = None

    async def prepare(self, *, is_shielded: bool = False) -> None:
        """Raise the shield. ``is_shielded``: another process has done that, and it may have been
        lifted since."""
        self._begun = True
        await self._worker.run(self._prepare, is_shielded)

    def _prepare(self, is_shielded: bool) -> None:
        self._nft = Nft()
        self._opened = True
        self._shield = Shield(self._nft, self._move)
        if not is_shielded:
            self._shield.raise_()
        # What the re-homed peers send is dropped by the shield, and delivered when it is lifted.
        self._tap = Tap()

    def collect(self, init_pid: int, pids: Iterable[int]) -> None:
        """Begin to take the sockets of the copy whose init is ``init_pid``; does not wait.

        ``pids`` are the processes of its cgroup; others may be among them (CRIU is).
        """
        self._collecting = self._worker.submit(lambda: take(tasks_of(init_pid, pids)))

    async def establish(
        self,
        connections: Sequence[Connection],
        addresses: Mapping[str, str],
        via: Mapping[FourTuple, Endpoint],
    ) -> None:
        """See ``Target``. Raises ``TargetError`` if the copy lacks a socket of the source."""
        await self.establish_some(connections, addresses)
        await self.lead(via, addresses)

    async def establish_some(
        self, connections: Sequence[Connection], addresses: Mapping[str, str]
    ) -> None:
        """``establish`` for a part of the connections; all that wait at one listener are in one
        part. ``lead`` when there are no more."""
        await self._worker.run(self._establish, connections, addresses)

    def _establish(self, connections: Sequence[Connection], addresses: Mapping[str, str]) -> None:
        sockets = self._sockets()
        if self._closed is None:
            self._closed = Matcher(sockets.closed)
        for connection, held in _match_sockets(connections, self._closed):
            state = self._moved(connection, addresses)
            self._remark(state, establish(held.sock, state))
            self._established.append((held, state))
        for queue, listener in _match_listeners(connections, sockets.listeners):
            self._put(queue, listener, addresses)

    def _sockets(self) -> HeldSockets:
        if self._collecting is None:
            raise TargetError("the copy's sockets were not collected")
        return self._collecting.result()

    async def lead(self, via: Mapping[FourTuple, Endpoint], addresses: Mapping[str, str]) -> None:
        """The end of ``establish``: ``via`` is as there."""
        if via:
            await self._worker.run(self._lead, via, addresses)

    def _lead(self, via: Mapping[FourTuple, Endpoint], addresses: Mapping[str, str]) -> None:
        """Have packets go to, and come from, the nodes that connections are anchored at."""
        if not via:
            return
        moves = []
        for old, anchor in via.items():
            name = FourTuple(on_the_wire(_moved_end(old.local, addresses)), on_the_wire(old.remote))
            self._via[FourTuple(name.local, anchor)] = name
            # Here it is the other end that is translated: the workload is in the client's place.
            reverse = FourTuple(local=name.remote, remote=name.local)
            moves.append(Move(reverse, anchor))
        Translate(self._nft).add(moves)
        self._moves += moves

    def _put(self, queue: _Queue, listener: Listener, addresses: Mapping[str, str]) -> None:
        states = [self._moved(connection, addresses) for connection in queue.connections]
        self._waiting += states
        agreed = accept_queue.put(listener.sock, states)
        for connection, before, after in zip(queue.connections, states, agreed, strict=True):
            if connection.handshake:
                self._handshakes.append(after)
            if before.negotiated.timestamps is not None and after.negotiated.timestamps is None:
                self._remark(after, ["it goes on without TCP timestamps"])

    def _remark(self, state: TcpState, remarks: Iterable[str]) -> None:
        self._remarks += [f"{state.connection}: {remark}" for remark in remarks]

    def _moved(self, connection: Connection, addresses: Mapping[str, str]) -> TcpState:
        state = connection.state.moved_to(
            local=_moved_end(connection.state.local, addresses),
            remote=_moved_end(connection.state.remote, addresses)
            if is_inside(connection.four_tuple, addresses)
            else None,
        )
        self._new_names[connection.four_tuple] = state.connection
        return state

    async def recall(
        self,
        connections: Sequence[Connection],
        addresses: Mapping[str, str],
        via: Mapping[FourTuple, Endpoint],
    ) -> None:
        """Take over what another process has established, all of it: for ``go_live`` and
        ``discard``. After ``prepare`` and ``collect``. Raises ``TargetError``."""
        await self._worker.run(self._recall, connections, addresses, via)

    def _recall(
        self,
        connections: Sequence[Connection],
        addresses: Mapping[str, str],
        via: Mapping[FourTuple, Endpoint],
    ) -> None:
        self._recalled = True
        sockets = self._sockets()
        every = Matcher([*sockets.closed, *sockets.connections])
        for connection, held in _match_sockets(connections, every):
            self._established.append((held, self._moved(connection, addresses)))
        for one in connections:
            if one.listener:
                state = self._moved(one, addresses)
                self._waiting.append(state)
                if one.handshake:
                    self._handshakes.append(state)
        self._lead(via, addresses)

    async def go_live(self, lost: Sequence[Segment]) -> WentLive:
        """See ``Target``. Every connection is let live, also if one fails."""
        return await self._worker.run(self._go_live, lost)

    def _go_live(self, lost: Sequence[Segment]) -> WentLive:
        failures: list[Exception] = []
        try:
            self._shield.lift()
        except (MycoError, OSError) as error:
            failures.append(error)
        for held, state in self._established:
            try:
                again = release_again if self._recalled else release
                self._remark(state, again(held.sock, state))
            except (MycoError, OSError) as error:
                failures.append(error)
        states = [state for _, state in self._established] + self._waiting
        try:
            accept_queue.announce(self._handshakes)
            delivered = inject([*self._renamed(lost), *beyond(self._arrived(), states)])
        except (MycoError, OSError) as error:
            failures.append(error)
        if failures:
            raise TargetError("; ".join(str(failure) for failure in failures))
        return WentLive(delivered, tuple(self._remarks))

    def _renamed(self, lost: Sequence[Segment]) -> list[Segment]:
        return [
            segment.moved_to(self._new_names[segment.connection])
            for segment in lost
            if segment.connection in self._new_names
        ]

    async def deliver(self, lost: Sequence[Segment]) -> int:
        """More of what ``go_live`` takes, later. Returns how many there were."""
        return await self._worker.run(lambda: inject(self._renamed(lost)))

    def _arrived(self) -> list[Segment]:
        arrived = self._tap.arrived() if self._tap is not None else ()
        return [one.moved_to(self._via.get(one.connection, one.connection)) for one in arrived]

    async def welcome(
        self,
        syns: Sequence[Segment],
        addresses: Mapping[str, str],
        via: Mapping[FourTuple, Endpoint],
    ) -> None:
        """See ``Target``."""
        await self._worker.run(self._welcome, syns, addresses, via)

    def _welcome(
        self,
        syns: Sequence[Segment],
        addresses: Mapping[str, str],
        via: Mapping[FourTuple, Endpoint],
    ) -> None:
        self._lead(via, addresses)
        inject(
            syn.moved_to(syn.connection._replace(local=_moved_end(syn.connection.local, addresses)))
            for syn in syns
        )

    async def discard(self) -> None:
        """See ``Target``. What waits at the copy's listeners goes with them, under the shield."""
        await self._worker.run(self._discard)

    def _discard(self) -> None:
        failures: list[Exception] = []
        while self._established:
            held, _ = self._established.pop()
            try:
                abort(held.sock)
            except (MycoError, OSError) as error:
                failures.append(error)
        moves, self._moves = self._moves, []
        if moves:
            try:
                Translate(self._nft).add([move.reversed() for move in moves])
            except (MycoError, OSError) as error:
                failures.append(error)
        if failures:
            raise TargetError("; ".join(str(failure) for failure in failures))

    async def close(self, *, stays_shielded: bool = False) -> None:
        """Close the duplicates, and lift the shield.

        ``stays_shielded``: not that, as long as there is the namespace. There is no copy, and paths
        may still lead to where it was to be; whoever comes must not be answered with a reset.
        """
        if self._begun:  # it may be under way, and cannot be stopped
            self._begun = False
            await self._worker.run(self._close, stays_shielded)

    def _close(self, stays_shielded: bool) -> None:
        if not self._opened:
            return
        self._opened = False
        if self._collecting is not None and self._collecting.exception() is None:
            self._collecting.result().close()
        if self._tap is not None:
            self._tap.close()
        if not stays_shielded:
            self._shield.lift()
        self._nft.close()


def _match_sockets(
    connections: Sequence[Connection], sockets: Matcher[HeldSocket]
) -> list[tuple[Connection, HeldSocket]]:
    matching = sockets.match(one for one in connections if not one.listener)
    if matching.missing:
        names = ", ".join(str(name) for name in matching.missing[:3])
        raise TargetError(
            f"the copy has no closed socket for {len(matching.unmatched_source)} "
            f"connections ({names}): CRIU did not restore them with tcp-close"
        )
    return list(matching.pairs)


def _match_listeners(
    connections: Sequence[Connection], listeners: Sequence[Listener]
) -> list[tuple[_Queue, Listener]]:
    waiting: dict[tuple[DescriptorName, ...], list[Connection]] = {}
    for connection in connections:
        if connection.listener:
            waiting.setdefault(connection.listener, []).append(connection)
    queues = [_Queue(names, tuple(found)) for names, found in waiting.items()]
    matching = match(queues, listeners)
    if matching.missing:
        raise TargetError(
            f"the copy has no listening socket {matching.missing[0]}, at which connections wait"
        )
    return list(matching.pairs)


def _moved_end(end: Endpoint, addresses: Mapping[str, str]) -> Endpoint:
    """An end of the workload after the move, in the text form that the socket's family wants."""
    new = moved_address(end.address, addresses)
    mapped = ":" in end.address and ":" not in new
    return Endpoint(f"::ffff:{new}" if mapped else new, end.port)
