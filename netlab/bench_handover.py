"""Benchmark of the handover: how long connections are held, by agents, with clients on five nodes.

A workload of topology ``peers`` moves there and back under idle connections of pods on five other
nodes: half of them through the Service, half to the workload's own address; IPv4 and IPv6. Agents
are processes on each node, CRIU and runc are the real ones. What is timed is the time from the
beginning of the hold on the source until the source has heard that the target has let all go.
Afterwards every connection is used, and one that does not work is an error.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Final

from migrate.machine.report import MoveReport
from mycoproxy.errors import MycoError
from netlab import inventory, topology
from netlab.agents import LabAgents
from netlab.lab import running
from netlab.moving import move_pod
from netlab.paths.clients import PathClients
from netlab.paths.table import WORKLOAD, ClientPath

Progress = Callable[[str], None]

LAB: Final = "bench_handover"
PEERS: Final = 5
_EACH: Final = 4 * PEERS  # two ways of two IP versions, from every peer
_NODES: Final = ("beta", "alpha")
_OPEN_SECONDS: Final = 120.0
_END_SECONDS: Final = 120.0
_BEAT: Final = 1.0  # idle connections have nothing to do at a beat


def measure(
    connections: int, moves: int, progress: Progress, *, delay_ms: float = 0.0
) -> dict[str, object]:
    """The figures of ``moves`` moves, in milliseconds; medians unless the name says otherwise.

    ``connections`` is rounded up to a multiple of twenty. ``delay_ms`` is of every link, one way;
    between two nodes there are two. Raises ``MycoError``: a connection was lost, or was not led as
    its client's path wants it.
    """
    rows = list(_rows()) * -(-connections // _EACH)
    wanted = topology.delayed(topology.load(Path("peers")), delay_ms or None)
    inventory.remove(LAB)
    reports: list[MoveReport] = []
    with ExitStack() as stack:
        lab = stack.enter_context(running(wanted, LAB))
        agents = stack.enter_context(LabAgents(lab))
        clients = stack.enter_context(PathClients(lab, rows, activities=("idle",), beat=_BEAT))
        clients.start()
        clients.wait_until_open(_OPEN_SECONDS)
        progress(f"{len(clients.connections)} connections are open")
        for number in range(moves):
            node = _NODES[number % len(_NODES)]
            report = asyncio.run(move_pod(lab, WORKLOAD, node, agents=agents))
            reports.append(report)
            progress(f"to {node}: held {held_ms(report):.0f} ms, frozen {report.freeze_ms:.0f} ms")
        lost = [one for one in clients.finish(_END_SECONDS) if not one.ok]
    if lost:
        first = lost[0]
        raise MycoError(f"{len(lost)} connections were lost, {first.path} first: {first.error}")
    return figures(len(clients.connections), delay_ms, reports)


def held_ms(report: MoveReport) -> float:
    """From the hold to the release."""
    return sum(report.handover_steps_ms.values())


def figures(connections: int, delay_ms: float, reports: list[MoveReport]) -> dict[str, object]:
    """What is printed of the moves of so many connections."""
    held = [held_ms(report) for report in reports]
    return {
        "connections": connections,
        "peers": PEERS,
        "delay_ms": delay_ms,
        "round_trip_ms": 4 * delay_ms,
        "moves": len(reports),
        "hold_to_release_ms": round(median(held), 1),
        "hold_to_release_worst_ms": round(max(held), 1),
        "freeze_ms": round(median(report.freeze_ms for report in reports), 1),
        "parts_ms": {
            part: round(median(report.handover_steps_ms[part] for report in reports), 1)
            for part in reports[0].handover_steps_ms
        },
        "led": dict(sorted(Counter(one.path.value for one in reports[-1].rehomed).items())),
        "each_ms": [round(one, 1) for one in held],
    }


def _rows() -> Iterator[ClientPath]:
    for number in range(1, PEERS + 1):
        pod = f"client-p{number}"
        yield ClientPath(
            f"p{number}-virtual",
            "through the Service",
            *(pod, WORKLOAD, "virtual", "rebind"),
            service="workload",
        )
        yield ClientPath(
            f"p{number}-address",
            "to the workload's own address",
            *(pod, WORKLOAD, "address", "translate"),
        )
