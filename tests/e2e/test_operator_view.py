"""What agents say of connections that real moves have led elsewhere, there and back again."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

from mycoproxy.agent.control_client import ControlClient
from netlab.agents import LabAgents
from netlab.lab import Lab
from netlab.paths.table import PATHS
from netlab.rehome_matrix import RehomeMatrix


class Asked(RehomeMatrix):
    """Asks the agent of each node after each move, while all connections are open."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.answers: list[dict[str, tuple[Any, Any]]] = []

    async def _move(self, lab: Lab, agents: LabAgents, clients: Any, node: str) -> None:
        await super()._move(lab, agents, clients, node)
        move = self._matrix.moves[-1]["move"]
        deadline = asyncio.get_running_loop().time() + 20
        while True:  # what a move leaves is noted once it is over on that node
            answers = {one: await asyncio.to_thread(ask, agents, one) for one in agents.nodes}
            named = {row["move"] for one, _ in answers.values() for row in one["connections"]}
            if named <= {move, ""} and all(not left["moves"] for _, left in answers.values()):
                break
            assert asyncio.get_running_loop().time() < deadline, named
        self.answers.append(answers)


def ask(agents: LabAgents, node: str) -> tuple[Any, Any]:
    client = ControlClient(agents.socket(node))
    return client.get("/v1/connections?limit=10000"), client.get("/v1/drain")


def strategies(answer: Any) -> Counter[str]:
    return Counter(row["strategy"] for row in answer["connections"])


def test_what_is_anchored_is_listed_until_the_workload_comes_back(
    lab_name: str, tmp_path: Path
) -> None:
    asked = Asked(("beta", "alpha"), out=tmp_path, lab_name=lab_name)
    matrix = asyncio.run(asked.run())
    assert matrix.ok, matrix.failures
    away, back = asked.answers
    # Each path is there with both IP versions, and three activities.
    anchored = 6 * sum(path.strategy == "anchor" for path in PATHS)
    listed, left = away["alpha"]
    assert strategies(listed)["anchor"] == anchored
    through = [row for row in listed["connections"] if row["through"]]
    assert Counter(row["strategy"] for row in through)["anchor"] == anchored
    assert left["left"] == {"moves": 0, "connections": len(through)}
    assert strategies(away["beta"][0])["carry"] > 0
    assert not any(row["through"] for row in away["beta"][0]["connections"])
    # Nothing stands between any more, nor hangs on the node that it came back to.
    listed, left = back["alpha"]
    assert strategies(listed)["anchor"] == 0
    assert left["left"]["connections"] == 0
