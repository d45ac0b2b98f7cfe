"""Which node does what for which connection: every kind of path, decided from what nodes offer."""

from collections.abc import Mapping, Sequence

import pytest

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.handover.peer import is_in_force
from mycoproxy.handover.routes import Plan, Routes
from mycoproxy.handover.sides import Known, Offer, Task
from mycoproxy.netfilter.entry import ConntrackEntry, Direction, TcpTracking
from mycoproxy.netfilter.paths import Path
from mycoproxy.netfilter.translate import Move, compose

OLD, NEW = Endpoint("10.244.1.2", 6379), Endpoint("10.244.2.7", 6379)
ADDRESSES = {OLD.address: NEW.address}
CLIENT = Endpoint("10.244.3.9", 40000)
OUTSIDE = Endpoint("203.0.113.9", 50000)
VIRTUAL = Endpoint("10.96.0.10", 6379)
BACKEND = Endpoint("10.244.3.3", 8080)
ENTRY_NODE = Endpoint("192.0.2.3", 30000)
ANCHOR = Endpoint("192.0.2.1", OUTSIDE.port)  # the home node's own address

SERVED = FourTuple(OLD, CLIENT)


def entry(orig: tuple[Endpoint, Endpoint], reply: tuple[Endpoint, Endpoint]) -> ConntrackEntry:
    return ConntrackEntry(Direction(*orig), Direction(*reply), 0xE, 1000, TcpTracking(3))


TRACKED = entry((CLIENT, OLD), (OLD, CLIENT))


def plan(
    known: Known,
    *,
    home: Offer | None = None,
    elsewhere: Mapping[str, Offer] | None = None,
    target: str = "beta",
) -> Plan:
    routes = Routes(ADDRESSES, home="alpha", target=target)
    assert routes.unknown([known]) == [known]
    (outer,) = routes.learn_home([known], [home] if home else [])
    for node, offer in (elsewhere or {}).items():
        assert offer.connection == outer
        routes.learn(node, [offer])
    assert routes.unknown([known]) == []
    return routes.plan([known.name])


def tasks(found: Plan) -> dict[str, Sequence[Task]]:
    assert found.unreached == []
    return dict(found.tasks)


def done(found: Plan) -> set[tuple[str, Path]]:
    return {(one.peer, one.path) for one in found.rehomed}


def test_a_client_that_dialled_the_workload_is_translated_where_it_lives() -> None:
    found = plan(Known(SERVED), elsewhere={"gamma": Offer(SERVED, Path.TRANSLATE)})
    assert tasks(found) == {"gamma": [Task(SERVED, Path.TRANSLATE, FourTuple(NEW, CLIENT))]}
    assert found.via == {}


def test_a_client_on_the_workloads_node_is_translated_there() -> None:
    found = plan(Known(SERVED), home=Offer(SERVED, Path.TRANSLATE))
    assert tasks(found) == {"alpha": [Task(SERVED, Path.TRANSLATE, FourTuple(NEW, CLIENT))]}


@pytest.mark.parametrize("node", ["alpha", "beta", "gamma"])
def test_a_service_client_is_rebound_where_its_connection_is_natted(node: str) -> None:
    natted = entry((CLIENT, VIRTUAL), (OLD, CLIENT))
    offer = Offer(SERVED, Path.REBIND, natted)
    found = plan(
        Known(SERVED),
        home=offer if node == "alpha" else None,
        elsewhere={} if node == "alpha" else {node: offer},
    )
    assert (node, Path.REBIND) in done(found)
    assert found.tasks[node][0] == Task(SERVED, Path.REBIND, FourTuple(NEW, CLIENT))


def test_the_targets_node_and_those_on_the_way_are_told_and_home_forgets() -> None:
    found = plan(
        Known(SERVED),
        home=Offer(SERVED, Path.NOTHING, TRACKED),
        elsewhere={
            "gamma": Offer(SERVED, Path.TRANSLATE),
            "router": Offer(SERVED, Path.ADMIT, TRACKED),
            "beta": Offer(SERVED, Path.ADMIT, TRACKED),
        },
    )
    after = FourTuple(NEW, CLIENT)
    assert found.tasks["router"] == [Task(SERVED, Path.ADMIT, after)]
    assert found.tasks["alpha"] == [Task(SERVED, Path.NOTHING, after)]
    (told,) = found.tasks["beta"]
    assert told.entry is not None
    assert (told.entry.orig, told.entry.has_nat) == (Direction(CLIENT, NEW), False)


def test_a_node_that_masquerades_rebinds_and_the_workload_goes_on_knowing_the_node() -> None:
    name = FourTuple(OLD, ENTRY_NODE)
    natted = entry((OUTSIDE, Endpoint("192.0.2.3", 30080)), (OLD, ENTRY_NODE))
    found = plan(Known(name), elsewhere={"gamma": Offer(name, Path.REBIND, natted)})
    assert tasks(found) == {"gamma": [Task(name, Path.REBIND, FourTuple(NEW, ENTRY_NODE))]}


LOCAL = entry((OUTSIDE, Endpoint("192.0.2.1", 30081)), (OLD, OUTSIDE))
PLAIN = entry((OUTSIDE, OLD), (OLD, OUTSIDE))


@pytest.mark.parametrize(
    ("path", "known_entry"),
    [(Path.ANCHOR, LOCAL), (Path.NOTHING, PLAIN), (Path.NOTHING, None)],
    ids=["entered here, not masqueraded", "dialled the pod", "dialled the pod, untracked"],
)
def test_an_outside_client_is_anchored_at_home(
    path: Path, known_entry: ConntrackEntry | None
) -> None:
    name = FourTuple(OLD, OUTSIDE)
    found = plan(Known(name), home=Offer(name, path, known_entry, ANCHOR))
    after = FourTuple(NEW, ANCHOR)
    assert found.tasks["alpha"] == [Task(name, Path.ANCHOR, after)]
    assert found.via == {name: ANCHOR}
    if known_entry is not None:  # and the target's node takes its packets for what they are
        (told,) = found.tasks["beta"]
        assert told.path is Path.ADMIT and told.entry is not None
        assert told.entry.orig == Direction(ANCHOR, NEW)


def test_an_entry_node_that_is_not_home_can_anchor() -> None:
    name = FourTuple(OLD, OUTSIDE)
    elsewhere = {"gamma": Offer(name, Path.ANCHOR, LOCAL, ANCHOR)}
    found = plan(Known(name), home=Offer(name, Path.NOTHING, None, ENTRY_NODE), elsewhere=elsewhere)
    assert done(found) == {("gamma", Path.ANCHOR)}
    assert found.via == {name: ANCHOR}


def test_a_client_that_can_be_led_is_not_anchored() -> None:
    found = plan(
        Known(SERVED),
        home=Offer(SERVED, Path.NOTHING, TRACKED, ANCHOR),
        elsewhere={"gamma": Offer(SERVED, Path.TRANSLATE)},
    )
    assert found.via == {}
    assert ("alpha", Path.ANCHOR) not in done(found)


TO_SERVICE = FourTuple(Endpoint(OLD.address, 33000), VIRTUAL)
OPENED = entry((TO_SERVICE.local, VIRTUAL), (BACKEND, TO_SERVICE.local))
MOVED_OPENER = Endpoint(NEW.address, 33000)


def test_what_the_workload_opened_to_a_service_takes_its_nat_along() -> None:
    outer = FourTuple(TO_SERVICE.local, BACKEND)
    found = plan(
        Known(TO_SERVICE),
        home=Offer(TO_SERVICE, Path.CARRY, OPENED, ANCHOR),
        elsewhere={"gamma": Offer(outer, Path.TRANSLATE)},
    )
    assert found.tasks["gamma"] == [Task(outer, Path.TRANSLATE, FourTuple(MOVED_OPENER, BACKEND))]
    (carried,) = found.tasks["beta"]
    assert carried.path is Path.CARRY and carried.entry is not None
    assert carried.entry.orig == Direction(MOVED_OPENER, VIRTUAL)
    assert carried.entry.reply == Direction(BACKEND, MOVED_OPENER)
    assert [one.path for one in found.tasks["alpha"]] == [Path.NOTHING]
    assert found.via == {}


def test_if_nobody_leads_the_backend_the_nat_stays_at_home() -> None:
    found = plan(Known(TO_SERVICE), home=Offer(TO_SERVICE, Path.CARRY, OPENED, ANCHOR))
    assert ("alpha", Path.ANCHOR) in done(found)
    assert found.via == {TO_SERVICE: ANCHOR}


def test_what_left_through_masquerade_stays_anchored() -> None:
    name = FourTuple(Endpoint(OLD.address, 33000), OUTSIDE)
    left = entry((name.local, OUTSIDE), (OUTSIDE, Endpoint("192.0.2.1", 61000)))
    found = plan(Known(name), home=Offer(name, Path.ANCHOR, left, ANCHOR))
    assert found.tasks["alpha"] == [Task(name, Path.ANCHOR, FourTuple(MOVED_OPENER, ANCHOR))]
    assert found.via == {name: ANCHOR}


def test_a_workload_that_dialled_its_own_service_carries_one_entry_for_both_ends() -> None:
    hairpin = Endpoint("10.244.1.1", 41000)
    one = entry((TO_SERVICE.local, VIRTUAL), (OLD, hairpin))
    opener = plan(Known(TO_SERVICE), home=Offer(TO_SERVICE, Path.CARRY, one, ANCHOR))
    listener_name = FourTuple(OLD, hairpin)
    listener = plan(Known(listener_name), home=Offer(listener_name, Path.CARRY, one, ANCHOR))
    entries = [found.tasks["beta"][0].entry for found in (opener, listener)]
    assert entries[0] == entries[1]
    assert entries[0] is not None
    assert entries[0].orig == Direction(MOVED_OPENER, VIRTUAL)
    assert entries[0].reply == Direction(NEW, hairpin)


AGAIN = Known(FourTuple(OLD, OUTSIDE), via=Endpoint("192.0.2.5", OUTSIDE.port))
AT_ANCHOR = entry((OUTSIDE, Endpoint("192.0.2.5", 30081)), (OLD, Endpoint("192.0.2.5", 50000)))


def test_an_anchored_connection_that_moves_again_keeps_its_anchor() -> None:
    assert AGAIN.via is not None
    wire = FourTuple(OLD, AGAIN.via)
    found = plan(AGAIN, elsewhere={"delta": Offer(wire, Path.REBIND, AT_ANCHOR)})
    assert found.tasks["delta"] == [Task(wire, Path.REBIND, FourTuple(NEW, AGAIN.via))]
    assert found.via == {AGAIN.name: AGAIN.via}


def test_an_anchored_connection_that_comes_to_its_anchor_is_free_again() -> None:
    assert AGAIN.via is not None
    wire = FourTuple(OLD, AGAIN.via)
    found = plan(AGAIN, elsewhere={"delta": Offer(wire, Path.REBIND, AT_ANCHOR)}, target="delta")
    assert found.tasks["delta"] == [Task(wire, Path.REBIND, FourTuple(NEW, OUTSIDE))]
    assert found.via == {}


def test_a_connection_that_nobody_leads_is_named() -> None:
    found = plan(Known(SERVED))
    assert found.unreached == [SERVED]
    assert found.tasks == {}


def test_a_kept_address_needs_nobody() -> None:
    known = Known(FourTuple(Endpoint("10.9.9.9", 80), CLIENT))
    found = plan(known)
    assert (dict(found.tasks), found.unreached, found.via) == ({}, [], {})


def test_what_nodes_have_kept_finds_its_connection_by_the_name_that_they_use() -> None:
    assert AGAIN.via is not None
    wire = FourTuple(OLD, AGAIN.via)
    found = plan(AGAIN, elsewhere={"delta": Offer(wire, Path.REBIND, AT_ANCHOR)})
    assert found.wire_names[wire] == AGAIN.name


PLACES = [OLD, NEW, Endpoint("10.244.3.7", OLD.port + 1)]


@pytest.mark.parametrize("history", [[], [1], [1, 2], [2, 1, 0]])
@pytest.mark.parametrize("to", [0, 1, 2])
def test_whether_a_translation_was_made_is_seen_from_what_is_there(
    history: list[int], to: int
) -> None:
    def at(place: int) -> FourTuple:
        return FourTuple(PLACES[place], CLIENT)

    before = {FourTuple(OLD, OUTSIDE): NEW}
    here = 0
    for place in history:
        before = compose(before, [Move(at(here), PLACES[place])])
        here = place
    if to == here:
        return
    move = Move(at(here), PLACES[to])
    assert not is_in_force(move, before=before, now=before)
    assert is_in_force(move, before=before, now=compose(before, [move]))
