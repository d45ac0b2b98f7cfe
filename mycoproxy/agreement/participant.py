"""The part of the target, and of a peer: prepare, vote, wait for the decision, carry it out.

Before the vote it may give up alone; after it, it asks. It believes a decision that the source
tells it, or that anybody in the plan passes on together with the source's key. That the target
lives it believes the source and the target. What it has to undo is in its journal before it
changes anything, and the vote is in its journal before it is given.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from mycoproxy.agreement.effects import (
    Act,
    Action,
    Effect,
    Forget,
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
    lock_of,
)
from mycoproxy.agreement.participant_table import (
    PEER,
    RECOVERY,
    TARGET,
    Event,
    Phase,
    Row,
    Step,
)
from mycoproxy.statetable import StateTable

__all__ = [
    "PEER",
    "RECOVERY",
    "TARGET",
    "Event",
    "Participant",
    "Phase",
    "Resolve",
    "Step",
    "accepts",
    "begin",
    "recover",
    "step",
    "table",
]

P, E, S = Phase, Event, Step


@dataclass(frozen=True, slots=True)
class Participant:
    """All that a target or a peer knows of a move. ``key``: of the last decision it heard (empty:
    none, or it came without); ``doing``: the action under way."""

    name: str
    plan: Plan
    phase: Phase = Phase.IDLE
    doing: Action | None = None
    key: bytes = b""

    @property
    def is_target(self) -> bool:
        """Or else a peer."""
        return self.name == self.plan.target

    @property
    def source(self) -> str:
        """Who decides."""
        return self.plan.move.source


@dataclass(frozen=True, slots=True)
class Resolve:
    """The operator's decision for a participant in doubt whose source is gone for ever.

    ``live`` on a target: the copy goes live; on a peer: the paths stay with the target. Else undo.
    ``docs/agreement.md`` says what must be true.
    """

    live: bool


Input = Event | Received | Reported | Resolve
Result = tuple[Participant, list[Effect]]


def begin(name: str, plan: Plan) -> Result:
    """Asked to prepare, for the first time and in time (``absent.answer`` makes sure)."""
    return _take(Participant(name, plan), Event.ASKED)


def recover(name: str, records: Sequence[Record]) -> Result:
    """After a restart, from the journal."""
    begun = [record for record in records if record.kind is RecordKind.BEGUN][-1]
    if begun.plan is None:
        raise ValueError("a journal begins with the plan")
    state = Participant(name, begun.plan, key=records[-1].key)
    return _follow(state, RECOVERY[records[-1].kind])


def step(state: Participant, event: Input) -> Result:
    """One event, and what follows from it. Messages that come late or again change nothing."""
    match event:
        case Received(node, message):
            return _received(state, node, message)
        case Reported(_, Outcome.DEAD):
            return _if_listed(replace(state, doing=None), E.COPY_DEAD)
        case Reported(action, outcome):
            if action is not state.doing:  # of an action that was stopped for another one
                return state, []
            done = E.DONE if outcome is Outcome.DONE else E.FAILED
            return _take(replace(state, doing=None), done)
        case Resolve(live):
            closed = E.CLOSED if state.phase is P.LIVE else E.COMMIT
            lives = closed if state.is_target else E.FINISH
            return _if_listed(state, lives if live else E.ABORT)
        case _:
            return _take(state, event)


def table(state: Participant) -> StateTable[Phase, Event, Step]:
    """That of the target or that of a peer."""
    return TARGET if state.is_target else PEER


def accepts(state: Participant, event: Event) -> bool:
    """Does this event mean anything now?"""
    return (state.phase, event) in table(state).rows


def _received(  # noqa: PLR0911
    state: Participant, node: str, message: Message
) -> Result:
    plan = state.plan
    from_source = node == state.source
    if not from_source and node not in plan.participants:
        return state, [Refuse(node, f"takes no part in {plan.move}")]
    match message:
        case Inquiry():
            return state, [Send(node, _knows(state, node))]
        case Commit(key=key):
            return _heard(state, node, key, plan.commit_lock, E.COMMIT)
        case Abort(key=b"") if from_source:
            return _if_listed(state, E.ABORT)
        case Abort(key=key):
            return _heard(state, node, key, plan.abort_lock, E.ABORT)
        case Finish() if from_source or node == plan.target:
            return _if_listed(state, E.FINISH)
        case Prepare() if from_source and state.phase is P.PREPARED:
            return state, [Send(node, Vote(plan.move, yes=True))]
        case Prepare() | Undecided() | Lost() if from_source:
            return state, []
        case Undecided():
            return state, []
        case Closed() if from_source:
            return _if_listed(state, E.CLOSED)
    return state, [Refuse(node, f"{type(message).__name__} is not for it to say")]


def _heard(state: Participant, node: str, key: bytes, lock: bytes, event: Event) -> Result:
    if lock_of(key) != lock:
        return state, [Refuse(node, f"not the source's key of {state.plan.move}")]
    if not accepts(state, event):
        return state, []
    return _take(replace(state, key=key), event)


def _knows(state: Participant, node: str) -> Message:
    """What can be passed on to another participant."""
    move = state.plan.move
    match state.phase:
        case P.LIVE if node != state.source:
            return Finish(move)
        case P.GRANTED | P.GOING_LIVE | P.LIVE | P.FINISHING if state.key:
            return Commit(move, state.key)
        case P.UNDOING if state.key:
            return Abort(move, state.key)
    return Undecided(move)


def _if_listed(state: Participant, event: Event) -> Result:
    """What comes from others may come at any time: where it is not listed it is late."""
    return _take(state, event) if accepts(state, event) else (state, [])


def _take(state: Participant, event: Event) -> Result:
    return _follow(state, table(state).step(state.phase, event))


def _follow(state: Participant, to: Row) -> Result:
    state = replace(state, phase=to.state)
    return (state, []) if to.action is None else _EFFECTS[to.action](state)


def _write(kind: RecordKind, *, forced: bool = True) -> Callable[[Participant], Result]:
    return lambda state: (state, [Write(Record(kind, key=state.key), forced)])


def _tell(kind: Callable[..., Message], **said: bool) -> Callable[[Participant], Result]:
    return lambda state: (state, [Send(state.source, kind(state.plan.move, **said))])


def _act(action: Action) -> Callable[[Participant], Result]:
    """Start it, if it is not under way."""

    def start(state: Participant) -> Result:
        if state.doing is action:
            return state, []
        return replace(state, doing=action), [Act(action)]

    return start


def _all(*steps: Callable[[Participant], Result]) -> Callable[[Participant], Result]:
    def run(state: Participant) -> Result:
        effects: list[Effect] = []
        for one in steps:
            state, more = one(state)
            effects += more
        return state, effects

    return run


def _record_begun(state: Participant) -> Result:
    return state, [Write(Record(RecordKind.BEGUN, state.plan), forced=True)]


def _ask_others(state: Participant) -> Result:
    inquiry = Inquiry(state.plan.move)
    return state, [Send(node, inquiry) for node in state.plan.participants if node != state.name]


def _forget_undone(state: Participant) -> Result:
    return state, [Forget(Word(Abort(state.plan.move, state.key) if state.key else None))]


def _forget_live(state: Participant) -> Result:
    return state, [Forget(Word(Commit(state.plan.move, state.key) if state.key else None))]


_note_abort = _write(RecordKind.ABORTED, forced=False)

_EFFECTS: Mapping[Step, Callable[[Participant], Result]] = {
    S.RECORD_BEGUN: _record_begun,
    S.REFUSE: _all(_forget_undone, _tell(Vote, yes=False)),
    S.PREPARE: _act(Action.PREPARE),
    S.RECORD_PREPARED: _write(RecordKind.PREPARED),
    S.RECORD_ABORTED: _write(RecordKind.ABORTED),
    S.VOTE: _tell(Vote, yes=True),
    S.ASK_SOURCE: _tell(Inquiry),
    S.INQUIRE: _all(_tell(Vote, yes=True), _ask_others),
    S.RECORD_COMMITTED: _write(RecordKind.COMMITTED),
    S.GO_LIVE: _act(Action.GO_LIVE),
    S.GO_LIVE_AGAIN: _act(Action.GO_LIVE),
    S.RECORD_LIVE: _all(_write(RecordKind.LIVE, forced=False), _tell(Live)),
    S.TELL_LIVE: _tell(Live),
    S.RECORD_DEAD: _write(RecordKind.DEAD),
    S.TELL_DEAD: _tell(Dead),
    S.FINISH: _act(Action.FINISH),
    S.FINISH_AGAIN: _act(Action.FINISH),
    S.FINISHED: _all(_forget_live, _tell(Finished)),
    S.FORGET: _forget_live,
    S.GIVE_UP: _all(_note_abort, _tell(Vote, yes=False), _act(Action.UNDO)),
    S.UNDO: _all(_note_abort, _act(Action.UNDO)),
    S.UNDO_AGAIN: _act(Action.UNDO),
    S.UNDONE: _all(_forget_undone, _tell(Undone)),
}
