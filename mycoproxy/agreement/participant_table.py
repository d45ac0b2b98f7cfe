"""The state machines of a target and of a peer as tables; they share their beginning and the way
back. ``participant.py`` says what the steps are in full."""

from collections.abc import Mapping
from enum import Enum

from mycoproxy.agreement.effects import RecordKind
from mycoproxy.statetable import StateTable, Transition


class Phase(Enum):
    """Where a participant is."""

    IDLE = "idle"
    BEGINNING = "beginning"
    PREPARING = "preparing"
    VOTING = "voting"
    RETRACTING = "retracting"
    PREPARED = "prepared"
    GRANTED = "granted"
    GOING_LIVE = "going live"
    LIVE = "live"
    DYING = "dying"
    DEAD = "dead"
    FINISHING = "finishing"
    UNDOING = "undoing"
    ENDED = "ended"


class Event(Enum):
    """What happens."""

    ASKED = "asked to prepare"
    WRITTEN = "written"
    NOT_WRITTEN = "not written"
    UNSURE = "perhaps written"
    DONE = "done"
    FAILED = "failed"
    TICK = "time to say it again"
    TIMEOUT = "waited long enough"
    COMMIT = "committed"
    ABORT = "aborted"
    COPY_DEAD = "the copy is dead and never ran"
    CLOSED = "closed"
    FINISH = "target lives"


class Step(Enum):
    """What a transition asks for; ``_EFFECTS`` in ``participant.py`` says it in full."""

    RECORD_BEGUN = "record the beginning"
    REFUSE = "forget; vote no"
    PREPARE = "prepare"
    RECORD_PREPARED = "record being prepared"
    RECORD_ABORTED = "record the abort"
    VOTE = "vote yes"
    ASK_SOURCE = "ask the source"
    INQUIRE = "vote yes again; ask the others"
    RECORD_COMMITTED = "record the commit"
    GO_LIVE = "go live"
    GO_LIVE_AGAIN = "go live if not under way"
    RECORD_LIVE = "note that it lives; tell the source"
    TELL_LIVE = "tell the source: live"
    RECORD_DEAD = "record the death"
    TELL_DEAD = "tell the source: dead"
    FINISH = "finish"
    FINISH_AGAIN = "finish if not under way"
    FINISHED = "forget; tell the source: finished"
    FORGET = "forget"
    GIVE_UP = "note the abort; vote no; undo"
    UNDO = "note the abort; undo"
    UNDO_AGAIN = "undo if not under way"
    UNDONE = "forget; tell the source: undone"


P, E, S = Phase, Event, Step
Row = Transition[Phase, Step]


def _t(phase: Phase, step: Step | None = None) -> Row:
    return Transition(phase, step)


_COMMON: Mapping[tuple[Phase, Event], Row] = {
    (P.IDLE, E.ASKED): _t(P.BEGINNING, S.RECORD_BEGUN),
    (P.BEGINNING, E.WRITTEN): _t(P.PREPARING, S.PREPARE),
    (P.BEGINNING, E.NOT_WRITTEN): _t(P.ENDED, S.REFUSE),
    (P.BEGINNING, E.UNSURE): _t(P.ENDED, S.REFUSE),
    # It has not voted: it may still give up alone.
    (P.PREPARING, E.DONE): _t(P.VOTING, S.RECORD_PREPARED),
    (P.PREPARING, E.FAILED): _t(P.UNDOING, S.GIVE_UP),
    (P.PREPARING, E.TIMEOUT): _t(P.UNDOING, S.GIVE_UP),
    (P.PREPARING, E.TICK): _t(P.PREPARING, S.ASK_SOURCE),
    (P.PREPARING, E.ABORT): _t(P.UNDOING, S.UNDO),
    (P.VOTING, E.WRITTEN): _t(P.PREPARED, S.VOTE),
    (P.VOTING, E.NOT_WRITTEN): _t(P.UNDOING, S.GIVE_UP),
    # The record may be found after a restart, as a yes: nothing is undone until it is revoked.
    (P.VOTING, E.UNSURE): _t(P.RETRACTING),
    (P.RETRACTING, E.TICK): _t(P.RETRACTING, S.RECORD_ABORTED),
    (P.RETRACTING, E.WRITTEN): _t(P.UNDOING, S.GIVE_UP),
    (P.RETRACTING, E.NOT_WRITTEN): _t(P.RETRACTING),
    (P.RETRACTING, E.UNSURE): _t(P.RETRACTING),
    (P.RETRACTING, E.ABORT): _t(P.UNDOING, S.UNDO),
    # In doubt: from here on it never decides alone, however long it takes.
    (P.PREPARED, E.TICK): _t(P.PREPARED, S.INQUIRE),
    (P.PREPARED, E.ABORT): _t(P.UNDOING, S.UNDO),
    (P.UNDOING, E.TICK): _t(P.UNDOING, S.UNDO_AGAIN),
    (P.UNDOING, E.DONE): _t(P.ENDED, S.UNDONE),
    (P.UNDOING, E.FAILED): _t(P.UNDOING),
}

TARGET: StateTable[Phase, Event, Step] = StateTable(
    P.IDLE,
    {
        **_COMMON,
        (P.PREPARING, E.COPY_DEAD): _t(P.UNDOING, S.GIVE_UP),
        (P.PREPARED, E.COMMIT): _t(P.GRANTED, S.RECORD_COMMITTED),
        (P.PREPARED, E.COPY_DEAD): _t(P.DYING, S.RECORD_DEAD),
        # The record tells a copy that was let go from one that never was, if both are found dead.
        (P.GRANTED, E.WRITTEN): _t(P.GOING_LIVE, S.GO_LIVE),
        (P.GRANTED, E.NOT_WRITTEN): _t(P.GRANTED),
        (P.GRANTED, E.UNSURE): _t(P.GRANTED),
        (P.GRANTED, E.TICK): _t(P.GRANTED, S.RECORD_COMMITTED),
        (P.GRANTED, E.COPY_DEAD): _t(P.DYING, S.RECORD_DEAD),
        (P.GOING_LIVE, E.DONE): _t(P.LIVE, S.RECORD_LIVE),
        (P.GOING_LIVE, E.FAILED): _t(P.GOING_LIVE),
        (P.GOING_LIVE, E.TICK): _t(P.GOING_LIVE, S.GO_LIVE_AGAIN),
        (P.GOING_LIVE, E.COPY_DEAD): _t(P.DYING, S.RECORD_DEAD),
        (P.LIVE, E.TICK): _t(P.LIVE, S.TELL_LIVE),
        (P.LIVE, E.COMMIT): _t(P.LIVE, S.TELL_LIVE),
        (P.LIVE, E.CLOSED): _t(P.ENDED, S.FORGET),
        (P.DYING, E.WRITTEN): _t(P.DEAD, S.TELL_DEAD),
        (P.DYING, E.NOT_WRITTEN): _t(P.DYING),
        (P.DYING, E.UNSURE): _t(P.DYING),
        (P.DYING, E.TICK): _t(P.DYING, S.RECORD_DEAD),
        (P.DEAD, E.TICK): _t(P.DEAD, S.TELL_DEAD),
        (P.DEAD, E.COMMIT): _t(P.DEAD, S.TELL_DEAD),
        (P.DEAD, E.ABORT): _t(P.UNDOING, S.UNDO),
    },
)

PEER: StateTable[Phase, Event, Step] = StateTable(
    P.IDLE,
    {
        **_COMMON,
        # Not final for a peer: the copy may still be found dead. It keeps what it needs to undo.
        (P.PREPARED, E.COMMIT): _t(P.GRANTED),
        (P.GRANTED, E.TICK): _t(P.GRANTED, S.INQUIRE),
        (P.GRANTED, E.ABORT): _t(P.UNDOING, S.UNDO),
        (P.PREPARED, E.FINISH): _t(P.FINISHING, S.FINISH),
        (P.GRANTED, E.FINISH): _t(P.FINISHING, S.FINISH),
        (P.FINISHING, E.DONE): _t(P.ENDED, S.FINISHED),
        (P.FINISHING, E.FAILED): _t(P.FINISHING),
        (P.FINISHING, E.TICK): _t(P.FINISHING, S.FINISH_AGAIN),
    },
)

RECOVERY: Mapping[RecordKind, Row] = {
    RecordKind.BEGUN: _t(P.UNDOING, S.GIVE_UP),
    RecordKind.PREPARED: _t(P.PREPARED, S.INQUIRE),
    RecordKind.COMMITTED: _t(P.GOING_LIVE, S.GO_LIVE),
    RecordKind.LIVE: _t(P.LIVE, S.TELL_LIVE),
    RecordKind.DEAD: _t(P.DEAD, S.TELL_DEAD),
    RecordKind.ABORTED: _t(P.UNDOING, S.UNDO),
}
"""What the last record means after a restart."""
