"""Every state that a move's agents can get into, with faults anywhere: one outcome, always.

An explicit-state search over the machines themselves. A state is what every agent knows, its
journal, every message ever sent, and what really is the case (``World``). Any message that was
ever sent may arrive at any time and any number of times, or never: this is loss, delay, reordering,
repetition and partition in one. Crashes, failing steps, failing journals and the copy's death are
counted, so that the search ends. What a node does on an event is computed once and kept.
"""

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from mycoproxy.agreement import absent, coordinator, participant
from mycoproxy.agreement.coordinator import Coordinator
from mycoproxy.agreement.effects import (
    Act,
    Action,
    Effect,
    Forget,
    Keys,
    Outcome,
    Received,
    Record,
    Refuse,
    Reported,
    Send,
    Word,
    Write,
)
from mycoproxy.agreement.messages import Inquiry, Lost, Message, MoveId, Plan, Undecided
from mycoproxy.agreement.participant import Participant

SOURCE, TARGET, PEERS = "s", "t", ("p", "q")
KEYS = Keys(b"c" * 32, b"a" * 32)


class ViolationError(AssertionError):
    """Something that must never be."""


class RefusedError(ViolationError):
    """An honest node said what it may not say."""


@dataclass(frozen=True)
class World:
    """What is the case. ``source``: runs, frozen, removed. ``copy``: none, standing, dead (before
    it ran), killed, running, exited. ``paths``, for every peer: new, target, undone, final.
    ``resumed``: once the source went on after a freeze, the peers it does without."""

    source: str = "runs"
    copy: str = "none"
    paths: tuple[tuple[str, str], ...] = ()
    resumed: frozenset[str] | None = None

    @property
    def ran(self) -> bool:
        return self.copy in ("running", "exited")

    def check(self) -> None:
        never(self.source == "runs" and self.copy == "running", "both copies run")
        never(self.source == "runs" and self.ran, "the source runs after the target has run")
        for peer, path in self.paths:
            never(path == "final" and not self.ran, "final path to a copy that never ran")
            open_path = self.resumed is not None and peer not in self.resumed
            never(open_path and path == "target", "the source runs, a path leads to the target")

    def act(  # noqa: PLR0911
        self, node: str, action: Action, unreached: frozenset[str]
    ) -> tuple["World", Outcome]:
        """The same whether it is done for the first time or again."""
        done, path = Outcome.DONE, dict(self.paths).get(node)
        match node, action:
            case "s", Action.PREPARE:
                return replace(self, source="frozen"), done
            case "s", Action.UNDO:
                never(self.source == "removed", "the source is gone and should run")
                resumed = unreached if self.resumed is None else unreached & self.resumed
                return replace(self, source="runs", resumed=resumed), done
            case "s", Action.REMOVE:
                never(not self.ran, "the source is removed before the copy has run")
                return replace(self, source="removed"), done
            case "t", Action.PREPARE:
                never(self.copy != "none", "a second copy is made")
                return replace(self, copy="standing"), done
            case "t", Action.UNDO:
                never(self.ran, "the copy is killed after it was let go")
                return replace(self, copy="killed"), done
            case "t", Action.GO_LIVE:
                never(self.copy in ("none", "killed"), "a copy that is not there goes live")
                if self.copy == "dead":
                    return self, Outcome.DEAD
                return (replace(self, copy="running") if not self.ran else self), done
            case _, Action.PREPARE:
                never(path != "new", "a peer begins anew")
                return self._lead(node, "target"), done
            case _, Action.UNDO:
                never(path == "final", "a final path is undone")
                return self._lead(node, "undone"), done
            case _, Action.FINISH:
                never(path not in ("target", "final"), "a path becomes final that leads back")
                return self._lead(node, "final"), done
        raise ViolationError(f"{action} on {node}")

    def _lead(self, node: str, path: str) -> "World":
        return replace(self, paths=tuple((p, path if p == node else at) for p, at in self.paths))


def never(wrong: bool, what: str) -> None:
    if wrong:
        raise ViolationError(what)


@dataclass(frozen=True)
class Local:
    """One node: its machine, if it has one; its journal, in part not forced; its memory."""

    name: str
    machine: Coordinator | Participant | None = None
    hard: tuple[Record, ...] = ()
    soft: tuple[Record, ...] = ()
    word: Word | None = None
    life: int = 0

    @property
    def journal(self) -> tuple[Record, ...]:
        return self.hard + self.soft


#: What a fault costs, or nothing; what becomes of the node; what it sends.
Alternative = tuple[str, Local, tuple[tuple[str, Message], ...]]
State = tuple[tuple[int, ...], int, int]  # locals, messages, world


@dataclass
class Model:
    """One move. ``late``: a peer that is enrolled only after the beginning."""

    peers: tuple[str, ...] = ("p",)
    late: tuple[str, ...] = ()
    faults: int = 2
    explored: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.nodes = (SOURCE, TARGET, *self.peers, *self.late)
        first = Plan(MoveId(SOURCE, "0" * 16, 1), TARGET, self.peers, *KEYS.locks())
        self.plan = first
        self.begun = coordinator.begin(first, KEYS, dict.fromkeys(first.participants, 0))
        self.locals: list[Local] = []
        self.worlds: list[World] = []
        self.messages: list[tuple[str, str, Message]] = []
        self._ids: dict[Any, int] = {}
        self._reactions: dict[Any, list[tuple[str, int, int]]] = {}
        self._inbox = [0] * len(self.nodes)
        self._acts: dict[Any, Any] = {}
        self._own: dict[tuple[int, int], list[tuple[str, Any]]] = {}
        self._ends: dict[tuple[tuple[int, ...], int], None] = {}

    # --- one node ---------------------------------------------------------------------------

    def run(self, at: Local, result: tuple[Any, list[Effect]], sent: Any = ()) -> Iterator[Any]:
        """Carry out effects: all the ways that this may end in."""
        machine, effects = result
        at = replace(at, machine=machine)
        for effect in effects:
            match effect:
                case Send(node, message):
                    if not isinstance(message, Undecided | Lost):
                        sent = (*sent, (node, message))
                case Write(record, forced=False):
                    at = replace(at, soft=(*at.soft, record))
                case Write(record):
                    assert effect is effects[-1], "what follows depends on the write"
                    yield from self._write(at, record, sent)
                    return
                case Forget(word):
                    at = replace(at, machine=None, hard=(), soft=(), word=word)
                    yield from self.crash(at, sent)
                case Act():
                    assert machine.doing is effect.action
                case Refuse(reason=reason):
                    raise RefusedError(reason)
        yield "", at, sent

    def _write(self, at: Local, record: Record, sent: Any) -> Iterator[Any]:
        machine: Any = coordinator if isinstance(at.machine, Coordinator) else participant
        events = machine.Event
        there = replace(at, hard=(*at.journal, record), soft=())
        yield from self.crash(at, sent)
        yield from self.crash(there, sent)
        for cost, after, event in (
            ("", there, events.WRITTEN),
            ("journal", at, events.NOT_WRITTEN),
            ("journal", at, events.UNSURE),
            ("journal", there, events.UNSURE),
        ):
            for more, end, out in self.run(after, machine.step(at.machine, event), sent):
                if not (cost and more):  # two faults in one instant come apart elsewhere
                    yield cost or more, end, out

    def crash(self, at: Local, sent: Any = ()) -> Iterator[Any]:
        """Killed, and started again: until then it is as if it heard nothing. What was not forced
        into the journal may be there or not."""
        for journal in {at.journal, at.hard}:
            up = Local(at.name, hard=journal, life=1)
            if not journal:
                yield "crash", up, sent
            elif at.name == SOURCE:
                for _, end, out in self.run(up, coordinator.recover(journal), sent):
                    yield "crash", end, out
            else:
                for _, end, out in self.run(up, participant.recover(at.name, journal), sent):
                    yield "crash", end, out

    def react(self, at: Local, event: Any) -> Iterator[Any]:
        if event == "crash":
            yield from self.crash(at)
        elif isinstance(at.machine, Coordinator):
            yield from self.run(at, coordinator.step(at.machine, event))
        elif isinstance(at.machine, Participant):
            yield from self.run(at, participant.step(at.machine, event))
        elif isinstance(event, Received):
            machine, word, effects = absent.answer(
                event.node, event.message, me=at.name, life=at.life, word=at.word
            )
            yield from self.run(replace(at, word=word), (machine, effects))

    # --- interning --------------------------------------------------------------------------

    def _intern(self, thing: Any, into: list[Any]) -> int:
        if thing not in self._ids:
            self._ids[thing] = len(into)
            into.append(thing)
        return self._ids[thing]

    def _bit(self, sender: str, node: str, message: Message) -> int:
        before = len(self.messages)
        number = self._intern((sender, node, message), self.messages)
        if number == before:
            self._inbox[self.nodes.index(node)] |= 1 << number
        return 1 << number

    def reactions(self, index: int, at: int, event: Any) -> list[tuple[str, int, int]]:
        """(cost, local, messages) for every way in which this may end; none if nothing changes."""
        key = (index, at, event)
        if key not in self._reactions:
            node, found = self.nodes[index], []
            message = self.messages[event] if isinstance(event, int) else None
            given = Received(message[0], message[2]) if message else event
            try:
                for cost, end, sent in self.react(self.locals[at], given):
                    mask = 0
                    for to, what in sent:
                        mask |= self._bit(node, to, what)
                    end_index = self._intern(end, self.locals)
                    if end_index != at or mask:
                        found.append((cost, end_index, mask))
            except RefusedError:
                if not (message and message[0] in self.late):  # it may not know that one
                    raise
            self._reactions[key] = found
        return self._reactions[key]

    def own(self, index: int, at: int) -> list[tuple[str, Any]]:
        """What can happen at a node without a message."""
        key = (index, at)
        if key not in self._own:
            local, node = self.locals[at], self.nodes[index]
            machine = local.machine
            found: list[tuple[str, Any]] = [("", "crash")]
            if isinstance(machine, Coordinator):
                events: Any = (coordinator.Event.TICK, coordinator.Event.TIMEOUT)
                found += [("", e) for e in events if coordinator.accepts(machine, e)]
                late = tuple(p for p in self.late if p not in machine.plan.peers)
                if late and coordinator.accepts(machine, coordinator.Event.ENROL):
                    found.append(("", coordinator.Enrol(tuple((p, 0) for p in late))))
            if isinstance(machine, Participant):
                events = (participant.Event.TICK, participant.Event.TIMEOUT)
                found += [("", e) for e in events if participant.accepts(machine, e)]
            if machine is not None and machine.doing is not None:
                found.append(("act", machine.doing))
            if isinstance(machine, Participant) and node == TARGET:
                found.append(("dead", None))
            self._own[key] = found
        return self._own[key]

    def act(self, world: int, index: int, at: int) -> tuple[int, Outcome]:
        machine = self.locals[at].machine
        assert machine is not None and machine.doing is not None
        unreached = machine.unreached if isinstance(machine, Coordinator) else frozenset()
        key = (world, index, machine.doing, unreached)
        if key not in self._acts:
            after, outcome = self.worlds[world].act(self.nodes[index], machine.doing, unreached)
            after.check()
            self._acts[key] = (self._intern(after, self.worlds), outcome)
        found: tuple[int, Outcome] = self._acts[key]
        return found

    # --- the search -------------------------------------------------------------------------

    def initial(self) -> Iterator[tuple[int, State]]:
        paths = tuple((peer, "new") for peer in (*self.peers, *self.late))
        world = self._intern(World(paths=paths), self.worlds)
        rest = [self._intern(Local(node), self.locals) for node in self.nodes[1:]]
        asking = 0  # inquiries change nobody: as if they had been sent already
        for node in self.nodes[1:]:
            for other in self.nodes:
                if other != node:
                    asking |= self._bit(node, other, Inquiry(self.plan.move))
        for cost, at, sent in self.run(Local(SOURCE), self.begun):
            mask = asking
            for to, message in sent:
                mask |= self._bit(SOURCE, to, message)
            yield bool(cost), ((self._intern(at, self.locals), *rest), mask, world)

    def successors(self, state: State) -> Iterator[tuple[int, Any, State]]:
        """(faults that it takes, what happens, where it leads)."""
        nodes, net, world = state
        for index, at in enumerate(nodes):
            for what, event in self.own(index, at):
                if what == "act":
                    yield from self._acting(state, index, event)
                elif what == "dead":
                    copy = self.worlds[world].copy
                    machine = self.locals[at].machine
                    unaware = machine is not None and machine.phase in UNRELEASED
                    if copy == "dead" or (copy == "exited" and unaware):
                        report = Reported(Action.GO_LIVE, Outcome.DEAD)
                        yield from self._reacting(state, index, report)
                else:
                    yield from self._reacting(state, index, event)
            waiting = net & self._inbox[index]
            while waiting:
                bit = waiting & -waiting
                waiting ^= bit
                yield from self._reacting(state, index, bit.bit_length() - 1)
        after = {"standing": "dead", "running": "exited"}.get(self.worlds[world].copy)
        if after:
            dead = self._intern(replace(self.worlds[world], copy=after), self.worlds)
            yield 1, f"the copy is {after}", (nodes, net, dead)

    def _reacting(self, state: State, index: int, event: Any, cost: int = 0) -> Any:
        nodes, net, world = state
        for more, at, sent in self.reactions(index, nodes[index], event):
            after = (*nodes[:index], at, *nodes[index + 1 :])
            yield cost + bool(more), (self.nodes[index], event, more), (after, net | sent, world)

    def _acting(self, state: State, index: int, action: Action) -> Any:
        nodes, net, world = state
        after, outcome = self.act(world, index, nodes[index])
        acted = (nodes, net, after)
        yield from self._reacting(acted, index, Reported(action, outcome))
        failed = Reported(action, Outcome.FAILED)
        yield from self._reacting(state, index, failed, 1)
        if after != world:
            yield from self._reacting(acted, index, failed, 1)
            yield from self._reacting(acted, index, "crash")

    def explore(self, most: int = 5_000_000) -> int:
        """Every reachable state with at most ``faults`` faults, those with fewer first.

        A state is passed over if one with the same nodes and world was met that has all its
        messages, and no fewer faults left: whatever can follow from the one follows from the
        other. Raises ``ViolationError`` with the way that led to one.
        """
        came: dict[State, Any] = {}
        met: dict[Any, list[tuple[int, int]]] = {}
        layers: list[deque[State]] = [deque() for _ in range(self.faults + 1)]

        def meet(cost: int, state: State, way: Any) -> None:
            nodes, net, world = state
            if cost <= self.faults and not covered(cost, state, cost):
                met.setdefault((nodes, world), []).append((net, cost))
                came[state] = way
                layers[cost].append(state)
                assert len(came) < most, "the search does not end; allow fewer faults"

        def covered(cost: int, state: State, same: int) -> bool:
            """Was there one with all its messages and no more cost (``same`` for itself)?"""
            nodes, net, world = state
            for other, paid in met.get((nodes, world), ()):
                if net & other == net and paid <= (same if net == other else cost):
                    return True
            return False

        for cost, state in self.initial():
            meet(cost, state, None)
        for spent, layer in enumerate(layers):
            while layer:
                state = layer.pop()
                if covered(spent, state, spent - 1):
                    continue
                self.explored += 1
                try:
                    self.ends_well(state[0], state[2])
                    for cost, label, after in self.successors(state):
                        meet(spent + cost, after, (state, label))
                except Exception as error:
                    raise ViolationError(f"{error}\n{self.story(came, state)}") from error
        return self.explored

    def story(self, came: dict[State, Any], state: State) -> str:
        lines = [f"... {self._show(state)}"]
        while (step := came.get(state)) is not None:
            state, label = step
            if isinstance(label, tuple) and isinstance(label[1], int):
                sender, _, message = self.messages[label[1]]
                label = (label[0], f"{type(message).__name__} from {sender}", label[2])
            lines.append(f"{label}   at {self._show(state)}")
        return "\n".join(reversed(lines))

    def _show(self, state: State) -> str:
        def phase(at: int) -> str:
            local = self.locals[at]
            what = local.machine.phase.value if local.machine else "-"
            return f"{what}[{','.join(record.kind.value for record in local.journal)}]"

        where = zip(self.nodes, state[0], strict=True)
        return f"{' '.join(f'{n}:{phase(at)}' for n, at in where)} {self.worlds[state[2]]}"

    # --- in the end -------------------------------------------------------------------------

    def ends_well(self, nodes: tuple[int, ...], world: int) -> None:
        """With every message so far lost, but no more faults: one runs, and nobody remembers."""
        begun = (nodes, world)
        seen = []
        while begun not in self._ends:
            never(begun in seen, "it goes round in circles")
            seen.append(begun)
            if self._is_end(*begun):
                break
            begun = self._round(*begun)
        for one in seen:
            self._ends[one] = None

    def _is_end(self, nodes: tuple[int, ...], world: int) -> bool:
        if any(self.locals[at].machine for at in nodes):
            return False
        never(any(self.locals[at].journal for at in nodes), "a journal is left")
        now = self.worlds[world]
        never(now.ran != (now.source == "removed"), "in the end: not exactly one")
        never(not now.ran and now.source != "runs", "in the end: none")
        never(now.copy in ("standing", "dead"), "in the end: a copy is left")
        for peer, path in now.paths:
            wanted = ("final",) if now.ran else ("undone", "new")
            unasked = peer in self.late and path == "new"
            never(path not in wanted and not unasked, "in the end: a path leads astray")
        return True

    def _round(self, nodes: tuple[int, ...], world: int) -> tuple[tuple[int, ...], int]:
        """Restarts, then acts and messages until it is quiet; if nothing was to do, time passes."""
        state: State = (nodes, 0, world)
        moved = False
        delivered = 0
        while True:
            step = self._next(state, delivered)
            if step is None:
                break
            delivered |= step[1]
            state, moved = step[0], True
        if not moved:
            for kind in ("TICK", "TIMEOUT"):
                before = state
                for index in range(len(nodes)):
                    for what, event in self.own(index, state[0][index]):
                        if what == "" and getattr(event, "name", "") == kind:
                            for cost, _, after in self._reacting(state, index, event):
                                if not cost:
                                    state = after
                                    break
                state = self._drain(state)
                if (state[0], state[2]) != (before[0], before[2]):
                    break
        return state[0], state[2]

    def _drain(self, state: State) -> State:
        delivered = 0
        while (step := self._next(state, delivered)) is not None:
            delivered |= step[1]
            state = step[0]
        return state

    def _next(self, state: State, delivered: int) -> tuple[State, int] | None:
        nodes, net, world = state
        for index, at in enumerate(nodes):
            for what, event in self.own(index, at):
                if what == "act":
                    after, outcome = self.act(world, index, at)
                    return self._well((nodes, net, after), index, Reported(event, outcome)), 0
                if what == "dead" and self.worlds[world].copy == "dead":
                    report = Reported(Action.GO_LIVE, Outcome.DEAD)
                    if self.reactions(index, at, report):
                        return self._well(state, index, report), 0
        for index in range(len(nodes)):
            waiting = net & self._inbox[index] & ~delivered
            if waiting:
                bit = waiting & -waiting
                return self._well(state, index, bit.bit_length() - 1), bit
        return None

    def _well(self, state: State, index: int, event: Any) -> State:
        """What follows without a fault."""
        for cost, _, after in self._reacting(state, index, event):
            if not cost:
                found: State = after
                return found
        return state


UNRELEASED = frozenset(
    {participant.Phase.PREPARED, participant.Phase.GRANTED, participant.Phase.DYING}
)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(Model(("p",), faults=3), id="one peer, three faults"),
        pytest.param(Model((), faults=4), id="no peer, four faults"),
        pytest.param(Model(("p", "q"), faults=0), id="two peers"),
        pytest.param(Model(("p",), late=("q",), faults=0), id="a peer enrolled later"),
    ],
)
def test_agents_come_to_one_outcome_whatever_happens(model: Model) -> None:
    assert model.explore() > 10_000


@pytest.mark.skipif("AGREEMENT_SOAK" not in os.environ, reason="minutes; AGREEMENT_SOAK=1 runs it")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(Model(("p",), faults=5), id="one peer, five faults"),
        pytest.param(Model(("p", "q"), faults=1), id="two peers, one fault"),
        pytest.param(Model(("p",), late=("q",), faults=1), id="enrolled later, one fault"),
    ],
)
def test_agents_come_to_one_outcome_after_more_faults(model: Model) -> None:
    model.explore()
