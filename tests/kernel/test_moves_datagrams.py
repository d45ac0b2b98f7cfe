"""UDP flows in handovers between agents: led, passed on, and never a reason for anything else."""

import asyncio
import functools
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agents_lab import AgentsLab
from handover_lab import family
from tcp_lab import receive_exactly

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.handover import datagram_plain
from mycoproxy.handover.datagram_routes import FlowTask
from mycoproxy.moves.driver import Answer
from mycoproxy.moves.led_flows import LedFlows
from mycoproxy.moves.methods import Method
from mycoproxy.netfilter.conntrack import Conntrack
from mycoproxy.netfilter.datagram_flows import TABLE
from mycoproxy.netfilter.nft import Nft
from mycoproxy.netfilter.paths import Path as Way
from mycoproxy.peering import RequestError

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

PORT = 7000
FD = 30
SECONDS = 5.0
_SOL_IP, _IP_RECVERR = 0, 11
_SOL_IPV6, _IPV6_RECVERR = 41, 25


@pytest.fixture
def lab(network: Any, request: Any, tmp_path: Path) -> Iterator[AgentsLab]:
    made = AgentsLab(network, getattr(request, "param", 4), tmp_path)
    try:
        yield made
    finally:
        made.close()


both = pytest.mark.parametrize("lab", [4, 6], indirect=True)


class Flow:
    """A socket of the workload, which asks for errors, and a client of it with one that is
    connected."""

    def __init__(self, lab: AgentsLab) -> None:
        self.lab = lab
        wild = "0.0.0.0" if lab.version == 4 else "::"
        level, option = (_SOL_IP, _IP_RECVERR) if lab.version == 4 else (_SOL_IPV6, _IPV6_RECVERR)
        bind = f"u = socket.socket({family(lab)}, socket.SOCK_DGRAM); u.bind(({wild!r}, {PORT}))"
        lab.source.do(bind, f"u.setsockopt({level}, {option}, 1)", f"place(u, {FD})")
        lab.copy.do(bind, f"place(u, {FD})")
        self.options = (level, option)
        kind = socket.AF_INET if lab.version == 4 else socket.AF_INET6
        made = lab.c.call(functools.partial(socket.socket, kind, socket.SOCK_DGRAM))
        self.client: socket.socket = lab.keep(made)
        self.client.settimeout(SECONDS)
        self.client.connect((lab.address["a"], PORT))

    def ask(self, text: bytes) -> None:
        self.client.send(text)

    def assert_served(self, *asked: bytes) -> None:
        """Where the workload runs these have come, and are answered."""
        place = self.lab.copy if self.lab.driven.copy_runs else self.lab.source
        with place.socket(FD) as sock:
            sock.settimeout(SECONDS)
            for text in asked:
                data, source = sock.recvfrom(100)
                assert data == text
                sock.sendto(b"re: " + text, source)
                assert self.client.recv(100) == b"re: " + text

    def led_at_client(self) -> bool:
        def has_table() -> bool:
            with Nft() as nft:
                return nft.has_table(TABLE)

        return bool(self.lab.c.call(has_table))


def asked_of(lab: AgentsLab, name: str) -> list[str]:
    """What others ask of an agent from now on."""
    asked: list[str] = []
    requests = lab.agents[name].engine._requests
    handle = requests.handle

    async def watched(peer: str, method: str, args: dict[str, Any], body: Any) -> Any:
        asked.append(method)
        return await handle(peer, method, args, body)

    requests.handle = watched  # type: ignore[method-assign]
    return asked


def open_parts(lab: AgentsLab) -> list[Any]:
    return [part for one in lab.agents.values() for part in one.engine._requests.datagrams.parts]


async def closed(lab: AgentsLab) -> None:
    await lab.until(lambda: not open_parts(lab), "closed for datagrams")


async def moved(lab: AgentsLab) -> dict[str, Any]:
    """Hand over; what is said of datagrams."""
    engine = lab.agents["a"].engine
    did_move, report = await asyncio.wait_for(engine.hand_over("move"), 20)
    assert did_move
    said: dict[str, Any] = report.to_plain()["datagrams"]
    return said


@both
def test_agents_lead_a_flow_and_pass_on_what_came_while_nobody_ran(lab: AgentsLab) -> None:
    flow = Flow(lab)
    flow.ask(b"before")
    flow.assert_served(b"before")

    async def scenario() -> dict[str, Any]:
        async with lab:
            await lab.begin()
            flow.ask(b"while it stood")
            said = await moved(lab)
            await lab.until_settled()
            await closed(lab)
            return said

    said = asyncio.run(scenario())
    flow.ask(b"after")
    flow.assert_served(b"while it stood", b"after")
    assert said == {"flows": 1, "passed_on": 1, "remarks": []}
    with lab.copy.socket(FD) as sock:
        assert sock.getsockopt(*flow.options) == 1


def test_a_workload_without_udp_pays_for_no_request(lab: AgentsLab) -> None:
    async def scenario() -> list[str]:
        async with lab:
            asked = [asked_of(lab, name) for name in "abc"]
            await lab.begin()
            said = await moved(lab)
            assert said == {"flows": 0, "passed_on": 0, "remarks": []}
            await lab.until_settled()
            return [method for one in asked for method in one]

    asked = asyncio.run(scenario())
    assert "move.open" in asked
    assert [method for method in asked if method.startswith("datagrams")] == []


def test_a_node_that_does_not_answer_about_udp_costs_the_move_nothing_but_that(
    lab: AgentsLab,
) -> None:
    flow = Flow(lab)
    lab.source.listen(10, "0.0.0.0", PORT)
    lab.copy.listen(10, "0.0.0.0", PORT)
    client = lab.dial(lab.address["a"], PORT)
    lab.source.accept(10, 20)
    lab.copy.do(f"closed_as_criu_does(20, {family(lab)})")

    async def never(*_: object) -> None:
        await asyncio.sleep(20)

    async def scenario() -> dict[str, Any]:
        async with lab:
            lab.agents["c"].engine._requests.datagrams.handle = never  # type: ignore[method-assign,assignment]
            await lab.begin()
            flow.ask(b"question")
            said = await moved(lab)
            await lab.until_settled()
            return said

    said = asyncio.run(scenario())
    client.sendall(b"ping")
    with lab.copy.socket(20) as sock:
        assert receive_exactly(sock, 4) == b"ping"
    assert said["passed_on"] == 1
    assert any("not all were found in time" in remark for remark in said["remarks"])
    assert any("pass c are left as they are" in remark for remark in said["remarks"])


def test_a_move_that_is_given_up_leads_nothing_and_leaves_nothing(lab: AgentsLab) -> None:
    flow = Flow(lab)
    lab.resume_answer = Answer.DEAD

    async def scenario() -> None:
        async with lab:
            await lab.begin()
            flow.ask(b"while it stood")
            assert not (await lab.agents["a"].engine.hand_over("move"))[0]
            await lab.until_settled()
            await closed(lab)

    asyncio.run(scenario())
    assert lab.driven.source_goes_on
    flow.ask(b"after")
    flow.assert_served(b"while it stood", b"after")
    assert not flow.led_at_client()


POINTS = [("a", 0), ("a", 3), ("a", 5), ("a", 7), ("b", 1), ("b", 3), ("b", 5), ("c", 0), ("c", 2)]


@pytest.mark.parametrize(("name", "order"), POINTS)
def test_whenever_an_agent_is_killed_nothing_is_left_open_for_datagrams(
    lab: AgentsLab, name: str, order: int
) -> None:
    flow = Flow(lab)
    lab.source.listen(10, "0.0.0.0", PORT)
    lab.copy.listen(10, "0.0.0.0", PORT)
    lab.dial(lab.address["a"], PORT)
    lab.source.accept(10, 20)
    lab.copy.do(f"closed_as_criu_does(20, {family(lab)})")

    async def scenario() -> None:
        async with lab:
            await lab.begin()
            lab.kill_at(name, order)
            flow.ask(b"question")
            lab.hand_over_later()
            await lab.until_settled()
            await closed(lab)

    asyncio.run(scenario())
    if lab.driven.source_goes_on:
        flow.assert_served(b"question")
        assert not flow.led_at_client()


def test_only_the_source_of_the_move_is_answered_and_nothing_is_led_too_early(
    lab: AgentsLab,
) -> None:
    Flow(lab)
    old, new = lab.address["a"], lab.address["b"]
    elsewhere = Endpoint(lab.address["c"], 999)

    def task(local: str, after: str) -> bytes:
        flow = FourTuple(Endpoint(local, PORT), elsewhere)
        led = FlowTask(flow, Way.TRANSLATE, FourTuple(Endpoint(after, PORT), elsewhere))
        return datagram_plain.tasks_to_bytes([led])

    async def refusal(asker: str, node: str, method: Method, body: bytes) -> str:
        args = {"move": "move", "addresses": lab.addresses, "ports": [PORT]}
        call = lab.agents[asker]._call
        with pytest.raises(RequestError) as caught:
            await call(node, method.value, args, body, deadline=SECONDS)
        return caught.value.code

    async def scenario() -> None:
        async with lab:
            await lab.begin()
            for method in (Method.DATAGRAM_SURVEY, Method.DATAGRAM_ASK, Method.DATAGRAM_LEAD):
                assert await refusal("b", "c", method, task(old, new)) == "unknown"
            for method in (Method.DATAGRAM_RESTORE, Method.DATAGRAM_DELIVER):
                assert await refusal("c", "b", method, b"") == "role"
            assert await refusal("a", "b", Method.DATAGRAM_LEAD, task(old, new)) == "early"
            for local, after in ((lab.address["c"], new), (old, lab.address["c"])):
                code = await refusal("a", "c", Method.DATAGRAM_LEAD, task(local, after))
                assert code == "failed"
            await moved(lab)
            await lab.until_settled()

    asyncio.run(scenario())


def test_what_leads_is_removed_when_no_flow_is_led_any_more(lab: AgentsLab) -> None:
    flow = Flow(lab)

    def end_all() -> None:
        with Conntrack() as conntrack:
            conntrack.delete(list(conntrack.dump_datagrams(version=4)))

    async def scenario() -> None:
        async with lab:
            await lab.begin()
            await moved(lab)
            await lab.until_settled()
            await closed(lab)
            led = LedFlows(lab.c.worker)
            await led.look()
            assert led.remain
            assert flow.led_at_client()
            lab.c.call(end_all)
            await led.look()
            assert led.remain  # it is not time yet
            led.begin()
            await led.look()
            assert not led.remain
            assert not flow.led_at_client()

    asyncio.run(scenario())
