"""The search for wrong outcomes finds them: each rule of the agreement, broken, is noticed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from test_agreement_model import Model, ViolationError, World

from mycoproxy.agreement import absent, coordinator, participant
from mycoproxy.agreement.coordinator import TABLE
from mycoproxy.agreement.effects import Act, Action, Outcome, Send, Write
from mycoproxy.agreement.messages import Abort, Dead, Live
from mycoproxy.agreement.participant import PEER, TARGET
from mycoproxy.statetable import Transition

Patch = pytest.MonkeyPatch
C, P = coordinator, participant
HONEST_ACT = World.act
MUTANTS: dict[str, tuple[Callable[[Patch], None], str, int]] = {}


def mutant(noticed: str, *, faults: int) -> Callable[[Callable[[Patch], None]], None]:
    """A broken rule; what is found to be wrong in consequence, with so many faults."""

    def keep(break_it: Callable[[Patch], None]) -> None:
        MUTANTS[break_it.__name__] = break_it, noticed, faults

    return keep


def unforced(patch: Patch, machine: Any, step: Any, after: Any) -> None:
    """The record is written without being forced, and all goes on as if it had been."""
    honest = machine._EFFECTS[step]

    def mutated(state: Any) -> Any:
        state, (write,) = honest(state)
        state, effects = machine._take(state, after)
        return state, [Write(write.record, forced=False), *effects]

    patch.setitem(machine._EFFECTS, step, mutated)


@mutant("the source is gone and should run", faults=1)
def the_commit_is_not_forced(patch: Patch) -> None:
    unforced(patch, C, C.Step.RECORD_COMMITTED, C.Event.WRITTEN)


@mutant("round in circles", faults=2)
def the_source_does_not_force_that_it_takes_back(patch: Patch) -> None:
    unforced(patch, C, C.Step.RECORD_REVERTED, C.Event.WRITTEN)


@mutant("round in circles", faults=1)
def the_vote_is_not_forced(patch: Patch) -> None:
    unforced(patch, P, P.Step.RECORD_PREPARED, P.Event.WRITTEN)


@mutant("killed after it was let go", faults=2)
def the_target_does_not_force_the_commit_before_it_goes_live(patch: Patch) -> None:
    unforced(patch, P, P.Step.RECORD_COMMITTED, P.Event.WRITTEN)


@mutant("both copies run", faults=1)
def a_target_in_doubt_goes_live_alone(patch: Patch) -> None:
    row = Transition(P.Phase.GRANTED, P.Step.RECORD_COMMITTED)
    patch.setitem(TARGET.rows, (P.Phase.PREPARED, P.Event.TICK), row)


@mutant("round in circles", faults=0)
def a_target_in_doubt_undoes_alone(patch: Patch) -> None:
    row = Transition(P.Phase.UNDOING, P.Step.UNDO)
    patch.setitem(TARGET.rows, (P.Phase.PREPARED, P.Event.TICK), row)


@mutant("a path leads astray", faults=0)
def a_peer_in_doubt_undoes_alone(patch: Patch) -> None:
    row = Transition(P.Phase.UNDOING, P.Step.UNDO)
    patch.setitem(PEER.rows, (P.Phase.PREPARED, P.Event.TICK), row)


@mutant("final path to a copy that never ran", faults=1)
def the_commit_is_final_for_a_peer(patch: Patch) -> None:
    row = Transition(P.Phase.FINISHING, P.Step.FINISH)
    patch.setitem(PEER.rows, (P.Phase.PREPARED, P.Event.COMMIT), row)


@mutant("both copies run", faults=0)
def the_source_takes_over_when_the_target_is_silent_after_the_commit(patch: Patch) -> None:
    row = Transition(C.Phase.ABORTING, C.Step.TELL_ABORT)
    patch.setitem(TABLE.rows, (C.Phase.COMMITTED, C.Event.TIMEOUT), row)


@mutant("both copies run", faults=2)
def a_commit_that_may_be_written_is_taken_for_not_written(patch: Patch) -> None:
    row = TABLE.rows[C.Phase.COMMITTING, C.Event.NOT_WRITTEN]
    patch.setitem(TABLE.rows, (C.Phase.COMMITTING, C.Event.UNSURE), row)


@mutant("final that leads back", faults=2)
def a_vote_that_may_be_written_is_taken_for_not_written(patch: Patch) -> None:
    row = PEER.rows[P.Phase.VOTING, P.Event.NOT_WRITTEN]
    for table in (TARGET, PEER):
        patch.setitem(table.rows, (P.Phase.VOTING, P.Event.UNSURE), row)


@mutant("a path leads astray", faults=0)
def the_source_forgets_before_its_peers_are_done(patch: Patch) -> None:
    row = Transition(C.Phase.ENDED, C.Step.CLOSE)
    patch.setitem(TABLE.rows, (C.Phase.FINISHING, C.Event.DONE), row)


@mutant("a path leads to the target", faults=0)
def the_source_resumes_before_its_peers_are_undone(patch: Patch) -> None:
    def undo(state: Any) -> Any:
        state, _ = C._undo(state)
        return replace(state, unreached=frozenset()), [Act(Action.UNDO)]

    patch.setitem(C._EFFECTS, C.Step.UNDO, undo)


@mutant("killed after it was let go", faults=1)
def a_target_says_dead_when_going_live_only_failed(patch: Patch) -> None:
    row = Transition(P.Phase.DYING, P.Step.RECORD_DEAD)
    patch.setitem(TARGET.rows, (P.Phase.GOING_LIVE, P.Event.FAILED), row)


@mutant("removed before the copy has run", faults=0)
def a_target_says_live_before_it_is(patch: Patch) -> None:
    patch.setitem(P._EFFECTS, P.Step.GO_LIVE, P._all(P._tell(Live), P._act(Action.GO_LIVE)))


@mutant("both copies run", faults=2)
def a_target_says_dead_before_that_is_written(patch: Patch) -> None:
    honest = P._EFFECTS[P.Step.RECORD_DEAD]
    patch.setitem(P._EFFECTS, P.Step.RECORD_DEAD, P._all(P._tell(Dead), honest))
    for event in (P.Event.NOT_WRITTEN, P.Event.UNSURE):
        row = Transition(P.Phase.GOING_LIVE, P.Step.GO_LIVE)
        patch.setitem(TARGET.rows, (P.Phase.DYING, event), row)
    patch.setattr(World, "act", _revived)


def _revived(self: Any, node: str, action: Any, unreached: frozenset[str]) -> Any:
    """A copy of which was wrongly said that it never will run."""
    if (node, action.name, self.copy) == ("t", "GO_LIVE", "dead"):
        return replace(self, copy="running"), Outcome.DONE
    return HONEST_ACT(self, node, action, unreached)


@mutant("a peer begins anew", faults=0)
def an_ended_move_can_begin_anew(patch: Patch) -> None:
    honest = absent.answer
    patch.setattr(absent, "answer", lambda *args, **kw: honest(*args, **{**kw, "word": None}))


@mutant("a path leads to the target", faults=1)
def an_agent_takes_what_was_meant_for_its_former_life(patch: Patch) -> None:
    honest = absent.answer

    def mutated(node: str, message: Any, **kw: Any) -> Any:
        return honest(node, message, **{**kw, "life": 0})

    patch.setattr(absent, "answer", mutated)


@mutant("a copy is left", faults=1)
def what_is_begun_is_not_recorded(patch: Patch) -> None:
    unforced(patch, P, P.Step.RECORD_BEGUN, P.Event.WRITTEN)


@mutant("in the end: none", faults=1)
def a_source_does_not_record_that_it_begins(patch: Patch) -> None:
    unforced(patch, C, C.Step.RECORD_BEGUN, C.Event.WRITTEN)


@mutant("a path leads astray", faults=0)
def a_source_that_has_not_decided_answers_aborted(patch: Patch) -> None:
    honest = C._decision

    def mutated(state: Any, node: str) -> Any:
        undecided = state.phase is C.Phase.PREPARING
        return Abort(state.plan.move, state.keys.abort) if undecided else honest(state, node)

    patch.setattr(C, "_decision", mutated)


@mutant("round in circles", faults=0)
def decisions_are_told_once_only(patch: Patch) -> None:
    patch.setitem(TABLE.rows, (C.Phase.COMMITTED, C.Event.TICK), Transition(C.Phase.COMMITTED))
    for table in (TARGET, PEER):
        row: Transition[Any, Any] = Transition(P.Phase.PREPARED)
        patch.setitem(table.rows, (P.Phase.PREPARED, P.Event.TICK), row)


@mutant("round in circles", faults=0)
def the_target_forgets_without_being_told(patch: Patch) -> None:
    def forget(state: Any) -> Any:
        state, effects = P._forget_live(state)
        return state, [*effects, Send(state.source, Live(state.plan.move))]

    row = Transition(P.Phase.ENDED, P.Step.FORGET)
    patch.setitem(TARGET.rows, (P.Phase.GOING_LIVE, P.Event.DONE), row)
    patch.setitem(P._EFFECTS, P.Step.FORGET, forget)


@pytest.mark.parametrize("name", list(MUTANTS))
def test_the_search_notices_that(name: str, monkeypatch: Patch) -> None:
    break_it, noticed, faults = MUTANTS[name]
    break_it(monkeypatch)
    with pytest.raises(ViolationError, match=noticed):
        Model(faults=faults).explore(1_000_000)
