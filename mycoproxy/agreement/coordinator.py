"""The source's part: it alone decides, and writes the decision down before it tells anyone.

Presumed abort: only ``committed`` needs a record. A source that finds none, after a crash as well,
has aborted. It forgets a move when nobody can ask about it any more.

Two rules that go beyond two-phase commit:

* ``COMMITTED`` gives the target the right to run, and peers may pass that on. What they re-homed
  becomes final only when the target lives; until then the target may give the right back, with
  its word that the copy never ran.
* The source goes on, after an abort, once all others have led the paths back (the target leads
  those of clients on its own node): a client that hears from the source by a path that leads to the
  target resets its connection. Who cannot be reached in time is named, so that these connections
  alone wait.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mycoproxy.agreement.coordinator_table import RECOVERY, TABLE, Event, Phase, Step
from mycoproxy.agreement.effects import (
    Act,
    Action,
    Effect,
    Forget,
    Keys,
    Outcome,
    Received,
    Record,
    RecordKind,
    Refuse,
    Reported,
    Send,
    Word,
    Write,
)
from mycoproxy.agreement.messages import (
    Abort,
    Closed,
    Commit,
    Dead,
    Finish,
    Finished,
    Inquiry,
    Live,
    Lost,
    Message,
    Plan,
    Prepare,
    Undecided,
    Undone,
    Vote,
)
from mycoproxy.statetable import Transition

__all__ = [
    "RECOVERY",
    "TABLE",
    "Coordinator",
    "Enrol",
    "Event",
    "Gone",
    "Phase",
    "Step",
    "accepts",
    "begin",
    "missing",
    "recover",
    "step",
]

P, E, S = Phase, Event, Step


@dataclass(frozen=True, slots=True)
class Coordinator:
    """All that the source knows of a move. ``lives``: (node, life of its agent) as enrolled.

    ``answered``: who is finished or undone, whichever is waited for. ``doing``: the action under
    way. ``unreached``: peers that the last UNDO had to leave out.
    """

    plan: Plan
    keys: Keys
    lives: tuple[tuple[str, int], ...] = ()
    phase: Phase = Phase.IDLE
    asked: frozenset[str] = frozenset()
    prepared: frozenset[str] = frozenset()
    answered: frozenset[str] = frozenset()
    doing: Action | None = None
    ready: bool = False
    removed: bool = False
    unreached: frozenset[str] = field(default=frozenset())

    @property
    def source(self) -> str:
        """Its own name."""
        return self.plan.move.source


@dataclass(frozen=True, slots=True)
class Enrol:
    """More peers, each with the life of its agent. Only before the commit."""

    lives: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Gone:
    """The operator's word that a node is gone for ever and leads nobody anywhere."""

    node: str


Input = Event | Received | Reported | Enrol | Gone
Result = tuple[Coordinator, list[Effect]]


def begin(plan: Plan, keys: Keys, lives: Mapping[str, int]) -> Result:
    """A new move. ``lives``: for every participant, which life of its agent is asked."""
    return _take(Coordinator(plan, keys, tuple(sorted(lives.items()))), Event.BEGIN)


def recover(records: Sequence[Record]) -> Result:
    """After a restart, from a journal whose first record has the keys."""
    begun = [record for record in records if record.kind is RecordKind.BEGUN][-1]
    if begun.plan is None or begun.keys is None:
        raise ValueError("not a journal of a source")
    asked = frozenset(begun.plan.participants)
    to = RECOVERY[records[-1].kind]
    return _follow(Coordinator(begun.plan, begun.keys, asked=asked), to)


def step(state: Coordinator, event: Input) -> Result:
    """One event, and what follows from it. Messages that come late or again change nothing."""
    match event:
        case Received(node, message):
            return _received(state, node, message)
        case Reported(action, outcome):
            return _reported(state, action, outcome)
        case Enrol(lives):
            return _enrolled(state, lives)
        case Gone(node):
            return _gone(state, node)
        case _:
            return _take(state, event)


def accepts(state: Coordinator, event: Event) -> bool:
    """Does this event mean anything now?"""
    return (state.phase, event) in TABLE.rows


def missing(state: Coordinator) -> tuple[str, ...]:
    """Who has not answered what it was asked last."""
    match state.phase:
        case P.PREPARING:
            here = state.prepared
        case P.COMMITTED:
            return (state.plan.target,)
        case P.FINISHING:
            here = state.answered | {state.plan.target}
        case _:
            here = state.answered
    return tuple(node for node in state.plan.participants if node not in here)


_UNDOABLE = (P.PREPARING, P.ABORTING, P.UNDOING, P.SETTLING)


def _received(  # noqa: PLR0911
    state: Coordinator, node: str, message: Message
) -> Result:
    if node not in state.plan.participants:
        return state, [Refuse(node, f"takes no part in {state.plan.move}")]
    match message:
        case Vote(yes=True) if state.phase is P.PREPARING and node not in state.prepared:
            return _implied(replace(state, prepared=state.prepared | {node}))
        case Vote(yes=True) | Inquiry():
            return state, [Send(node, _decision(state, node))]
        case Vote():
            return _if_listed(state, E.REFUSED)
        case Undone() if state.phase in _UNDOABLE:
            state = replace(state, answered=state.answered | {node})
            return _if_listed(state, E.REFUSED)
        case Finished() if state.phase is P.FINISHING and node != state.plan.target:
            return _implied(replace(state, answered=state.answered | {node}))
        case Live() | Dead() if node != state.plan.target:
            return state, [Refuse(node, f"is not the target of {state.plan.move}")]
        case Live():
            return _if_listed(state, E.LIVE)
        case Dead() if state.phase is P.PREPARING:
            return _if_listed(state, E.REFUSED)
        case Dead():
            return _if_listed(state, E.DEAD)
        case Undone() | Finished() | Undecided() | Lost():
            return state, []
        case _:
            return state, [Refuse(node, f"{type(message).__name__} is the source's to say")]


def _decision(state: Coordinator, node: str) -> Message:
    move = state.plan.move
    if state.phase is P.COMMITTED:
        return Commit(move, state.keys.commit)
    if state.phase is P.FINISHING:
        return Commit(move, state.keys.commit) if node == state.plan.target else Finish(move)
    if state.phase in (P.ABORTING, P.UNDOING, P.SETTLING):
        return Abort(move, state.keys.abort)
    return Undecided(move)


def _reported(state: Coordinator, action: Action, outcome: Outcome) -> Result:
    if action is not state.doing:  # of an action that was stopped for another one
        return state, []
    state = replace(state, doing=None)
    done = outcome is Outcome.DONE
    match action:
        case Action.PREPARE if state.phase is not P.PREPARING:  # to be undone whatever became of it
            return state, []
        case Action.PREPARE if done:
            return _implied(replace(state, ready=True))
        case Action.REMOVE if done:
            state = replace(state, removed=True)
    return _take(state, E.DONE if done else E.FAILED)


def _enrolled(state: Coordinator, lives: tuple[tuple[str, int], ...]) -> Result:
    known = {state.source, *state.plan.participants}
    new = tuple((node, life) for node, life in lives if node not in known)
    if not new:
        return state, []
    plan = replace(state.plan, peers=(*state.plan.peers, *(node for node, _ in new)))
    return _take(replace(state, plan=plan, lives=(*state.lives, *new)), E.ENROL)


def _gone(state: Coordinator, node: str) -> Result:
    if node not in state.plan.participants:
        return state, []
    state = replace(state, answered=state.answered | {node})
    if node == state.plan.target and accepts(state, E.TARGET_GONE):
        return _take(state, E.TARGET_GONE)
    return _if_listed(state, E.REFUSED)


def _if_listed(state: Coordinator, event: Event) -> Result:
    """What comes from others may come at any time: where it is not listed it is late."""
    return _take(state, event) if accepts(state, event) else _implied(state)


def _take(state: Coordinator, event: Event) -> Result:
    return _follow(state, TABLE.step(state.phase, event))


def _follow(state: Coordinator, to: Transition[Phase, Step]) -> Result:
    state = replace(state, phase=to.state)
    state, effects = (state, []) if to.action is None else _EFFECTS[to.action](state)
    state, implied = _implied(state)
    return state, [*effects, *implied]


def _implied(state: Coordinator) -> Result:
    """What is complete by now leads on."""
    peers, all_ = frozenset(state.plan.peers), frozenset(state.plan.participants)
    match state.phase:
        case P.PREPARING if state.ready and all_ <= state.prepared:
            return _take(state, E.ALL_PREPARED)
        case P.FINISHING if state.removed and peers <= state.answered:
            return _take(state, E.ALL_FINISHED)
        case P.ABORTING if all_ <= state.answered:
            return _take(state, E.PEERS_UNDONE)
        case P.SETTLING if state.unreached & state.answered:
            return _take(state, E.LATE_UNDONE)
        case P.SETTLING if all_ <= state.answered:
            return _take(state, E.ALL_UNDONE)
    return state, []


def _record_begun(state: Coordinator) -> Result:
    return state, [Write(Record(RecordKind.BEGUN, state.plan, state.keys), forced=True)]


def _record(kind: RecordKind) -> Callable[[Coordinator], Result]:
    return lambda state: (state, [Write(Record(kind), forced=True)])


def _ask(state: Coordinator) -> Result:
    lives = dict(state.lives)
    effects: list[Effect] = [
        Send(node, Prepare(state.plan.move, state.plan, lives[node]))
        for node in state.plan.participants
        if node not in state.asked
    ]
    if not state.asked:
        effects.append(Act(Action.PREPARE))
        state = replace(state, doing=Action.PREPARE)
    return replace(state, asked=frozenset(state.plan.participants)), effects


def _tell_commit(state: Coordinator) -> Result:
    message = Commit(state.plan.move, state.keys.commit)
    return state, [Send(node, message) for node in state.plan.participants]


def _tell_abort(state: Coordinator) -> Result:
    message = Abort(state.plan.move, state.keys.abort)
    rest = [node for node in state.plan.participants if node not in state.answered]
    return state, [Send(node, message) for node in rest]


def _finish(state: Coordinator) -> Result:
    state, effects = _finish_again(state)
    return state, [Write(Record(RecordKind.LIVE), forced=False), *effects]


def _finish_again(state: Coordinator) -> Result:
    effects: list[Effect] = [
        Send(node, Finish(state.plan.move))
        for node in state.plan.peers
        if node not in state.answered
    ]
    if not state.removed and state.doing is None:
        effects.append(Act(Action.REMOVE))
        state = replace(state, doing=Action.REMOVE)
    return state, effects


def _undo(state: Coordinator) -> Result:
    unreached = frozenset(state.plan.participants) - state.answered
    state = replace(state, doing=Action.UNDO, unreached=unreached)
    return state, [Act(Action.UNDO, unreached)]


def _undo_again(state: Coordinator) -> Result:
    state, told = _tell_abort(state)
    if state.doing is not None:
        return state, told
    state, effects = _undo(state)
    return state, [*told, *effects]


def _close(state: Coordinator) -> Result:
    word = Word(Commit(state.plan.move, state.keys.commit))
    return state, [Forget(word), Send(state.plan.target, Closed(state.plan.move))]


def _forget(state: Coordinator) -> Result:
    return state, [Forget(Word(Abort(state.plan.move, state.keys.abort)))]


_EFFECTS: Mapping[Step, Callable[[Coordinator], Result]] = {
    S.RECORD_BEGUN: _record_begun,
    S.ASK: _ask,
    S.RECORD_COMMITTED: _record(RecordKind.COMMITTED),
    S.RECORD_ABORTED: _record(RecordKind.ABORTED),
    S.TELL_COMMIT: _tell_commit,
    S.RECORD_REVERTED: _record(RecordKind.REVERTED),
    S.TELL_ABORT: _tell_abort,
    S.FINISH: _finish,
    S.FINISH_AGAIN: _finish_again,
    S.UNDO: _undo,
    S.UNDO_AGAIN: _undo_again,
    S.CLOSE: _close,
    S.FORGET: _forget,
}
