"""The source's state machine as a table. ``coordinator.py`` says what the steps are in full."""

from collections.abc import Mapping
from enum import Enum

from mycoproxy.agreement.effects import RecordKind
from mycoproxy.statetable import StateTable, Transition


class Phase(Enum):
    """Where the source is."""

    IDLE = "idle"
    BEGINNING = "beginning"
    PREPARING = "preparing"
    ENROLLING = "enrolling"
    COMMITTING = "committing"
    RETRACTING = "retracting"
    COMMITTED = "committed"
    REVERTING = "reverting"
    FINISHING = "finishing"
    ABORTING = "aborting"
    UNDOING = "undoing"
    SETTLING = "settling"
    ENDED = "ended"


class Event(Enum):
    """What happens. The first group comes from outside; the others follow from messages."""

    BEGIN = "begin"
    ABORT = "asked to abort"
    TICK = "time to say it again"
    TIMEOUT = "waited long enough"
    TARGET_GONE = "operator: target and copy are gone"
    WRITTEN = "written"
    NOT_WRITTEN = "not written"
    UNSURE = "perhaps written"
    ENROL = "more peers"
    REFUSED = "somebody cannot"
    ALL_PREPARED = "all prepared"
    LIVE = "target lives"
    DEAD = "copy is dead"
    ALL_FINISHED = "all finished"
    PEERS_UNDONE = "the others are undone"
    DONE = "done"
    FAILED = "failed"
    LATE_UNDONE = "a late peer is undone"
    ALL_UNDONE = "all undone"


class Step(Enum):
    """What a transition asks for; ``_EFFECTS`` says it in full."""

    RECORD_BEGUN = "record the beginning"
    ASK = "ask who was not asked yet; prepare"
    RECORD_COMMITTED = "record the commit"
    RECORD_ABORTED = "record the abort"
    TELL_COMMIT = "tell all: committed"
    RECORD_REVERTED = "record the reversal"
    TELL_ABORT = "tell all: aborted"
    FINISH = "note that it lives; tell the peers; remove the source"
    FINISH_AGAIN = "tell the peers that did not answer; remove the source if not done"
    UNDO = "undo, but for nodes unreached"
    UNDO_AGAIN = "tell who did not answer; undo if not under way"
    CLOSE = "forget; tell the target"
    FORGET = "forget"


P, E, S = Phase, Event, Step


def _t(phase: Phase, step: Step | None = None) -> Transition[Phase, Step]:
    return Transition(phase, step)


TABLE: StateTable[Phase, Event, Step] = StateTable(
    P.IDLE,
    {
        (P.IDLE, E.BEGIN): _t(P.BEGINNING, S.RECORD_BEGUN),
        (P.BEGINNING, E.WRITTEN): _t(P.PREPARING, S.ASK),
        (P.BEGINNING, E.NOT_WRITTEN): _t(P.ENDED, S.FORGET),
        (P.BEGINNING, E.UNSURE): _t(P.ENDED, S.FORGET),
        (P.PREPARING, E.ENROL): _t(P.ENROLLING, S.RECORD_BEGUN),
        (P.PREPARING, E.REFUSED): _t(P.ABORTING, S.TELL_ABORT),
        (P.PREPARING, E.FAILED): _t(P.ABORTING, S.TELL_ABORT),
        (P.PREPARING, E.ABORT): _t(P.ABORTING, S.TELL_ABORT),
        (P.PREPARING, E.TIMEOUT): _t(P.ABORTING, S.TELL_ABORT),
        (P.PREPARING, E.ALL_PREPARED): _t(P.COMMITTING, S.RECORD_COMMITTED),
        (P.ENROLLING, E.WRITTEN): _t(P.PREPARING, S.ASK),
        (P.ENROLLING, E.NOT_WRITTEN): _t(P.ABORTING, S.TELL_ABORT),
        (P.ENROLLING, E.UNSURE): _t(P.ABORTING, S.TELL_ABORT),
        (P.COMMITTING, E.WRITTEN): _t(P.COMMITTED, S.TELL_COMMIT),
        (P.COMMITTING, E.NOT_WRITTEN): _t(P.ABORTING, S.TELL_ABORT),
        # The record may be there and found after a restart: nothing is said until it is revoked.
        (P.COMMITTING, E.UNSURE): _t(P.RETRACTING),
        (P.RETRACTING, E.TICK): _t(P.RETRACTING, S.RECORD_ABORTED),
        (P.RETRACTING, E.WRITTEN): _t(P.ABORTING, S.TELL_ABORT),
        (P.RETRACTING, E.NOT_WRITTEN): _t(P.RETRACTING),
        (P.RETRACTING, E.UNSURE): _t(P.RETRACTING),
        (P.COMMITTED, E.TICK): _t(P.COMMITTED, S.TELL_COMMIT),
        (P.COMMITTED, E.LIVE): _t(P.FINISHING, S.FINISH),
        (P.COMMITTED, E.DEAD): _t(P.REVERTING, S.RECORD_REVERTED),
        (P.COMMITTED, E.TARGET_GONE): _t(P.REVERTING, S.RECORD_REVERTED),
        (P.REVERTING, E.TICK): _t(P.REVERTING, S.RECORD_REVERTED),
        (P.REVERTING, E.WRITTEN): _t(P.ABORTING, S.TELL_ABORT),
        (P.REVERTING, E.NOT_WRITTEN): _t(P.REVERTING),
        (P.REVERTING, E.UNSURE): _t(P.REVERTING),
        (P.FINISHING, E.TICK): _t(P.FINISHING, S.FINISH_AGAIN),
        (P.FINISHING, E.DONE): _t(P.FINISHING),
        (P.FINISHING, E.FAILED): _t(P.FINISHING),
        (P.FINISHING, E.ALL_FINISHED): _t(P.ENDED, S.CLOSE),
        (P.ABORTING, E.TICK): _t(P.ABORTING, S.TELL_ABORT),
        (P.ABORTING, E.PEERS_UNDONE): _t(P.UNDOING, S.UNDO),
        (P.ABORTING, E.TIMEOUT): _t(P.UNDOING, S.UNDO),
        (P.UNDOING, E.TICK): _t(P.UNDOING, S.UNDO_AGAIN),
        (P.UNDOING, E.DONE): _t(P.SETTLING),
        (P.UNDOING, E.FAILED): _t(P.UNDOING),
        (P.SETTLING, E.TICK): _t(P.SETTLING, S.TELL_ABORT),
        (P.SETTLING, E.LATE_UNDONE): _t(P.UNDOING, S.UNDO),
        (P.SETTLING, E.ALL_UNDONE): _t(P.ENDED, S.FORGET),
    },
)

RECOVERY: Mapping[RecordKind, Transition[Phase, Step]] = {
    RecordKind.BEGUN: _t(P.ABORTING, S.TELL_ABORT),
    RecordKind.COMMITTED: _t(P.COMMITTED, S.TELL_COMMIT),
    RecordKind.LIVE: _t(P.FINISHING, S.FINISH_AGAIN),
    RecordKind.REVERTED: _t(P.ABORTING, S.TELL_ABORT),
    RecordKind.ABORTED: _t(P.ABORTING, S.TELL_ABORT),
}
"""What the last record means after a restart."""
