"""docs/state-machines.md says what the tables say."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "state_docs.py"


@pytest.fixture(scope="module")
def state_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("state_docs", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_document_is_up_to_date(state_docs: ModuleType) -> None:
    target: Path = state_docs.TARGET
    written = target.read_text(encoding="utf-8") if target.exists() else None
    assert written == state_docs.document(), (
        f"docs/{target.name} is not what the tables say; run: {state_docs.COMMAND}"
    )


def test_every_row_of_both_tables_is_in_the_document(state_docs: ModuleType) -> None:
    text: str = state_docs.document()
    for machine in (state_docs.migration, state_docs.handover):
        for line in machine.TABLE.markdown():
            assert line in text.splitlines()


def test_every_pair_of_states_has_one_arrow_with_all_its_events(state_docs: ModuleType) -> None:
    for machine in (state_docs.migration, state_docs.handover):
        labels = state_docs.arrows(machine.TABLE)
        for (origin, event), to in machine.TABLE.rows.items():
            label = labels[origin, to.state]
            assert event.value in label.partition(" / ")[0].split(", ")
            assert to.action is None or label.endswith(f" / {to.action.value}")


def test_a_pair_of_states_has_one_action(state_docs: ModuleType) -> None:
    for machine in (state_docs.migration, state_docs.handover):
        actions: dict[object, set[object]] = {}
        for (origin, _), to in machine.TABLE.rows.items():
            actions.setdefault((origin, to.state), set()).add(to.action)
        assert all(len(found) == 1 for found in actions.values())
