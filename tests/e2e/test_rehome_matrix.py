"""``netlab run rehome-matrix``: every path there is goes on over a move by real agents."""

import json
from itertools import product
from pathlib import Path

from click.testing import CliRunner

from netlab import inventory
from netlab.paths.table import ACTIVITIES, PATHS
from netlab.run_command import run


def test_every_path_goes_on_as_the_table_says_and_without_a_reset(
    lab_name: str, tmp_path: Path
) -> None:
    arguments = ["rehome-matrix", "--json", "--name", lab_name, "--out", str(tmp_path)]
    done = CliRunner().invoke(run, arguments)
    assert done.exception is None, f"{done.exception}\n{done.stderr}"
    figures = json.loads(done.stdout)
    rows = figures["rows"]
    assert [(row["path"], row["family"], row["activity"]) for row in rows] == [
        (path.name, *each) for path in PATHS for each in product((4, 6), ACTIVITIES)
    ]
    strategies = {path.name: path.strategy for path in PATHS}
    for row in rows:
        assert row["ok"], row
        assert row["strategy"] == strategies[row["path"]], row
        assert row["resets"] == 0, row
    assert (figures["ok"], figures["failures"], figures["leftovers"]) == (True, [], [])
    assert figures["journals_left"] == 0
    assert [(move["source"], move["target"]) for move in figures["moves"]] == [("alpha", "beta")]
    assert inventory.leftovers(lab_name) == []
    assert list(tmp_path.iterdir()) == [], "logs are kept of a run that failed"
