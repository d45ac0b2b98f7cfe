"""``netlab bench handover``: real moves by agents over links with a delay; its fields make sense.

No test here says how fast anything has to be. A delay that no packet can be faster than may be
asked for.
"""

import json

import pytest
from click.testing import CliRunner

from netlab import bench_handover, inventory
from netlab.cli import cli


@pytest.mark.timeout(120)
def test_connections_of_five_nodes_are_held_and_let_go_and_all_of_them_work() -> None:
    asked = ["bench", "handover", "--connections", "25", "--count", "2", "--delay", "2", "--json"]
    result = CliRunner().invoke(cli, asked, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert (figures["connections"], figures["peers"], figures["moves"]) == (40, 5, 2)
    assert figures["round_trip_ms"] == 8
    # They are led, and let go, when somebody has asked and was answered twice.
    assert all(held > 2 * 8 for held in figures["each_ms"])
    assert figures["hold_to_release_worst_ms"] >= figures["hold_to_release_ms"]
    assert list(figures["parts_ms"]) == ["hold", "capture", "plan", "prepared", "committed", "live"]
    assert (figures["led"]["rebind"], figures["led"]["translate"]) == (20, 20)
    assert inventory.leftovers(bench_handover.LAB) == []
