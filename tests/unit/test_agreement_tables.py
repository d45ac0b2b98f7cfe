"""The tables of the agreement: whole, told in the documentation, and without a state to hang in."""

from pathlib import Path
from typing import Any

import pytest

from mycoproxy.agreement import coordinator, participant
from mycoproxy.agreement.effects import RecordKind
from mycoproxy.agreement.messages import _KINDS
from mycoproxy.statetable import StateTable

DOCUMENT = Path(__file__).parents[2] / "docs" / "agreement.md"
TABLES: dict[str, tuple[StateTable[Any, Any, Any], Any]] = {
    "Source": (coordinator.TABLE, coordinator),
    "Target": (participant.TARGET, participant),
    "Peer": (participant.PEER, participant),
}
each_table = pytest.mark.parametrize("name", list(TABLES))


@each_table
def test_the_documentation_has_the_table_as_it_is(name: str) -> None:
    _, _, chapter = DOCUMENT.read_text(encoding="utf-8").partition(f"### {name}\n\n")
    written = chapter.split("\n\n")[0].splitlines()
    assert written == list(TABLES[name][0].markdown()), f"docs/agreement.md, {name}: paste these"


def test_the_documentation_names_every_message_and_record() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert all(f"`{kind.__name__}`" in text for kind in _KINDS.values())
    assert all(f"`{kind.value}`" in text for kind in RecordKind)


@each_table
def test_ended_is_the_only_end_and_every_state_leads_there(name: str) -> None:
    table, machine = TABLES[name]
    assert table.final_states() == {machine.Phase.ENDED}
    leads = {machine.Phase.ENDED}
    while True:
        more = {at for (at, _), to in table.rows.items() if to.state in leads} - leads
        if not more:
            break
        leads |= more
    assert table.reachable() <= leads


def test_every_state_and_step_is_in_a_table() -> None:
    assert coordinator.TABLE.reachable() == set(coordinator.Phase)
    both = participant.TARGET.reachable() | participant.PEER.reachable()
    assert both == set(participant.Phase)
    for machine, tables in (
        (coordinator, [coordinator.TABLE]),
        (participant, [participant.TARGET, participant.PEER]),
    ):
        rows = [to for table in tables for to in table.rows.values()]
        rows += list(machine.RECOVERY.values())
        assert {to.action for to in rows} - {None} == set(machine.Step)


@each_table
def test_a_state_that_waits_for_others_says_again_what_it_waits_for(name: str) -> None:
    table, machine = TABLES[name]
    writing = {"BEGINNING", "COMMITTING", "ENROLLING", "VOTING"}  # end by themselves, at once
    ticking = {at.name for at, event in table.rows if event is machine.Event.TICK}
    silent = {phase.name for phase in table.reachable()} - ticking - writing
    # The source's own deadline ends PREPARING; participants ask again themselves.
    assert silent == {"IDLE", "ENDED"} | ({"PREPARING"} if name == "Source" else set())


@each_table
def test_every_write_may_end_in_three_ways(name: str) -> None:
    table, machine = TABLES[name]
    events = machine.Event
    ways = {events.WRITTEN, events.NOT_WRITTEN, events.UNSURE}
    forced = {step for step in machine.Step if step.name.startswith("RECORD_")}
    forced -= {getattr(machine.Step, "RECORD_LIVE", None)}
    for to in table.rows.values():
        if to.action in forced:
            assert ways <= {event for at, event in table.rows if at is to.state}


def test_nothing_leads_from_the_way_back_to_a_commit() -> None:
    phase = coordinator.Phase
    leads, frontier = {phase.ABORTING}, [phase.ABORTING]
    while frontier:
        origin = frontier.pop()
        for (at, _), to in coordinator.TABLE.rows.items():
            if at is origin and to.state not in leads:
                leads.add(to.state)
                frontier.append(to.state)
    assert leads == {phase.ABORTING, phase.UNDOING, phase.SETTLING, phase.ENDED}
