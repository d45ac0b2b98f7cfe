"""``netlab bench handover`` and ``newcomers``: real moves; their fields make sense.

No test here says how fast anything has to be. A delay that no packet can be faster than may be
asked for.
"""

import json

import pytest
from click.testing import CliRunner

from netlab import bench_handover, bench_newcomers, inventory
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


@pytest.mark.timeout(120)
def test_everyone_who_connects_while_the_workload_stands_is_answered_after_it() -> None:
    asked = ["bench", "newcomers", "--count", "2", "--json"]
    result = CliRunner().invoke(cli, asked, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["moves"] == len(figures["each_ms"]) == 2
    assert figures["newcomers"] > 2
    assert 0 < figures["answered_after_resume_ms"] <= figures["answered_after_resume_worst_ms"]
    assert inventory.leftovers(bench_newcomers.LAB) == []
