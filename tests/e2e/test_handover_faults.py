"""Real agents, real moves, and a fault in each: one copy runs, nobody is reset, nothing is left."""

import pytest

from netlab import inventory
from netlab.handover_faults import Faults


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_happens_to_an_agent_no_connection_is_lost(lab_name: str, seed: int) -> None:
    told: list[str] = []
    result = Faults(15, seed, told.append, lab=lab_name).run()
    assert result.is_good, "\n".join([*told, *result.messages])
    assert result.injected == 15
    assert inventory.leftovers(lab_name) == []
