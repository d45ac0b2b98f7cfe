"""What a person asks of agents: limits, draining, and the way out when a node is gone for ever."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agents_lab import AgentsLab, drop
from handover_lab import family
from tcp_lab import receive_exactly

from mycoproxy.errors import RefusedError, UsageError
from mycoproxy.moves.source import SourcePlace
from mycoproxy.moves.target import TargetPlace

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

PORT = 7000
FD = 20


@pytest.fixture
def lab(network: Any, tmp_path: Path) -> Iterator[AgentsLab]:
    made = AgentsLab(network, 4, tmp_path)
    try:
        yield made
    finally:
        made.close()


def connect(lab: AgentsLab) -> socket.socket:
    """A client of the workload, which has accepted it."""
    lab.source.listen(10, "0.0.0.0", PORT)
    lab.copy.listen(10, "0.0.0.0", PORT)
    client = lab.dial(lab.address["a"], PORT)
    lab.source.accept(10, FD)
    lab.copy.do(f"closed_as_criu_does({FD}, {family(lab)})")
    client.sendall(b"open")
    return client


def assert_goes_on(client: socket.socket, place: Any) -> None:
    with place.socket(FD) as sock:
        assert receive_exactly(sock, 4) == b"open"
        sock.sendall(b"ping")
    assert receive_exactly(client, 4) == b"ping"


def phases(lab: AgentsLab) -> dict[str, str]:
    """Of the move, by node."""
    return {
        name: status.phase
        for name, agent in lab.agents.items()
        if agent.is_up
        for status in agent.engine._moves.status()
    }


async def lose(lab: AgentsLab, name: str) -> None:
    """The node's agent ends, and never comes back."""
    agent = lab.agents[name]
    await agent.stop()
    for part in agent.engine.parts():
        drop(part)

    async def ended() -> None:
        """It has, and the lab ends all."""

    agent.stop = ended  # type: ignore[method-assign]


async def until_in_doubt(lab: AgentsLab) -> None:
    """Everybody has voted, and the source has decided; nobody else knows."""

    acts = lab.agents["a"].engine.acts
    decide = acts.carry_out

    def watched(orders: Any) -> None:
        if "committed" in phases(lab).values():
            lab.partition("a", "bc")
            acts.carry_out = decide  # type: ignore[method-assign]
        decide(orders)

    acts.carry_out = watched  # type: ignore[method-assign]
    lab.hand_over_later()
    await lab.until(
        lambda: phases(lab) == {"a": "committed", "b": "prepared", "c": "prepared"}, "in doubt"
    )


def test_a_target_in_doubt_goes_live_when_a_person_says_so(lab: AgentsLab) -> None:
    client = connect(lab)

    async def scenario() -> None:
        async with lab:
            await lab.begin()
            await until_in_doubt(lab)
            await lose(lab, "a")
            lab.source.close()
            target = lab.agents["b"].engine
            with pytest.raises(RefusedError, match="no move other is open on b; these are: move"):
                target.resolve("other", live=True)
            with pytest.raises(RefusedError, match="not an open move from b"):
                target.gone("move", "a")
            target.resolve("move", live=True)
            await lab.until(lambda: lab.driven.copy_runs, "running")
            await lab.until(lambda: phases(lab) == {"b": "live"}, "known to the peer")
            target.resolve("move", live=True)  # nobody else is left to release it
            await lab.until(lambda: not lab.agents["b"].open_moves(), "forgotten")
            assert not lab.agents["c"].open_moves()

    asyncio.run(scenario())
    assert_goes_on(client, lab.copy)


def test_a_participant_in_doubt_gives_up_when_a_person_says_so(lab: AgentsLab) -> None:
    connect(lab)

    async def scenario() -> None:
        async with lab:
            await lab.begin()
            await until_in_doubt(lab)
            await lose(lab, "a")
            for name in "bc":
                lab.agents[name].engine.resolve("move", live=False)
            await lab.until(
                lambda: not any(lab.agents[name].open_moves() for name in "bc"), "forgotten"
            )

    asyncio.run(scenario())
    assert lab.driven.copy_killed
    assert not lab.driven.copy_runs


def test_the_source_takes_the_workload_back_when_its_target_is_gone_for_ever(
    lab: AgentsLab,
) -> None:
    client = connect(lab)

    async def scenario() -> None:
        async with lab:
            await lab.begin()
            await until_in_doubt(lab)
            await lose(lab, "b")
            lab.copy.close()
            lab.partition()
            source = lab.agents["a"].engine
            with pytest.raises(RefusedError, match=r"x takes no part in .*; these do: b, c"):
                source.gone("move", "x")
            with pytest.raises(RefusedError, match=r"in no doubt about .*: it comes from here"):
                source.resolve("move", live=True)
            source.gone("move", "b")
            await lab.until(lambda: lab.driven.source_goes_on, "running again")
            await lab.until(
                lambda: not any(lab.agents[name].open_moves() for name in "ac"), "forgotten"
            )

    asyncio.run(scenario())
    assert_goes_on(client, lab.source)


def test_a_peer_that_is_gone_for_ever_is_not_waited_for(lab: AgentsLab) -> None:
    connect(lab)

    async def scenario() -> None:
        async with lab:
            await lab.begin()
            await until_in_doubt(lab)
            await lose(lab, "c")
            lab.partition()
            await lab.until(lambda: phases(lab).get("a") == "finishing", "waiting for the peer")
            await lab.until(lambda: lab.driven.settled, "moved")
            lab.agents["a"].engine.gone("move", "c")
            await lab.until(
                lambda: not any(lab.agents[name].open_moves() for name in "ab"), "forgotten"
            )

    asyncio.run(scenario())


def source_place(lab: AgentsLab, name: str) -> SourcePlace:
    return SourcePlace(name, str(lab.a.path), lab.source.init, "b", lab.addresses)


def target_place(lab: AgentsLab, name: str) -> TargetPlace:
    return TargetPlace(name, "a", str(lab.b.path))


def test_nothing_may_come_to_a_node_that_drains_and_its_moves_may_leave(lab: AgentsLab) -> None:
    async def scenario() -> None:
        async with lab:
            a, b = lab.agents["a"].engine, lab.agents["b"].engine
            await b.open_target(target_place(lab, "early"))
            for engine in (a, b):
                engine.admission.draining = True
            with pytest.raises(RefusedError, match="late: this node is draining"):
                await b.open_target(target_place(lab, "late"))
            # It was opened before, and has not begun.
            with pytest.raises(Exception, match="early: this node is draining"):
                await a.open_source(source_place(lab, "early"))
            assert not len(a.entries)
            b.admission.draining = False
            await a.open_source(source_place(lab, "early"))
            assert b.admission.refused == {"draining": 2}
            await a.abort("early")

    asyncio.run(scenario())


def test_limits_refuse_a_move_before_anything_is_done_for_it(lab: AgentsLab) -> None:
    connect(lab)

    async def scenario() -> None:
        async with lab:
            a, b = lab.agents["a"].engine, lab.agents["b"].engine
            b.admission.most_moves = 1
            await b.open_target(target_place(lab, "one"))
            with pytest.raises(RefusedError, match=r"two: 1 moves .* limits\.moves is 1"):
                await b.open_target(target_place(lab, "two"))
            a.admission.most_connections = 0
            await a.open_source(source_place(lab, "one"))
            lab.source.stop()
            with pytest.raises(RefusedError, match=r"1 connections, and limits\.connections is 0"):
                await a.collect("one")
            assert not lab.agents["a"].open_moves()
            await a.abort("one")
            lab.source.go_on()
            assert a.admission.refused == {"connections": 1}
            assert b.admission.refused == {"moves": 1}
            with pytest.raises(UsageError, match="not the source of a move one"):
                await a.abort("one")

    asyncio.run(scenario())
