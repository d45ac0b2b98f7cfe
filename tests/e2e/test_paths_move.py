"""The workload of topology ``kube-service`` moves: its streams go on where they were."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from netlab import inventory, topology
from netlab.lab import Lab, running
from netlab.moving import move_pod
from netlab.paths.clients import PathClients
from netlab.paths.table import WORKLOAD, path


@pytest.fixture
def lab(lab_name: str) -> Iterator[Lab]:
    with running(topology.load(Path("kube-service")), lab_name) as made:
        yield made
    assert inventory.leftovers(lab_name) == []


def received(clients: PathClients) -> int:
    return min(
        end["received"]
        for number, ends in clients.reports().items()
        for end in ends
        if clients.connections[number].activity != "idle"
    )


def test_streams_of_the_workload_go_on_after_a_move_and_the_program_can_be_asked(
    lab: Lab, tmp_path: Path
) -> None:
    with PathClients(lab, [path("pod-gamma-virtual"), path("outside-node-port-beta")]) as clients:
        clients.start()
        clients.wait_until_open(20)
        report = asyncio.run(move_pod(lab, WORKLOAD, "beta", logs=tmp_path))
        assert report.connections == len(clients.connections)
        before, deadline = received(clients), time.monotonic() + 20
        while received(clients) <= before:
            assert time.monotonic() < deadline, "nothing goes on"
            time.sleep(0.05)
        results = clients.finish()
    assert [result for result in results if not result.ok] == []
    freeze = report.marks["resume"] - report.marks["begin"]
    busy = [result for result in results if result.activity != "idle"]
    assert all(result.gap_ms >= freeze * 500 for result in busy)
