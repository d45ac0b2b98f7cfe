"""Waiting for one thing while another may fail leaves nothing behind."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from migrate.runtime.waiting import first_of

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, 10))


class Ended:
    """An endless wait that notes when its own clean-up has run."""

    def __init__(self) -> None:
        self.yes = False

    async def wait(self) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.yes = True


async def broken() -> None:
    await asyncio.sleep(0)
    raise OSError("broken")


async def seven() -> int:
    await asyncio.sleep(0)
    return 7


def test_the_wanted_result_comes_back_and_the_other_has_ended() -> None:
    other = Ended()

    async def scenario() -> tuple[int, bool]:
        result = await first_of(seven(), other.wait())
        return result, other.yes

    assert run(scenario()) == (7, True)


def test_the_other_ones_failure_is_raised_and_the_wanted_one_has_ended() -> None:
    wanted = Ended()

    async def scenario() -> bool:
        with pytest.raises(OSError, match="broken"):
            await first_of(wanted.wait(), broken())
        # At once, without another turn of the event loop: its sockets may be closed now.
        return wanted.yes

    assert run(scenario())


def test_the_wanted_ones_failure_is_raised() -> None:
    other = Ended()

    async def scenario() -> None:
        await first_of(broken(), other.wait())

    with pytest.raises(OSError, match="broken"):
        run(scenario())
    assert other.yes


def test_a_result_that_is_there_wins_over_a_failure_that_is_there_too() -> None:
    async def scenario() -> int:
        loop = asyncio.get_running_loop()
        wanted: asyncio.Future[int] = loop.create_future()
        wanted.set_result(7)
        failing: asyncio.Future[None] = loop.create_future()
        failing.set_exception(OSError("late"))
        return await first_of(wanted, failing)

    assert run(scenario()) == 7


def test_a_cancellation_ends_both() -> None:
    one, other = Ended(), Ended()

    async def scenario() -> tuple[bool, bool, bool]:
        task = asyncio.create_task(first_of(one.wait(), other.wait()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        return task.cancelled(), one.yes, other.yes

    assert run(scenario()) == (True, True, True)
