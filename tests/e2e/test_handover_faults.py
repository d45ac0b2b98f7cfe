"""Real agents, real moves, and a fault in each: one copy runs, nobody is reset, nothing is left.

Two hundred faults: every kind, of every role's agent, at every step, and more in the handover
itself. They are mostly waited for, so the run is split among labs that are up at the same time.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import pytest

from migrate.machine.machine import Action
from mycoproxy.errors import MycoError
from netlab import inventory, topology
from netlab.agents import LabAgents
from netlab.fault_judging import Result
from netlab.fault_plan import Part
from netlab.handover_faults import Faults
from netlab.lab import running
from netlab.moving import move_pod
from netlab.paths.table import WORKLOAD

_FAULTS = 200
_LABS = 4
_SEED = 1
_SECONDS = 900


@pytest.mark.timeout(_SECONDS + 60)
def test_whatever_happens_to_an_agent_no_connection_is_lost(lab_name: str, tmp_path: Path) -> None:
    parts = [Part(number, _LABS) for number in range(1, _LABS + 1)]
    with _labs([f"{lab_name}p{part.number}" for part in parts]) as names:
        # Processes of their own, for a mover that stands still must not stop another one.
        with get_context("spawn").Pool(_LABS) as pool:
            arguments = [
                (part, name, tmp_path / name) for part, name in zip(parts, names, strict=True)
            ]
            done = pool.starmap_async(_run, arguments).get(_SECONDS)
        assert [inventory.leftovers(name) for name in names] == [[]] * _LABS
    for told, result in done:
        assert result.is_good, "\n".join([*told, *result.messages])
        assert result.injected == _FAULTS // _LABS
        assert set(result.by_kind) == {"kill", "stop", "cut", "full"}
    assert any(result.journal_refusals for _, result in done), "a full disk is to be noticed"


@pytest.mark.timeout(120)
def test_a_target_whose_agent_forgets_the_move_before_the_handover_leaves_nothing_open(
    lab_name: str,
) -> None:
    with running(topology.load(Path("kube-service")), lab_name) as lab, LabAgents(lab) as agents:

        def progress(step: str) -> None:
            if step == Action.SEND.value:  # the source's agent has begun, nobody has voted
                agents.kill("beta")
                agents.start_one("beta")
                agents.wait_ready("beta")

        with pytest.raises(MycoError, match="the source goes on"):
            asyncio.run(move_pod(lab, WORKLOAD, "beta", agents=agents, progress=progress))
        deadline = time.monotonic() + 20
        while any(agents.journals(node) for node in agents.nodes):
            assert time.monotonic() < deadline, "a move is open"
            time.sleep(0.05)
        running_pods = [pod.node for pod in lab.sandboxes() if pod.name == WORKLOAD and pod.running]
        assert running_pods == ["alpha"]


def _run(part: Part, name: str, logs: Path) -> tuple[list[str], Result]:
    told: list[str] = []
    result = Faults(_FAULTS, _SEED, told.append, part=part, lab=name, logs=logs).run()
    return told, result


@contextmanager
def _labs(names: list[str]) -> Iterator[list[str]]:
    try:
        yield names
    finally:
        for name in names:
            inventory.remove(name)
