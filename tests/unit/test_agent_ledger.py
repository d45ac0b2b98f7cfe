"""What moves leave on a node, by name: how it is told apart, kept, and forgotten."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.agent.ledger import Ledger, Translated
from mycoproxy.handover.peer import Changes
from mycoproxy.netfilter.entry import ConntrackEntry, Direction
from mycoproxy.netfilter.paths import Path as Way
from mycoproxy.netfilter.rebind import Rebound
from mycoproxy.netfilter.translate import Move

NODE = Path("/proc/self/ns/net")
CLIENT, SERVICE = Endpoint("10.0.0.9", 40000), Endpoint("10.96.0.10", 80)
OLD, NEW, NEXT = (Endpoint(f"10.0.{number}.2", 8080) for number in (1, 2, 3))
OUTSIDE, OWN = Endpoint("192.0.2.7", 443), Endpoint("10.0.0.1", 40000)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "rehomed.json")


def entry(orig: tuple[Endpoint, Endpoint], reply: tuple[Endpoint, Endpoint]) -> ConntrackEntry:
    return ConntrackEntry(Direction(*orig), Direction(*reply), status=0, timeout=0)


def changes(**given: object) -> Changes:
    nothing = Changes(moves=[], translated={}, replaced={}, added=[], obsolete=[], needs_nat=False)
    return replace(nothing, **given)  # type: ignore[arg-type]


def dialled_service(now: Endpoint) -> ConntrackEntry:
    return entry((CLIENT, SERVICE), (now, CLIENT))


def rebound(old: Endpoint, new: Endpoint) -> Changes:
    change = Rebound(dialled_service(old), dialled_service(new))
    return changes(replaced={FourTuple(old, CLIENT): change})


def test_a_rebound_connection_is_known_by_its_client_and_its_last_move(ledger: Ledger) -> None:
    assert ledger.note("one", NODE, rebound(OLD, NEW), ()) == {Way.REBIND: 1}
    assert ledger.note("two", NODE, rebound(NEW, NEXT), ()) == {Way.REBIND: 1}
    (led,) = ledger.led
    assert (led.move, led.strategy, led.now) == ("two", Way.REBIND, NEXT)
    assert led.outer == (CLIENT, SERVICE)


def test_what_had_ended_before_is_neither_counted_nor_known(ledger: Ledger) -> None:
    ended = FourTuple(OLD, CLIENT)
    given = replace(rebound(OLD, NEW), moves=[Move(ended, NEW)])
    assert ledger.note("one", NODE, given, {ended}) == {}
    assert not len(ledger)


def test_an_outside_client_that_dialled_the_workload_is_anchored_and_stays_so(
    ledger: Ledger,
) -> None:
    plain = entry((OUTSIDE, OLD), (OLD, OUTSIDE))
    anchored = entry((OUTSIDE, OLD), (NEW, OWN))
    onward = entry((OUTSIDE, OLD), (NEXT, OWN))
    first = changes(replaced={FourTuple(OLD, OUTSIDE): Rebound(plain, anchored)})
    assert ledger.note("one", NODE, first, ()) == {Way.ANCHOR: 1}
    ledger.note("two", NODE, changes(replaced={FourTuple(NEW, OWN): Rebound(anchored, onward)}), ())
    (led,) = ledger.led
    assert (led.move, led.strategy, led.now) == ("two", Way.ANCHOR, NEXT)
    # It comes back to this node: nothing stands between the two any more.
    home = changes(replaced={FourTuple(NEXT, OWN): Rebound(onward, plain)})
    assert ledger.note("three", NODE, home, ()) == {Way.REBIND: 1}
    (led,) = ledger.led
    assert led.strategy is Way.REBIND


def test_what_the_workload_opened_through_nat_is_anchored(ledger: Ledger) -> None:
    masqueraded = entry((OLD, OUTSIDE), (OUTSIDE, OWN))
    anchor = Endpoint("10.0.0.1", 443)
    change = Rebound(masqueraded, entry((NEW, anchor), (OUTSIDE, OWN)))
    counts = ledger.note("one", NODE, changes(replaced={FourTuple(OLD, OUTSIDE): change}), ())
    assert counts == {Way.ANCHOR: 1}
    (led,) = ledger.led
    assert (led.outer, led.now) == ((OUTSIDE, OWN), NEW)


def test_a_carried_entry_is_known_and_one_for_a_firewall_is_only_counted(ledger: Ledger) -> None:
    carried = entry((NEW, SERVICE), (OUTSIDE, NEW))
    told = entry((CLIENT, NEW), (NEW, CLIENT))
    counts = ledger.note("one", NODE, changes(added=[carried, told]), ())
    assert counts == Counter({Way.CARRY: 1, Way.ADMIT: 1})
    assert [led.strategy for led in ledger.led] == [Way.CARRY]


def test_the_next_agent_knows_the_same(ledger: Ledger, tmp_path: Path) -> None:
    ledger.note("one", NODE, rebound(OLD, NEW), ())
    name = FourTuple(OLD, CLIENT)
    ledger.note("two", NODE, changes(moves=[Move(name, NEW)]), ())
    ledger.save()
    again = Ledger(tmp_path / "rehomed.json")
    assert again.led == ledger.led
    assert again.move_of(Translated(str(NODE), CLIENT, NEW)) == "two"
    assert again.move_of(Translated(str(NODE), CLIENT, OLD)) == ""


@pytest.mark.parametrize("text", ["", "[]", "{", '{"led": [[1]], "translated": []}'])
def test_a_file_that_makes_no_sense_costs_the_names_only(tmp_path: Path, text: str) -> None:
    file = tmp_path / "rehomed.json"
    file.write_text(text)
    assert not len(Ledger(file))


def test_what_is_gone_is_forgotten_where_somebody_has_looked(ledger: Ledger) -> None:
    ledger.note("one", NODE, rebound(OLD, NEW), ())
    (led,) = ledger.led
    kept = changes(moves=[Move(FourTuple(OLD, CLIENT), NEW)])
    ledger.note("two", NODE, kept, ())
    ledger.note("two", Path("/run/netns/pod"), kept, ())
    ledger.forget([led], set(), {str(NODE)})
    assert ledger.led == []
    assert ledger.move_of(Translated(str(NODE), CLIENT, NEW)) == ""
    assert ledger.move_of(Translated("/run/netns/pod", CLIENT, NEW)) == "two"
