"""A small soak: no byte is wrong, nobody is reset, whatever state a connection moves in."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

NETLAB = Path(sys.executable).parent / "netlab"


def test_a_small_soak_comes_out_clean() -> None:
    run = subprocess.run(
        [str(NETLAB), "run", "tcp-soak", "--count", "150", "--json"],
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    figures = json.loads(run.stdout)
    assert figures["moves"] >= 150
    assert figures["bytes_checked"] > 0
    assert (figures["bytes_wrong"], figures["resets"], figures["failures"]) == (0, 0, 0)
    assert figures["longest_ending"] > 0
    assert len(figures["moves_by_state"]) > 3, "states that a server's sockets can be in"
