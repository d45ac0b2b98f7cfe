"""Agents of several nodes, each with its own journal, certificate and links, in one event loop.

All of it is the real thing but for the processes: an agent that is "killed" loses its memory and
its descriptors (its parts are dropped without having been closed by its own rules), and its
successor has the journal's directory.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handover_lab import Lab

from mycoproxy.agreement import Journal, Moves
from mycoproxy.agreement.moves import Limits as AgreementLimits
from mycoproxy.moves.driver import Answer, Channel, Order
from mycoproxy.moves.engine import Engine
from mycoproxy.moves.limits import Limits
from mycoproxy.moves.namespaces import NodeNamespaces
from mycoproxy.moves.node_datagrams import NodeDatagrams
from mycoproxy.moves.peer import PeerPart
from mycoproxy.moves.source import SourcePart, SourcePlace
from mycoproxy.moves.target import TargetPart, TargetPlace
from mycoproxy.peering import Local, Peers, PeerServer
from mycoproxy.pki import Credentials
from mycoproxy.pki.authority_directory import AuthorityDirectory

SECONDS = 20.0
QUICK = AgreementLimits(votes=5.0, peers_undone=0.5, patience=20.0, retry=0.05, slowest_retry=0.2)


class WatchedEngine(Engine):
    """An engine that can be killed just before it carries out its n-th order."""

    dead = False
    count = 0
    kill_at = -1
    when_killed: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.closing: list[Any] = []
        self.led: list[NodeDatagrams] = []
        self._requests.datagrams._make = self._make_datagrams
        self._carry_out, self._close = self.acts.carry_out, self.acts.close
        self.acts.carry_out = self._watched  # type: ignore[method-assign]
        self.acts.close = self._closing  # type: ignore[method-assign]

    def _watched(self, orders: Any) -> None:
        for order in orders:
            if self.dead:
                return
            if self.count == self.kill_at:
                self.dead = True
                self.when_killed()
                if self.dead:
                    return
            self.count += 1
            self._carry_out([order])

    async def _closing(self, entry: Any) -> None:
        self.closing.append(entry.part)
        await self._close(entry)

    def parts(self) -> list[Any]:
        """Those that may have descriptors open."""
        return [*(entry.part for entry in self.entries), *self.closing, *self.led]

    def _make_datagrams(self, workload: Path | None) -> NodeDatagrams:
        self.led.append(self._parts.datagrams(workload))
        return self.led[-1]

    async def handle(self, *arguments: Any) -> Any:
        if self.dead:
            await asyncio.sleep(SECONDS)
        return await super().handle(*arguments)


class Agent:
    """One node's agent. ``namespace`` is the node's own; ``pods`` are other ones on it."""

    def __init__(
        self, directory: Path, name: str, namespace: Path, pods: tuple[Path, ...] = ()
    ) -> None:
        self.name = name
        self.directory = directory
        self.namespaces = NodeNamespaces(namespace, [str(path) for path in pods])
        self.book: dict[str, tuple[str, int]] = {}
        self.is_up = False
        self.cut: set[str] = set()
        """Nodes that nothing goes to, and nothing comes from."""
        self.engine: WatchedEngine
        self._journal: Journal
        self._server: PeerServer
        self._peers: Peers

    async def start(self, book: dict[str, tuple[str, int]]) -> None:
        """Listen; ``book`` has everybody's address."""
        self.book = book
        credentials = Credentials.load(self.directory / "pki" / self.name)
        local = Local(self.name, identify=lambda tls: credentials.peer_identity(tls).node)
        self._journal = Journal(self.directory / "journal" / self.name)
        self._peers = Peers(local, credentials.client_context(), lambda node: book[node])
        loop = asyncio.get_running_loop()
        self.engine = WatchedEngine(
            Moves(self.name, self._journal, limits=QUICK, clock=loop.time),
            self._call,
            self.namespaces,
            known=lambda: [name for name in book if name != self.name],
            behind=None,
            limits=Limits(call=5.0, say=1.0, votes=5.0, ask=0.2),
        )
        self._server = PeerServer(local, credentials.server_context(), self._handle)
        host, port = book.get(self.name, ("127.0.0.1", 0))
        await self._server.listen(host, port)
        book[self.name] = self._server.addresses[0]
        await self.engine.start()
        self.is_up = True

    async def _call(self, node: str, *arguments: Any, **options: Any) -> Any:
        if node in self.cut:
            raise OSError(f"{self.name} is cut off from {node}")
        return await self._peers.call(node, *arguments, **options)

    async def _handle(self, peer: str, *arguments: Any) -> Any:
        if peer in self.cut:
            await asyncio.sleep(SECONDS)
        return await self.engine.handle(peer, *arguments)

    async def stop(self) -> None:
        """Its end, whatever is under way."""
        self.is_up = False
        await self.engine.stop()
        await self._server.close(0)
        await self._peers.close(0)
        self._journal.close()

    def open_moves(self) -> list[Path]:
        """What its journal holds."""
        return list((self.directory / "journal" / self.name).glob("*.move"))


@dataclass
class Driven:
    """What the drivers of a move did."""

    orders: list[Order]
    source_goes_on: bool = False
    source_removed: bool = False
    copy_runs: bool = False
    copy_killed: bool = False

    @property
    def settled(self) -> bool:
        """Does exactly one run, and is the other one gone?"""
        return (self.source_goes_on and self.copy_killed) or (
            self.source_removed and self.copy_runs
        )


def drop(part: Any) -> None:
    """Close the descriptors of a part, as its process' end would do it: nothing else is done."""
    match part:
        case SourcePart():
            _drop(part._local, "_tap", "_waiting", "_sockets", "_nft")
            drop(part._home)
            drop(part.datagrams.home)
            if (task := part.datagrams._task) is not None:
                task.cancel()
            _call(part.datagrams._source, part.datagrams._source._close)
        case TargetPart():
            if (collecting := part._local._collecting) is not None:
                collecting.result().close()
            _drop(part._local, "_tap", "_nft")
            drop(part.node)
        case PeerPart():
            for peer in (part._host, *part._pods.values()):
                _drop(peer, "_tap", "_nft", "_conntrack", "_sockets")
        case NodeDatagrams():
            if (opened := part._opened) is not None:
                for place in (opened._host, *opened._pods):
                    if place.flows is not None:
                        place.flows._conntrack.close()
            for worker in part._workers.values():
                worker.close()


def _drop(local: Any, *names: str) -> None:
    def close() -> None:
        for name in names:
            if (thing := getattr(local, name, None)) is not None:
                thing.close()

    _call(local, close)


def _call(local: Any, close: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # it has been closed by its own rules
        local._worker.call(close)  # after what it is still doing


class AgentsLab(Lab):
    """Agents on a (source), b (target) and c (client), and drivers of the workload's tasks."""

    def __init__(self, network: Any, version: int, directory: Path) -> None:
        super().__init__(network, version)
        authority = AuthorityDirectory.create(directory / "authority", cluster="lab")
        self.directory = directory
        self.book: dict[str, tuple[str, int]] = {}
        self.agents: dict[str, Agent] = {}
        # The workload's places are pods of nodes a and b; c is a client's node.
        for name, own in {"a": "node-a", "b": "node-b", "c": ""}.items():
            authority.issue(name, directory / "pki" / name)
            node = network.node(own) if own else self.c
            self.agents[name] = Agent(directory, name, node.path)
        self.driven = Driven([])
        self._drivers: list[asyncio.Task[None]] = []
        self.resume_answer = Answer.DONE

    async def __aenter__(self) -> "AgentsLab":
        for agent in self.agents.values():
            await agent.start(self.book)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._drivers:
            task.cancel()
        await asyncio.gather(*self._drivers, return_exceptions=True)
        for agent in self.agents.values():
            await agent.stop()
            for part in agent.engine.parts():
                drop(part)
            agent.namespaces.close()

    async def restart(self, name: str) -> None:
        """The agent is killed, and comes up again."""
        old = self.agents[name]
        await old.stop()
        for part in old.engine.parts():
            drop(part)
        await self.start_again(name)

    async def start_again(self, name: str) -> None:
        """A new agent in the place of one that was stopped."""
        old = self.agents[name]
        new = Agent(self.directory, name, old.namespaces.host_path)
        new.cut = old.cut
        self.agents[name] = new
        await new.start(self.book)

    def kill_at(self, name: str, order: int) -> None:
        """Kill an agent just before it carries out its n-th order, and start another one."""
        engine = self.agents[name].engine
        engine.kill_at = order
        engine.when_killed = lambda: self._later(self.restart(name))

    def cut_at(self, name: str, order: int, *groups: str) -> None:
        """Cut links at that point, for a second."""
        engine = self.agents[name].engine
        engine.kill_at = order

        async def heal() -> None:
            await asyncio.sleep(1.0)
            self.partition()

        def cut() -> None:
            engine.dead = False
            engine.kill_at = -1
            self.partition(*groups)
            self._later(heal())

        engine.when_killed = cut

    def _later(self, work: Any) -> None:
        self._drivers.append(asyncio.create_task(work))

    def partition(self, *groups: str) -> None:
        """Only nodes of one group hear each other; no group: all do."""
        for name, agent in self.agents.items():
            group = next((each for each in groups if name in each), "".join(self.agents))
            agent.cut.clear()
            agent.cut |= set(self.agents) - set(group)

    async def begin(self) -> None:
        """Up to where the copy stands: what a mover does before the handover."""
        a, b = self.agents["a"].engine, self.agents["b"].engine
        await b.open_target(TargetPlace("move", "a", str(self.b.path)))
        await a.open_source(
            SourcePlace(
                "move", str(self.a.path), self.source.init, "b", self.addresses, follow=0.05
            )
        )
        self._drivers = [
            asyncio.create_task(self._drive("a", Order.THAW)),
            asyncio.create_task(self._drive("b", Order.KILL)),
        ]
        self.source.stop()
        await a.collect("move")
        b.restored("move", self.copy.init, [self.copy.init])

    async def hand_over(self) -> bool:
        """The whole of it. Returns whether it moved."""
        await self.begin()
        moved, _ = await asyncio.wait_for(self.agents["a"].engine.hand_over("move"), SECONDS)
        return moved

    def hand_over_later(self) -> None:
        """As ``hand_over`` once begun, but nobody waits for it: the agent may die."""
        self._later(self.agents["a"].engine.hand_over("move"))

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition."""
        deadline = asyncio.get_running_loop().time() + SECONDS
        while not condition():
            assert asyncio.get_running_loop().time() < deadline, f"not {what}: {self.driven}"
            await asyncio.sleep(0.01)

    async def until_settled(self) -> None:
        """Wait until one runs, the other one is gone, and nobody has a move open any more."""
        await self.until(lambda: self.driven.settled, "settled")
        await self.until(
            lambda: (
                not any(
                    agent.open_moves() or len(agent.engine.entries)
                    for agent in self.agents.values()
                )
            ),
            "forgotten",
        )

    async def _drive(self, name: str, when_unknown: Order) -> None:
        """Carry out orders, of whichever agent is there.

        An agent that does not know the move any more has not committed it, and never will: every
        order that ends it would have been answered first.
        """
        while True:
            agent = self.agents[name]
            if not agent.engine.knows("move"):
                if agent.is_up and not self._is_over(name):
                    self._carry_out(when_unknown)
                await asyncio.sleep(0.01)
                continue
            channel = agent.engine.channel("move")
            reading = asyncio.create_task(self._read(channel))
            try:
                while self.agents[name] is agent and agent.engine.knows("move"):
                    await asyncio.sleep(0.01)
            finally:
                reading.cancel()
                await asyncio.wait({reading})

    def _is_over(self, name: str) -> bool:
        if name == "a":
            return self.driven.source_goes_on or self.driven.source_removed
        return self.driven.copy_runs or self.driven.copy_killed

    async def _read(self, channel: Channel) -> None:
        async for given in channel.orders():
            answer = self._carry_out(given.order)
            with contextlib.suppress(Exception):
                channel.answer(given.number, answer)

    def _carry_out(self, order: Order) -> Answer:
        driven = self.driven
        driven.orders.append(order)
        match order:
            case Order.THAW:
                assert not driven.copy_runs
                self.source.go_on()
                driven.source_goes_on = True
            case Order.REMOVE:
                assert driven.copy_runs and not driven.source_goes_on
                self.source.close()
                driven.source_removed = True
            case Order.RESUME:
                if driven.copy_runs:
                    return Answer.RUNNING
                if self.resume_answer is Answer.DEAD:
                    self.copy.close()
                    driven.copy_killed = True
                return self.resume_answer
            case Order.RUN:
                assert not driven.source_goes_on and not driven.copy_killed
                driven.copy_runs = True
            case Order.KILL:
                assert not driven.copy_runs
                self.copy.close()
                driven.copy_killed = True
        return Answer.DONE
