"""The handover's state machine: hold, capture, re-home, establish, commit, go live; and back.

The table does not know on which node anything happens. Two rules:

* Everything up to ``COMMITTED`` can be undone, and is undone in the reverse order of doing. A step
  that failed is undone too: it may have been done in part.
* Undoing goes on when a step of it fails. The connections that can still be saved are saved; the
  failures are reported together.

``COMMITTED`` is not yet the end of turning back: until ``GOING_LIVE`` nothing of the target has
been on the wire (the shield is up, the sockets are in repair mode), so when the target's tasks are
known to be dead the source may take over again.
"""

from enum import Enum

from mycoproxy.statetable import StateTable, Transition


class State(Enum):
    """Where a handover is."""

    IDLE = "idle"
    HOLDING = "holding"
    CAPTURING = "capturing"
    REHOMING = "re-homing"
    ESTABLISHING = "establishing"
    READY = "ready"
    COMMITTING = "committing"
    COMMITTED = "committed"
    GOING_LIVE = "going live"
    DONE = "done"
    DISCARDING = "discarding"
    UNDOING_REHOME = "undoing re-homing"
    RESUMING_SOURCE = "resuming the source's sockets"
    RELEASING_HOLD = "releasing the hold"
    ROLLED_BACK = "rolled back"


class Event(Enum):
    """What can happen to a handover. ``DONE`` and ``FAILED`` tell of the current action."""

    START = "start"
    DONE = "done"
    FAILED = "failed"
    COMMIT = "commit"
    ABORT = "abort"
    LIVE = "target resumes"
    TARGET_DEAD = "target is dead"


class Action(Enum):
    """What the executor has to do."""

    HOLD = "hold on the source"
    CAPTURE = "capture"
    REHOME = "re-home on the peers"
    ESTABLISH = "establish under the shield"
    RECORD_COMMIT = "record the commit"
    GO_LIVE = "lift the shield and leave repair mode"
    DISCARD = "discard the target's sockets"
    UNDO_REHOME = "undo re-homing"
    RESUME_SOURCE = "take the source's sockets out of repair mode"
    RELEASE_HOLD = "release the hold"


def _t(state: State, action: Action | None = None) -> Transition[State, Action]:
    return Transition(state, action)


TABLE: StateTable[State, Event, Action] = StateTable(
    State.IDLE,
    {
        (State.IDLE, Event.START): _t(State.HOLDING, Action.HOLD),
        (State.IDLE, Event.ABORT): _t(State.ROLLED_BACK),
        (State.HOLDING, Event.DONE): _t(State.CAPTURING, Action.CAPTURE),
        (State.HOLDING, Event.FAILED): _t(State.RELEASING_HOLD, Action.RELEASE_HOLD),
        (State.CAPTURING, Event.DONE): _t(State.REHOMING, Action.REHOME),
        (State.CAPTURING, Event.FAILED): _t(State.RESUMING_SOURCE, Action.RESUME_SOURCE),
        (State.REHOMING, Event.DONE): _t(State.ESTABLISHING, Action.ESTABLISH),
        (State.REHOMING, Event.FAILED): _t(State.UNDOING_REHOME, Action.UNDO_REHOME),
        (State.ESTABLISHING, Event.DONE): _t(State.READY),
        (State.ESTABLISHING, Event.FAILED): _t(State.DISCARDING, Action.DISCARD),
        (State.READY, Event.COMMIT): _t(State.COMMITTING, Action.RECORD_COMMIT),
        (State.READY, Event.ABORT): _t(State.DISCARDING, Action.DISCARD),
        (State.COMMITTING, Event.DONE): _t(State.COMMITTED),
        (State.COMMITTING, Event.FAILED): _t(State.DISCARDING, Action.DISCARD),
        (State.COMMITTED, Event.LIVE): _t(State.GOING_LIVE, Action.GO_LIVE),
        (State.COMMITTED, Event.TARGET_DEAD): _t(State.DISCARDING, Action.DISCARD),
        # There is no way back from here: what failed is reported, the target has the connections.
        (State.GOING_LIVE, Event.DONE): _t(State.DONE),
        (State.GOING_LIVE, Event.FAILED): _t(State.DONE),
        # Undoing, in reverse order; a failure does not stop it.
        (State.DISCARDING, Event.DONE): _t(State.UNDOING_REHOME, Action.UNDO_REHOME),
        (State.DISCARDING, Event.FAILED): _t(State.UNDOING_REHOME, Action.UNDO_REHOME),
        (State.UNDOING_REHOME, Event.DONE): _t(State.RESUMING_SOURCE, Action.RESUME_SOURCE),
        (State.UNDOING_REHOME, Event.FAILED): _t(State.RESUMING_SOURCE, Action.RESUME_SOURCE),
        (State.RESUMING_SOURCE, Event.DONE): _t(State.RELEASING_HOLD, Action.RELEASE_HOLD),
        (State.RESUMING_SOURCE, Event.FAILED): _t(State.RELEASING_HOLD, Action.RELEASE_HOLD),
        (State.RELEASING_HOLD, Event.DONE): _t(State.ROLLED_BACK),
        (State.RELEASING_HOLD, Event.FAILED): _t(State.ROLLED_BACK),
    },
)
