"""docs/tcp-states.md says what the state matrix's table says, and the table is complete."""

import importlib.util
import itertools
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mycoproxy.tcp import TcpConnectionState

SCRIPT = Path(__file__).parents[2] / "scripts" / "tcp_states_docs.py"


@pytest.fixture(scope="module")
def state_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tcp_states_docs", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def matrix(state_docs: ModuleType) -> Any:
    return state_docs.load()


def test_the_document_is_up_to_date() -> None:
    check = subprocess.run(
        [sys.executable, SCRIPT, "--check"], capture_output=True, text=True, timeout=30, check=False
    )
    assert check.returncode == 0, check.stdout + check.stderr


def test_every_row_is_in_the_document_once(state_docs: ModuleType, matrix: Any) -> None:
    text: str = state_docs.document()
    for row in matrix.TABLE:
        assert text.count(f"| **{row.name}** |") == 1


def test_every_state_that_a_descriptor_can_be_in_has_a_row(matrix: Any) -> None:
    no_descriptor = {TcpConnectionState.TIME_WAIT, TcpConnectionState.NEW_SYN_RECV}
    assert {row.state for row in matrix.TABLE} == set(TcpConnectionState) - no_descriptor


def test_every_two_choices_meet_in_a_cell(matrix: Any) -> None:
    moved = [cell for cell in matrix.cells() if cell.way is matrix.Way.MOVED]
    found = {
        (one, other)
        for cell in moved
        for one, other in itertools.combinations(
            (cell.row.name, cell.family, cell.queues, cell.options), 2
        )
    }
    for row in (row for row in matrix.TABLE if not row.elsewhere):
        choices = (matrix.FAMILIES, row.queues(), row.options)
        for wanted in itertools.chain.from_iterable(choices):
            assert (row.name, wanted) in found
        for queues in row.queues():
            assert {(family, queues) for family in matrix.FAMILIES} <= found
            assert {(queues, option) for option in row.options} <= found
    assert set(itertools.product(matrix.FAMILIES, matrix.Options)) <= found


def test_every_cell_has_its_own_name(matrix: Any) -> None:
    names = [str(cell) for cell in matrix.cells()]
    assert len(names) == len(set(names))
