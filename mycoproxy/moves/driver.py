"""Orders to whoever has the tasks: the driver, a process of its own on the same node.

An agent moves connections and knows nothing of containers; it says when the tasks may go on, and
when they must not. A driver reads its orders as a stream and answers each. Orders are repeated
when it comes back, and after the agent's own restart, so every one has to be carried out as often
as it is given.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import Enum

from mycoproxy.errors import MycoError


class Order(Enum):
    """What a driver has to do. The first two are for the source's, the others for the target's."""

    THAW = "thaw"
    """The source goes on: its tasks run, from where they stood."""
    REMOVE = "remove"
    """The source is over: kill its tasks where they stand."""
    RESUME = "resume"
    """Bring the copy to where nothing can fail any more, and nothing has run. (If it runs already
    that is an answer, too.) If that fails the copy must be dead when this is answered."""
    RUN = "run"
    """Let the copy's tasks run."""
    KILL = "kill"
    """There must be no copy when this is answered."""


class Answer(Enum):
    """How it went."""

    DONE = "done"
    FAILED = "failed"
    """It has not been carried out, and will be asked again."""
    DEAD = "dead"
    """The copy is dead and never ran."""
    RUNNING = "running"
    """Of RESUME: the copy has run before."""


class DriverError(MycoError):
    """The driver could not do what it was told, or nobody is there to be told."""


@dataclass(slots=True)
class Given:
    """An order that has not been answered. ``number`` names it."""

    number: int
    order: Order
    answer: "asyncio.Future[tuple[Answer, str]]" = field(repr=False)


class Channel:
    """The orders to one driver. It may come, go, and come back."""

    def __init__(self) -> None:
        self._given: dict[int, Given] = {}
        self._next = 1
        self._news = asyncio.Event()
        self.attached = 0
        """How many read the orders now."""

    async def give(self, order: Order) -> Answer:
        """Give an order and wait for its answer, however long that takes.

        Raises ``DriverError`` if it could not be carried out.
        """
        given = Given(self._next, order, asyncio.get_running_loop().create_future())
        self._next += 1
        self._given[given.number] = given
        self._news.set()
        try:
            answer, error = await given.answer
        finally:
            self._given.pop(given.number, None)
        if answer is Answer.FAILED:
            raise DriverError(f"the driver could not {order.value}: {error}")
        return answer

    def answer(self, number: int, answer: Answer, error: str = "") -> None:
        """What the driver says. Raises ``DriverError`` if nobody asked (any more)."""
        given = self._given.get(number)
        if given is None or given.answer.done():
            raise DriverError(f"order {number} is not open: it was answered or taken back")
        given.answer.set_result((answer, error))

    async def orders(self) -> AsyncIterator[Given]:
        """Every open order, then each as it is given. For one reader at a time."""
        seen = 0
        self.attached += 1
        try:
            while True:
                for number, given in sorted(self._given.items()):
                    if number > seen:
                        seen = number
                        yield given
                self._news.clear()
                await self._news.wait()
        finally:
            self.attached -= 1
