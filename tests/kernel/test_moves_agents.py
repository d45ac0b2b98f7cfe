"""Handovers between agents: all goes well, an agent is killed, links are cut, the copy dies."""

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import agents_lab
import pytest
from agents_lab import SECONDS, AgentsLab
from handover_lab import family
from tcp_lab import DEADLINE, receive_exactly

from mycoproxy.moves.driver import Answer
from mycoproxy.moves.peer import PeerPart

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

PORT = 7000


@pytest.fixture(params=[4, 6])
def lab(network: Any, request: Any, tmp_path: Path) -> Iterator[AgentsLab]:
    made = AgentsLab(network, request.param, tmp_path)
    try:
        yield made
    finally:
        made.close()


class Clients:
    """An accepted connection, and two that nobody has accepted."""

    def __init__(self, lab: AgentsLab) -> None:
        self.lab = lab
        wild = "0.0.0.0" if lab.version == 4 else "::"
        lab.source.listen(10, wild, PORT)
        lab.copy.listen(10, wild, PORT)
        self.accepted = lab.dial(lab.address["a"], PORT)
        lab.source.accept(10, 20)
        lab.copy.do(f"closed_as_criu_does(20, {family(lab)})")
        self.accepted.sendall(b"open")
        self.waiting = [lab.dial(lab.address["a"], PORT) for _ in range(2)]
        self.waiting[1].sendall(b"first")

    def assert_served(self) -> None:
        """Every one of them, where the workload runs."""
        place = self.lab.copy if self.lab.driven.copy_runs else self.lab.source
        with place.socket(20) as sock:
            assert receive_exactly(sock, 4) == b"open"
            talk(self.accepted, sock)
        with place.socket(10) as listener:
            listener.settimeout(DEADLINE)
            for client, said in zip(self.waiting, (b"", b"first"), strict=True):
                with listener.accept()[0] as sock:
                    sock.settimeout(DEADLINE)
                    assert receive_exactly(sock, len(said)) == said
                    talk(client, sock)


def talk(one: socket.socket, other: socket.socket) -> None:
    for sender, receiver in ((one, other), (other, one)):
        sender.sendall(b"ping")
        assert receive_exactly(receiver, 4) == b"ping"


def test_agents_hand_over(lab: AgentsLab) -> None:
    clients = Clients(lab)

    async def scenario() -> None:
        async with lab:
            assert await lab.hand_over()
            await lab.until_settled()

    asyncio.run(scenario())
    assert lab.driven.copy_runs
    clients.assert_served()


def test_a_copy_that_dies_gives_the_workload_back(lab: AgentsLab) -> None:
    clients = Clients(lab)
    lab.resume_answer = Answer.DEAD

    async def scenario() -> None:
        async with lab:
            assert not await lab.hand_over()
            await lab.until_settled()

    asyncio.run(scenario())
    assert lab.driven.source_goes_on
    clients.assert_served()


@pytest.mark.parametrize("name", ["b", "c"])
@pytest.mark.parametrize("lab", [4], indirect=True)
def test_an_error_of_ours_in_an_agent_is_a_no_and_nobody_waits_for_its_vote(
    lab: AgentsLab, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents_lab, "QUICK", replace(agents_lab.QUICK, votes=2 * SECONDS))
    clients = Clients(lab)
    rehome = PeerPart.rehome

    async def spoilt(part: PeerPart, *arguments: Any) -> None:
        if part.name == name:
            raise TypeError("this cannot be")
        await rehome(part, *arguments)

    monkeypatch.setattr(PeerPart, "rehome", spoilt)

    async def scenario() -> None:
        async with lab:
            assert not await lab.hand_over()
            await lab.until_settled()

    asyncio.run(scenario())
    assert lab.driven.source_goes_on
    clients.assert_served()


@pytest.mark.parametrize("lab", [4], indirect=True)
def test_a_peer_that_is_asked_and_never_hears_of_the_agreement_forgets_the_move(
    lab: AgentsLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request may be faster than the agreement's first message, and that may be lost."""
    clients = Clients(lab)

    async def scenario() -> None:
        async with lab:
            moves = lab.agents["c"].engine._moves
            receive = moves.receive
            monkeypatch.setattr(moves, "receive", lambda *_: [])
            await lab.begin()
            lab.hand_over_later()
            await lab.until(lambda: lab.driven.source_goes_on, "given back")
            assert [entry.id for entry in lab.agents["c"].engine.entries] != [None]
            monkeypatch.setattr(moves, "receive", receive)
            await lab.until_settled()

    asyncio.run(scenario())
    assert lab.driven.source_goes_on
    clients.assert_served()


# How many orders an agent has to carry out in a handover in which nothing goes wrong, at least.
ORDERS = {"a": 10, "b": 7, "c": 4}
POINTS = [(name, number) for name, count in ORDERS.items() for number in range(count)]


@pytest.mark.parametrize("lab", [4], indirect=True)
@pytest.mark.parametrize(("name", "order"), POINTS)
def test_whenever_an_agent_is_killed_one_workload_runs_and_nobody_is_reset(
    lab: AgentsLab, name: str, order: int
) -> None:
    clients = Clients(lab)

    async def scenario() -> None:
        async with lab:
            await lab.begin()
            lab.kill_at(name, order)
            lab.hand_over_later()
            await lab.until_settled()

    asyncio.run(scenario())
    clients.assert_served()


@pytest.mark.parametrize("lab", [4], indirect=True)
@pytest.mark.parametrize("groups", [("a", "bc"), ("b", "ac"), ("c", "ab")], ids="|".join)
@pytest.mark.parametrize(("name", "order"), POINTS)
def test_whenever_links_are_cut_one_workload_runs_and_nobody_is_reset(
    lab: AgentsLab, name: str, order: int, groups: tuple[str, ...]
) -> None:
    clients = Clients(lab)

    async def scenario() -> None:
        async with lab:
            await lab.begin()
            lab.cut_at(name, order, *groups)
            lab.hand_over_later()
            await lab.until_settled()

    asyncio.run(scenario())
    clients.assert_served()
