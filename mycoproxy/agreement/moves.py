"""All moves of one agent: hands events to their machines, keeps the journal and the timers.

No I/O but the journal's. The caller sends what is to be sent, does what is to be done, and calls
``wake`` when it is time. One thread; every method returns at once, but for forcing a record.
"""

import logging
import math
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

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
from mycoproxy.agreement.ended import Ended
from mycoproxy.agreement.journal import Journal, JournalError
from mycoproxy.agreement.messages import (
    KEY,
    MOST_PEERS,
    Message,
    MessageError,
    MoveId,
    Plan,
    Prepare,
)
from mycoproxy.agreement.participant import Participant
from mycoproxy.errors import RefusedError

log = logging.getLogger(__name__)

MOST_OPEN_FROM_ONE_SOURCE = 64

Machine = Coordinator | Participant


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds. ``retry`` doubles up to ``slowest_retry``."""

    votes: float = 60.0
    peers_undone: float = 1.0
    patience: float = 600.0
    retry: float = 0.25
    slowest_retry: float = 10.0


@dataclass(frozen=True, slots=True)
class Do:
    """Perform an action, then ``report`` it."""

    move: MoveId
    act: Act


@dataclass(frozen=True, slots=True)
class Over:
    """Nothing of the move is open here any more. ``live``: the workload is on the target."""

    move: MoveId
    live: bool


Order = Send | Do | Over | Refuse
"""What the caller has to carry out, in this order."""


@dataclass(frozen=True, slots=True)
class Status:
    """How a move stands here. ``missing``: who has not answered what it was asked last."""

    move: MoveId
    role: str
    phase: str
    doing: Action | None
    missing: tuple[str, ...] = ()


@dataclass(slots=True)
class _Open:
    machine: Machine
    votes: float
    tick: float = math.inf
    interval: float = 0.0
    limit: float = math.inf


class AgreementError(RefusedError):
    """A command that does not fit how the move stands. Nothing was changed."""


class Moves:
    """Of one agent, in one life of it. ``recover`` comes first.

    ``life``: tells this life of the agent from all others; the peers are told it when they
    connect, and it is what they give as ``lives``.
    """

    def __init__(
        self,
        name: str,
        journal: Journal,
        *,
        limits: Limits = Limits(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.life = secrets.randbits(62)
        self._journal, self._limits, self._clock = journal, limits, clock
        self._open: dict[MoveId, _Open] = {}
        self._ended = Ended()
        self._attachments: dict[MoveId, dict[str, bytes]] = {}
        self._left_over: set[MoveId] = set()
        self._number = 0
        self.unwritten = 0
        """How often the journal did not take something."""

    # --- what the caller tells --------------------------------------------------------------

    def recover(self) -> list[Order]:
        """Take up what the journal holds. Once, before anything else."""
        found, damaged = self._journal.open_moves()
        for path in damaged:
            log.error("%s is damaged: its move has to be looked after by a person", path)
        orders: list[Order] = []
        for one in found:
            move = one.move
            self._attachments[move] = one.attachments
            if move.source == self.name:
                self._number = max(self._number, move.number)
                orders += self._settle(move, *coordinator.recover(one.records))
            else:
                orders += self._settle(move, *participant.recover(self.name, one.records))
        return orders

    def begin(
        self,
        target: str,
        peers: Iterable[str],
        lives: Mapping[str, int],
        *,
        votes: float | None = None,
    ) -> tuple[MoveId, list[Order]]:
        """Begin a move from here. ``votes``: seconds until all have to be prepared.

        ``lives``: for the target and every peer, the life of its agent, as told on its link.
        """
        number = max(self._number + 1, time.time_ns())
        keys = Keys(secrets.token_bytes(KEY), secrets.token_bytes(KEY))
        move = MoveId(self.name, self._journal.identity, number)
        try:
            checked = Plan(move, target, tuple(peers), *keys.locks()).to_plain()
            plan = Plan.from_plain(checked)
        except MessageError as error:
            raise AgreementError(f"cannot begin a move: {error}") from error
        unknown = [node for node in plan.participants if node not in lives]
        if unknown:
            raise AgreementError(f"there is no link to {', '.join(unknown)}")
        self._number = number
        lives = {node: lives[node] for node in plan.participants}
        return move, self._settle(move, *coordinator.begin(plan, keys, lives), votes=votes)

    def enrol(self, move: MoveId, lives: Mapping[str, int]) -> list[Order]:
        """More peers, before the commit. Raises ``AgreementError`` if it is too late."""
        machine = self._coordinator(move)
        if not coordinator.accepts(machine, coordinator.Event.ENROL):
            raise AgreementError(f"{move} is {machine.phase.value}: too late for more peers")
        if len(machine.plan.peers) + len(lives) > MOST_PEERS:
            raise AgreementError(f"a move has at most {MOST_PEERS} peers")
        return self._step(move, coordinator.Enrol(tuple(sorted(lives.items()))))

    def abort(self, move: MoveId) -> list[Order]:
        """Give up, before the commit. Raises ``AgreementError`` if it is too late."""
        machine = self._coordinator(move)
        if not coordinator.accepts(machine, coordinator.Event.ABORT):
            raise AgreementError(f"{move} is {machine.phase.value}: it cannot be given up")
        return self._step(move, coordinator.Event.ABORT)

    def attach(self, move: MoveId, name: str, data: bytes) -> None:
        """Keep ``data`` in the journal of an open move. Raises ``JournalError``."""
        try:
            self._journal.attach(move, name, data)
        except JournalError:
            self.unwritten += 1
            raise
        self._attachments.setdefault(move, {})[name] = data

    def attachments(self, move: MoveId) -> Mapping[str, bytes]:
        """What was attached, before a restart as well. Empty when the move is over."""
        return self._attachments.get(move, {})

    def receive(self, node: str, message: Message) -> list[Order]:
        """A message over the link to ``node``, whose certificate says so."""
        move = message.move
        if move in self._open:
            return self._step(move, Received(node, message))
        word = self._ended.word(move)
        if isinstance(message, Prepare) and word is None and self._is_full(move.source):
            log.warning("%s: %s has too many open moves here", move, move.source)
            word = Word()
        lost = move.source == self.name and self._journal.lost(move)
        state, after, effects = absent.answer(
            node, message, me=self.name, life=self.life, word=word, lost=lost
        )
        if after is not None and after is not word:
            self._ended.keep(move, after)
        return self._settle(move, state, effects)

    def report(self, move: MoveId, action: Action, outcome: Outcome) -> list[Order]:
        """How an action ended. ``DEAD`` of a target: also unasked, of a copy that never ran."""
        return self._step(move, Reported(action, outcome)) if move in self._open else []

    def linked(self, node: str) -> list[Order]:
        """A link to ``node`` has come up: say again at once what it may not have heard."""
        orders: list[Order] = []
        for move, one in list(self._open.items()):
            if node == move.source or node in one.machine.plan.participants:
                one.interval = self._limits.retry
                orders += self._tick(move)
        return orders

    def resolve(self, move: MoveId, *, live: bool) -> list[Order]:
        """A person decides for a participant in doubt whose source is gone for ever.

        Raises ``AgreementError`` if it is in no doubt that this would end.
        """
        one = self._open.get(move)
        word = "live" if live else "undo"
        if one is None or not isinstance(one.machine, Participant):
            raise AgreementError(
                f"{self.name} is in no doubt about {move}"
                + (": it comes from here" if one is not None else ", which is not open here")
            )
        before = one.machine
        after, _ = participant.step(before, participant.Resolve(live))
        if after.phase is before.phase:
            raise AgreementError(
                f"{self.name} is in no doubt about {move}: it is {before.phase.value} here, where "
                f"{word!r} decides nothing"
            )
        log.warning("%s: resolved by a person: %s", move, word)
        return self._step(move, participant.Resolve(live))

    def gone(self, move: MoveId, node: str) -> list[Order]:
        """A person says that ``node``, a participant, is gone for ever with all that ran on it.

        Raises ``AgreementError`` if nobody waits for it.
        """
        before = self._coordinator(move)
        if node not in before.plan.participants:
            takes_part = ", ".join(before.plan.participants)
            raise AgreementError(f"{node} takes no part in {move}; these do: {takes_part}")
        if coordinator.step(before, coordinator.Gone(node)) == (before, []):
            raise AgreementError(f"{move} is {before.phase.value}, and does not wait for {node}")
        log.warning("%s: a person says that %s is gone for ever", move, node)
        return self._step(move, coordinator.Gone(node))

    def wake(self) -> list[Order]:
        """Do what is due."""
        now = self._clock()
        for move in list(self._left_over):
            self._forget(move)
        orders: list[Order] = []
        for move, one in list(self._open.items()):
            if one.limit <= now:
                one.limit = math.inf
                timeout = _events(one.machine).TIMEOUT
                orders += self._step(move, timeout)
            elif one.tick <= now:
                one.interval = min(one.interval * 2, self._limits.slowest_retry)
                orders += self._tick(move)
        return orders

    def next_wake(self) -> float | None:
        """When ``wake`` is due, on the clock; None: nothing waits."""
        times = [min(one.tick, one.limit) for one in self._open.values()]
        if self._left_over:
            times.append(self._clock() + self._limits.slowest_retry)
        soonest = min(times, default=math.inf)
        return None if soonest == math.inf else soonest

    def status(self) -> list[Status]:
        """Every open move."""
        return [_status(move, one.machine) for move, one in sorted(self._open.items())]

    def knows(self, move: MoveId) -> bool:
        """Is it open here?"""
        return move in self._open

    # --- carrying out -----------------------------------------------------------------------

    def _coordinator(self, move: MoveId) -> Coordinator:
        one = self._open.get(move)
        if one is None or not isinstance(one.machine, Coordinator):
            raise AgreementError(f"{move} is not an open move from {self.name}")
        return one.machine

    def _is_full(self, source: str) -> bool:
        return sum(move.source == source for move in self._open) >= MOST_OPEN_FROM_ONE_SOURCE

    def _tick(self, move: MoveId) -> list[Order]:
        one = self._open[move]
        one.tick = self._clock() + one.interval
        tick = _events(one.machine).TICK
        return self._step(move, tick) if _accepts(one.machine, tick) else []

    def _step(self, move: MoveId, event: Any) -> list[Order]:  # noqa: ANN401
        return self._settle(move, *_step(self._open[move].machine, event))

    def _settle(
        self,
        move: MoveId,
        machine: Machine | None,
        effects: list[Effect],
        *,
        votes: float | None = None,
    ) -> list[Order]:
        """Carry out effects, with all that follows from writing."""
        orders: list[Order] = []
        while True:
            written = None
            for effect in effects:
                match effect:
                    case Write(record, forced):
                        written = self._write(move, record, forced=forced)
                    case Forget(word):
                        orders.append(self._end(move, word))
                        machine = None
                    case Act():
                        orders.append(Do(move, effect))
                    case Send() | Refuse():
                        orders.append(effect)
            if written is None or machine is None:
                break
            machine, effects = _step(machine, _events(machine)[written])
        if machine is not None:
            self._keep(move, machine, votes)
        return orders

    def _write(self, move: MoveId, record: Record, *, forced: bool) -> str | None:
        try:
            self._journal.append(move, record, forced=forced)
        except JournalError as error:
            log.error("%s: %s", move, error)  # noqa: TRY400
            self.unwritten += 1
            written = "UNSURE" if error.unsure else "NOT_WRITTEN"
        else:
            written = "WRITTEN"
        return written if forced else None

    def _end(self, move: MoveId, word: Word) -> Over:
        one = self._open.pop(move, None)
        self._attachments.pop(move, None)
        self._forget(move)
        if move.source != self.name:
            self._ended.keep(move, word)
        return Over(move, one is not None and one.machine.phase in _LIVE)

    def _forget(self, move: MoveId) -> None:
        try:
            self._journal.forget(move)
            self._left_over.discard(move)
        except JournalError as error:
            log.error("%s: %s", move, error)  # noqa: TRY400
            self._left_over.add(move)

    def _keep(self, move: MoveId, machine: Machine, votes: float | None) -> None:
        """Note the new state; a new phase has its own timers."""
        one = self._open.get(move)
        if one is None:
            one = self._open[move] = _Open(machine, votes or self._limits.votes)
        elif one.machine.phase is machine.phase:
            one.machine = machine
            return
        one.machine = machine
        log.info("%s: %s", move, machine.phase.value)
        events, now = _events(machine), self._clock()
        one.interval = self._limits.retry
        ticks, ends = _accepts(machine, events.TICK), _accepts(machine, events.TIMEOUT)
        one.tick = now + one.interval if ticks else math.inf
        one.limit = now + self._limit(one) if ends else math.inf

    def _limit(self, one: _Open) -> float:
        if isinstance(one.machine, Participant):
            return self._limits.patience
        preparing = one.machine.phase is coordinator.Phase.PREPARING
        return one.votes if preparing else self._limits.peers_undone


_LIVE = (coordinator.Phase.FINISHING, participant.Phase.FINISHING, participant.Phase.LIVE)


def _events(machine: Machine) -> Any:  # noqa: ANN401
    return coordinator.Event if isinstance(machine, Coordinator) else participant.Event


def _step(machine: Machine, event: Any) -> tuple[Machine, list[Effect]]:  # noqa: ANN401
    if isinstance(machine, Coordinator):
        return coordinator.step(machine, event)
    return participant.step(machine, event)


def _accepts(machine: Machine, event: Any) -> bool:  # noqa: ANN401
    if isinstance(machine, Coordinator):
        return coordinator.accepts(machine, event)
    return participant.accepts(machine, event)


def _status(move: MoveId, machine: Machine) -> Status:
    if isinstance(machine, Coordinator):
        waits = coordinator.missing(machine)
        return Status(move, "source", machine.phase.value, machine.doing, waits)
    role = "target" if machine.is_target else "peer"
    return Status(move, role, machine.phase.value, machine.doing)
