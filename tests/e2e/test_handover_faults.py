"""Real agents, real moves, and a fault in each: one copy runs, nobody is reset, nothing is left.

Two hundred faults, in parts: together they are every kind of fault, to each role, at each step,
and as many again and more in the handover itself.
"""

from pathlib import Path

import pytest

from netlab import inventory
from netlab.fault_plan import Part
from netlab.handover_faults import Faults

_FAULTS = 200
_PARTS = 4
_SEED = 1


@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", range(1, _PARTS + 1))
def test_whatever_happens_to_an_agent_no_connection_is_lost(
    lab_name: str, tmp_path: Path, number: int
) -> None:
    told: list[str] = []
    part = Part(number, _PARTS)
    result = Faults(_FAULTS, _SEED, told.append, part=part, lab=lab_name, logs=tmp_path).run()
    assert result.is_good, "\n".join([*told, *result.messages])
    assert result.injected == _FAULTS // _PARTS
    assert set(result.by_kind) == {"kill", "stop", "cut", "full"}
    assert result.journal_refusals, "a full disk is to be noticed"
    assert inventory.leftovers(lab_name) == []
