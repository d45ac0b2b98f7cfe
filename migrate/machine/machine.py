"""The whole migration's state machine; the handover (``mycoproxy.handover``) is one step of it.

Two rules:

* Before the commit every failure leads back to the running source. After it, only the target's
  death before its first instruction does (``RESUMING`` failed): nothing ran, nothing was sent.
* The source takes over again only once the copy is known to be dead. If that cannot be made sure
  (``ABORTING`` failed) the source stays frozen: two live copies are worse than none.
"""

from enum import Enum

from mycoproxy.statetable import StateTable, Transition


class State(Enum):
    """Where a migration is."""

    IDLE = "idle"
    CHECKING = "checking"
    PREPARING = "preparing"
    FREEZING = "freezing"
    DUMPING = "dumping"
    SENDING = "sending"
    RESTORING = "restoring"
    HANDING_OVER = "handing over"
    COMMITTING = "committing"
    RESUMING = "resuming"
    GOING_LIVE = "going live"
    FINISHING = "finishing"
    REMOVING_SOURCE = "removing the source"
    CLEANING_UP = "cleaning up"
    DONE = "done"
    REFUSED = "refused"
    ABORTING = "aborting the restore"
    UNDOING_HANDOVER = "undoing the handover"
    THAWING = "thawing the source"
    CLEANING_UP_AFTER_FAILURE = "cleaning up after a failure"
    ROLLED_BACK = "rolled back"
    STUCK = "stuck"


class Event(Enum):
    """``DONE`` and ``FAILED`` tell of the current action."""

    START = "start"
    DONE = "done"
    FAILED = "failed"


class Action(Enum):
    """What the mover has to do."""

    CHECK = "preflight"
    PREPARE = "prepare both sides"
    FREEZE = "freeze"
    DUMP = "dump"
    SEND = "send what is left"
    RESTORE = "restore up to post-restore"
    HAND_OVER = "hand over the connections"
    COMMIT = "commit"
    RESUME = "let CRIU go on"
    GO_LIVE = "let the connections live"
    FINISH = "wait for the restore's end"
    REMOVE_SOURCE = "remove the source silently"
    CLEAN_UP = "clean up"
    ABORT_RESTORE = "kill the copy"
    UNDO_HANDOVER = "undo the handover"
    THAW = "thaw the source"


def _t(state: State, action: Action | None = None) -> Transition[State, Action]:
    return Transition(state, action)


_ABORT = _t(State.ABORTING, Action.ABORT_RESTORE)
_THAW = _t(State.THAWING, Action.THAW)
_CLEAN_FAILURE = _t(State.CLEANING_UP_AFTER_FAILURE, Action.CLEAN_UP)
_REMOVE = _t(State.REMOVING_SOURCE, Action.REMOVE_SOURCE)

TABLE: StateTable[State, Event, Action] = StateTable(
    State.IDLE,
    {
        (State.IDLE, Event.START): _t(State.CHECKING, Action.CHECK),
        (State.CHECKING, Event.DONE): _t(State.PREPARING, Action.PREPARE),
        (State.CHECKING, Event.FAILED): _t(State.REFUSED),
        (State.PREPARING, Event.DONE): _t(State.FREEZING, Action.FREEZE),
        (State.PREPARING, Event.FAILED): _CLEAN_FAILURE,
        (State.FREEZING, Event.DONE): _t(State.DUMPING, Action.DUMP),
        (State.FREEZING, Event.FAILED): _THAW,
        (State.DUMPING, Event.DONE): _t(State.SENDING, Action.SEND),
        (State.DUMPING, Event.FAILED): _THAW,
        (State.SENDING, Event.DONE): _t(State.RESTORING, Action.RESTORE),
        (State.SENDING, Event.FAILED): _THAW,
        (State.RESTORING, Event.DONE): _t(State.HANDING_OVER, Action.HAND_OVER),
        (State.RESTORING, Event.FAILED): _ABORT,
        (State.HANDING_OVER, Event.DONE): _t(State.COMMITTING, Action.COMMIT),
        (State.HANDING_OVER, Event.FAILED): _ABORT,
        (State.COMMITTING, Event.DONE): _t(State.RESUMING, Action.RESUME),
        (State.COMMITTING, Event.FAILED): _ABORT,
        (State.RESUMING, Event.DONE): _t(State.GOING_LIVE, Action.GO_LIVE),
        (State.RESUMING, Event.FAILED): _ABORT,
        # No way back from here on: failures are reported, the work goes on to its end.
        (State.GOING_LIVE, Event.DONE): _t(State.FINISHING, Action.FINISH),
        (State.GOING_LIVE, Event.FAILED): _t(State.FINISHING, Action.FINISH),
        (State.FINISHING, Event.DONE): _REMOVE,
        (State.FINISHING, Event.FAILED): _REMOVE,
        (State.REMOVING_SOURCE, Event.DONE): _t(State.CLEANING_UP, Action.CLEAN_UP),
        (State.REMOVING_SOURCE, Event.FAILED): _t(State.CLEANING_UP, Action.CLEAN_UP),
        (State.CLEANING_UP, Event.DONE): _t(State.DONE),
        (State.CLEANING_UP, Event.FAILED): _t(State.DONE),
        # The way back.
        (State.ABORTING, Event.DONE): _t(State.UNDOING_HANDOVER, Action.UNDO_HANDOVER),
        (State.ABORTING, Event.FAILED): _t(State.STUCK),
        (State.UNDOING_HANDOVER, Event.DONE): _THAW,
        (State.UNDOING_HANDOVER, Event.FAILED): _THAW,
        (State.THAWING, Event.DONE): _CLEAN_FAILURE,
        (State.THAWING, Event.FAILED): _CLEAN_FAILURE,
        (State.CLEANING_UP_AFTER_FAILURE, Event.DONE): _t(State.ROLLED_BACK),
        (State.CLEANING_UP_AFTER_FAILURE, Event.FAILED): _t(State.ROLLED_BACK),
    },
)
