"""What the daemon is made of: parts, and what each of them is given.

The daemon starts its parts in order and stops them in reverse order. A part is all or nothing: it
has started or it raises, it takes a new configuration or keeps the old one. A part that ends by
itself ends the daemon: an agent that is half alive would promise moves that it cannot finish.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from mycoproxy.agent.config import Config
    from mycoproxy.agent.metrics import Metrics
    from mycoproxy.agent.questions import Questions


class Agent(Protocol):
    """What a part is given when it starts."""

    @property
    def config(self) -> Config:
        """The configuration in use. Another object after a reload."""

    @property
    def metrics(self) -> Metrics:
        """``metrics.registry`` is where a part's own metrics belong."""

    @property
    def questions(self) -> Questions:
        """What the control socket answers: a part adds rows, routes and changes."""

    def spawn(self, part: Part, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work`` as long as the part: when it ends before ``part.stop``, the daemon ends.

        It is cancelled after ``part.stop`` if it still runs then.
        """


class Part:
    """One of the things that the daemon does. All methods are called on the event loop."""

    name: ClassVar[str]
    """A word: for logs, metrics and status."""

    async def start(self, agent: Agent) -> None:
        """Begin. ``MycoError`` ends the daemon.

        If this raises or is cancelled, ``stop`` is not called: what was begun is undone here.
        """

    async def reload(self, config: Config) -> None:
        """Take the configuration that will be in use. Keys that need a restart have not changed.

        Raises ``MycoError`` if that cannot be, and then goes on as before. Called again with the
        configuration of before if a later part raises.
        """

    async def stop(self) -> None:
        """End, within ``limits.shutdown_seconds``; then it is cancelled. Called if it started."""

    def ready(self) -> Sequence[str]:
        """Why this part cannot do its work now; nothing if it can. Cheap: asked by each probe."""
        return ()

    def status(self) -> dict[str, Any]:
        """What ``mycoproxy status`` shows of it, beyond its readiness. Cheap."""
        return {}
