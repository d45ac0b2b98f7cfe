"""Who leads a flow: one node, the nearest to the other end; or it is said that nobody does."""

import socket

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.handover.datagram_routes import FlowOffer, FlowPlan, FlowRoutes, FlowTask
from mycoproxy.netfilter import abi
from mycoproxy.netfilter.entry import ConntrackEntry, Direction
from mycoproxy.netfilter.paths import Path

OLD, NEW = Endpoint("10.1.0.2", 53), Endpoint("10.2.0.9", 53)
CLIENT, VIRTUAL = Endpoint("10.3.0.4", 4000), Endpoint("10.96.0.10", 53)
FLOW, AFTER = FourTuple(OLD, CLIENT), FourTuple(NEW, CLIENT)


def entry(orig: Direction, reply: Direction | None = None) -> ConntrackEntry:
    return ConntrackEntry(
        orig,
        orig.reversed() if reply is None else reply,
        abi.IPS_CONFIRMED | abi.IPS_SEEN_REPLY,
        30,
        protocol=socket.IPPROTO_UDP,
    )


PLAIN = entry(Direction(CLIENT, OLD))
NATED = entry(Direction(CLIENT, VIRTUAL), Direction(OLD, CLIENT))


def plan(*offers: tuple[str, FlowOffer], flow: FourTuple = FLOW, fixed: bool = False) -> FlowPlan:
    routes = FlowRoutes({OLD.address: NEW.address}, home="home", target="target")
    for node, offer in offers:
        routes.learn(node, [offer])
    return routes.plan([flow], frozenset([flow] if fixed else []))


def leading(made: FlowPlan) -> list[tuple[str, Path]]:
    return [
        (node, task.path)
        for node, tasks in made.tasks.items()
        for task in tasks
        if task.path is not Path.ADMIT
    ]


def offer(path: Path, known: ConntrackEntry | None = None, *, certain: bool = True) -> FlowOffer:
    return FlowOffer(FLOW, path, known, certain)


def test_the_node_that_nats_comes_first() -> None:
    made = plan(
        ("a", offer(Path.TRANSLATE)),
        ("b", offer(Path.REBIND, NATED)),
        ("c", offer(Path.ADMIT, PLAIN)),
    )
    assert leading(made) == [("b", Path.REBIND)]
    assert made.after == {FLOW: AFTER}
    assert made.remarks == []


def test_then_the_place_of_the_other_end_then_its_node_then_a_router() -> None:
    router = ("router", offer(Path.ADMIT, PLAIN, certain=False))
    node = ("node", offer(Path.ADMIT, PLAIN))
    pod = ("node", offer(Path.TRANSLATE))
    assert leading(plan(router, node, pod)) == [("node", Path.TRANSLATE)]
    assert leading(plan(router, node)) == [("node", Path.REBIND)]
    assert leading(plan(router)) == [("router", Path.REBIND)]


def test_what_the_workload_opened_through_nat_goes_along_to_the_target() -> None:
    flow = FourTuple(OLD, VIRTUAL)
    backend = Endpoint("10.3.0.7", 53)
    known = entry(Direction(OLD, VIRTUAL), Direction(backend, OLD))
    made = plan(("home", FlowOffer(flow, Path.CARRY, known)), flow=flow)
    (task,) = made.tasks["target"]
    assert task.path is Path.CARRY
    assert task.entry is not None
    assert task.entry.orig == Direction(NEW, VIRTUAL)
    assert task.entry.reply == Direction(backend, NEW)


def test_the_target_learns_of_what_never_passed_it() -> None:
    made = plan(("home", offer(Path.NOTHING, PLAIN)), ("a", offer(Path.TRANSLATE)))
    (task,) = made.tasks["target"]
    assert task == FlowTask(FLOW, Path.ADMIT, AFTER, task.entry)
    assert task.entry is not None
    assert (task.entry.orig, task.entry.reply) == (Direction(CLIENT, NEW), Direction(NEW, CLIENT))


def test_what_is_left_goes_on_through_the_old_node_and_it_is_said() -> None:
    last = FlowOffer(FLOW, Path.NOTHING, PLAIN, anchor="192.0.2.2")
    made = plan(("home", last))
    through = FourTuple(NEW, Endpoint("192.0.2.2", CLIENT.port))
    assert list(made.tasks["home"]) == [FlowTask(FLOW, Path.ANCHOR, through)]
    assert made.after == {FLOW: through}
    (remark,) = made.remarks
    assert "goes on through home" in remark


def test_but_not_if_the_workloads_socket_is_connected_or_it_called_itself() -> None:
    opened = entry(Direction(OLD, CLIENT))
    for made in (
        plan(("home", FlowOffer(FLOW, Path.NOTHING, PLAIN, anchor="192.0.2.2")), fixed=True),
        plan(("home", FlowOffer(FLOW, Path.NOTHING, opened, anchor="192.0.2.2"))),
        plan(),
    ):
        assert leading(made) == []
        (remark,) = made.remarks
        assert "nobody leads it" in remark


def test_nothing_is_done_for_an_address_that_stays() -> None:
    flow = FourTuple(Endpoint("10.9.9.9", 53), CLIENT)
    made = plan(("a", FlowOffer(flow, Path.REBIND, NATED)), flow=flow)
    assert made.tasks == {}
    assert made.remarks == []
