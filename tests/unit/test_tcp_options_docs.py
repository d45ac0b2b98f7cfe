"""docs/tcp-options.md says what the table says."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mycoproxy.tcp.option_table import TABLE, Fate

SCRIPT = Path(__file__).parents[2] / "scripts" / "tcp_options_docs.py"


@pytest.fixture(scope="module")
def option_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tcp_options_docs", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_document_is_up_to_date() -> None:
    check = subprocess.run(
        [sys.executable, SCRIPT, "--check"], capture_output=True, text=True, timeout=30, check=False
    )
    assert check.returncode == 0, check.stdout + check.stderr


def test_every_option_is_in_the_document_once(option_docs: ModuleType) -> None:
    text: str = option_docs.document()
    for row in TABLE:
        assert text.count(f"| `{row.name}` |") == 1


def test_every_fate_has_a_chapter(option_docs: ModuleType) -> None:
    assert {fate for fate, _ in option_docs.CHAPTERS.values()} == set(Fate)
