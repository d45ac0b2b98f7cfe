"""Whole moves of real servers in labs of their own, which leave nothing behind."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_lab import Moving

from netlab import inventory, topology
from netlab.lab import Lab


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.root)
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root: labs, CRIU"))


@pytest.fixture
def lab_name(request: pytest.FixtureRequest) -> Iterator[str]:
    """A name that no other test process uses; whatever carries it is gone afterwards."""
    name = f"t{os.getpid()}"
    assert not inventory.leftovers(name)
    yield name
    inventory.remove(name)


@pytest.fixture
def moving(lab_name: str, tmp_path: Path) -> Iterator[Moving]:
    lab = Lab.up(topology.load(Path("demo")), lab_name)
    try:
        made = Moving(lab, tmp_path)
        try:
            made.preload()
            yield made
        finally:
            made.close()
    finally:
        lab.down()
    assert inventory.leftovers(lab_name) == []
