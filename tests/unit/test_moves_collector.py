"""The garbage collector is paused while a move stands still, and never stays so."""

import asyncio
import gc
from collections.abc import Iterator

import pytest

from mycoproxy.moves import collector
from mycoproxy.moves.collector import CollectorPause


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()


def test_it_is_paused_until_told_otherwise() -> None:
    async def scenario() -> None:
        pause = CollectorPause()
        pause.begin()
        pause.begin()
        assert not gc.isenabled()
        pause.end()
        assert gc.isenabled()

    asyncio.run(scenario())


def test_a_pause_that_nobody_ends_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "_LONGEST_SECONDS", 0.01)

    async def scenario() -> None:
        CollectorPause().begin()
        async with asyncio.timeout(10):
            while not gc.isenabled():
                await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_the_end_of_a_pause_that_has_not_begun_changes_nothing() -> None:
    gc.disable()
    CollectorPause().end()
    assert not gc.isenabled()
