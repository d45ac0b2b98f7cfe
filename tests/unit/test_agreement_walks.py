"""Random walks of whole agents with real journals: far more faults than a search can count.

Links lose what is on them when they break, and repeat and reorder what they carry; agents are
killed in the middle of what they do; journals fail, surely or not; steps fail; the copy dies. Then
the faults stop, and after some time exactly one copy runs and every journal is empty.
"""

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from test_agreement_model import UNRELEASED, World, never

from mycoproxy.agreement.effects import Action, Outcome, Record, RecordKind, Send
from mycoproxy.agreement.journal import Journal, JournalError
from mycoproxy.agreement.messages import Message, MoveId
from mycoproxy.agreement.moves import AgreementError, Do, Moves, Order

SEEDS = int(os.environ.get("AGREEMENT_WALKS", "150"))


class FailingJournal(Journal):
    """Fails when it is told to; what it wrote then may be there or not."""

    def __init__(self, directory: Path, rng: random.Random) -> None:
        super().__init__(directory)
        self._rng = rng
        self.failing = 0.0

    def append(self, move: MoveId, record: Record, *, forced: bool) -> None:
        fails = self._rng.random() < self.failing
        if not fails:
            super().append(move, record, forced=forced)
            return
        unsure = record.kind is not RecordKind.BEGUN and self._rng.random() < 0.5
        if unsure and self._rng.random() < 0.5:
            super().append(move, record, forced=forced)
        raise JournalError("as the walk has it", unsure=unsure)


class Cluster:
    """Nodes, links and a clock; and what really is the case."""

    def __init__(self, directory: Path, rng: random.Random, peers: tuple[str, ...]) -> None:
        self.rng, self.directory = rng, directory
        self.names = ("s", "t", *peers)
        self.world = World(paths=tuple((peer, "new") for peer in peers))
        self.severity = rng.choice((0.1, 0.3, 1.0))
        self.clock = 0.0
        self.wire: list[tuple[str, str, Message]] = []
        self.journals: dict[str, FailingJournal] = {}
        self.moves: dict[str, Moves] = {}
        self.doing: dict[str, Do] = {}
        self.cut: set[frozenset[str]] = set()
        for name in self.names:
            self.start(name)
        self.move: MoveId | None = None

    def start(self, name: str) -> None:
        self.journals[name] = FailingJournal(self.directory / name, self.rng)
        self.moves[name] = Moves(name, self.journals[name], clock=lambda: self.clock)
        self.carry(name, self.moves[name].recover())

    def begin(self, peers: tuple[str, ...]) -> None:
        lives = {name: moves.life for name, moves in self.moves.items()}
        self.move, orders = self.moves["s"].begin("t", peers, lives)
        self.carry("s", orders)

    def carry(self, name: str, orders: list[Order]) -> None:
        for order in orders:
            if isinstance(order, Send) and frozenset((name, order.node)) not in self.cut:
                self.wire.append((name, order.node, order.message))
            elif isinstance(order, Do):
                self.doing[name] = order

    def deliver(self, at: int, *, keep: bool = False) -> None:
        sender, name, message = self.wire[at] if keep else self.wire.pop(at)
        self.carry(name, self.moves[name].receive(sender, message))

    def act(self, name: str, *, fails: bool = False, dies: bool = False) -> None:
        order = self.doing.pop(name)
        outcome = Outcome.FAILED
        if not fails or self.rng.random() < 0.5:
            self.world, done = self.world.act(name, order.act.action, order.act.unreached)
            self.world.check()
            outcome = Outcome.FAILED if fails else done
        if not dies:
            self.carry(name, self.moves[name].report(order.move, order.act.action, outcome))

    def kill(self, name: str) -> None:
        if name in self.doing and self.rng.random() < 0.5:
            self.act(name, dies=True)
        self.doing.pop(name, None)
        self.wire = [one for one in self.wire if name not in one[:2]]
        self.journals[name].close()
        self.start(name)
        self.relink(name)

    def relink(self, name: str) -> None:
        for other in self.names:
            if other != name and frozenset((name, other)) not in self.cut:
                self.carry(name, self.moves[name].linked(other))
                self.carry(other, self.moves[other].linked(name))

    def cut_link(self) -> None:
        link = frozenset(self.rng.sample(self.names, 2))
        self.cut.add(link)
        self.wire = [one for one in self.wire if frozenset(one[:2]) != link]

    def mend_link(self) -> None:
        for link in list(self.cut)[:1]:
            self.cut.discard(link)
            one, other = link
            self.carry(one, self.moves[one].linked(other))
            self.carry(other, self.moves[other].linked(one))

    def copy_dies(self) -> None:
        after = {"standing": "dead", "running": "exited"}.get(self.world.copy)
        if after:
            self.world = replace(self.world, copy=after)
            self.world.check()

    def find_copy_dead(self) -> None:
        """The target looks at its copy; it knows what it let go by its journal only."""
        for status in self.moves["t"].status():
            unreleased = status.phase in {phase.value for phase in UNRELEASED}
            if self.world.copy == "dead" or (self.world.copy == "exited" and unreleased):
                found = self.moves["t"].report(status.move, Action.GO_LIVE, Outcome.DEAD)
                self.carry("t", found)

    def pass_time(self, seconds: float) -> None:
        self.clock += seconds
        for name in self.names:
            self.carry(name, self.moves[name].wake())

    def step(self) -> None:
        """Something happens."""
        rng, what = self.rng, self.rng.random() * (0.85 + 0.15 * self.severity)
        if what < 0.45 and self.wire:
            self.deliver(rng.randrange(len(self.wire)), keep=rng.random() < 0.15)
        elif what < 0.65 and self.doing:
            self.act(rng.choice(list(self.doing)), fails=rng.random() < 0.08 * self.severity)
        elif what < 0.85:
            self.pass_time(rng.choice((0.1, 0.5, 2.0, 70.0 if rng.random() < 0.05 else 1.0)))
        elif what < 0.89:
            self.kill(rng.choice(self.names))
        elif what < 0.92:
            self.cut_link()
        elif what < 0.95:
            self.mend_link()
        elif what < 0.97:
            self.journals[rng.choice(self.names)].failing = rng.choice((0.0, 0.0, 0.5, 1.0))
        elif what < 0.975:
            self.copy_dies()
        else:
            self.find_copy_dead()

    def heal(self) -> None:
        """No more faults; what is on the wire comes late, then time passes."""
        for journal in self.journals.values():
            journal.failing = 0.0
        while self.cut:
            self.mend_link()
        for _ in range(200):
            self.find_copy_dead()
            while self.wire or self.doing:
                if self.wire:
                    self.deliver(self.rng.randrange(len(self.wire)))
                else:
                    self.act(next(iter(self.doing)))
            if not any(moves.status() for moves in self.moves.values()):
                break
            self.pass_time(11.0)

    def check_end(self) -> None:
        statuses = {name: moves.status() for name, moves in self.moves.items()}
        never(any(statuses.values()), f"still open: {statuses}")
        left = list(self.directory.glob("*/*.move")) + list(self.directory.glob("*/*.damaged"))
        never(bool(left), f"left: {left}")
        world = self.world
        never(world.ran != (world.source == "removed"), f"not exactly one: {world}")
        never(not world.ran and world.source != "runs", f"none: {world}")
        never(world.copy in ("standing", "dead"), f"a copy is left: {world}")
        for peer, path in world.paths:
            asked = path != "new"
            never(asked and (path == "final") != world.ran, f"{peer} leads astray: {world}")

    def close(self) -> None:
        for journal in self.journals.values():
            journal.close()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("peers", [("p",), ("p", "q", "r")], ids=["one peer", "three peers"])
def test_random_faults_end_in_one_outcome(tmp_path: Path, peers: tuple[str, ...]) -> None:
    outcomes = set()
    for seed in range(SEEDS):
        rng = random.Random(seed)
        cluster = Cluster(tmp_path / str(seed), rng, peers)
        try:
            enrolled = peers[: rng.randint(1, len(peers))]
            cluster.begin(enrolled)
            faulty = rng.randrange(400)
            for count in range(faulty):
                cluster.step()
                if count == 10 and cluster.move is not None:
                    late = {p: cluster.moves[p].life for p in peers if p not in enrolled}
                    try:
                        orders = cluster.moves["s"].enrol(cluster.move, late)
                    except AgreementError:
                        continue
                    cluster.carry("s", orders)
            cluster.heal()
            cluster.check_end()
        except Exception as error:
            raise AssertionError(f"seed {seed}, {len(peers)} peers: {error!r}") from error
        finally:
            cluster.close()
        outcomes.add(cluster.world.source)
    assert outcomes == {"runs", "removed"}, "both outcomes are walked to"
