"""A daemon inside the test's own event loop, and questions to it over its real sockets."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import aiohttp

from mycoproxy.agent.config import Config
from mycoproxy.agent.config_source import Source
from mycoproxy.agent.control import Control
from mycoproxy.agent.daemon import Daemon
from mycoproxy.agent.logs import Logs
from mycoproxy.agent.notify import Notifier
from mycoproxy.agent.part import Agent, Part
from mycoproxy.agent.probes import Probes

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a test's coroutine; it has 30 s."""

    async def in_time() -> T:
        async with asyncio.timeout(30):
            return await work

    return asyncio.run(in_time())


class Told(Part):
    """A part that writes down what it is told, and does what the test wants."""

    name: ClassVar[str] = "told"

    def __init__(self, name: str, course: list[str]) -> None:
        self.name = name  # type: ignore[misc]  # parts of one class, told apart
        self.course = course
        self.agent: Agent | None = None
        self.on_start: Callable[[Agent], Any] = lambda _agent: None
        self.on_reload: Callable[[Config], Any] = lambda _config: None
        self.on_stop: Callable[[], Coroutine[Any, Any, None]] | None = None
        self.reasons: list[str] = []

    async def start(self, agent: Agent) -> None:
        self.agent = agent
        self.course.append(f"start {self.name}")
        self.on_start(agent)

    async def reload(self, config: Config) -> None:
        self.course.append(f"reload {self.name} {config.limits.moves}")
        self.on_reload(config)

    async def stop(self) -> None:
        self.course.append(f"stop {self.name}")
        if self.on_stop is not None:
            await self.on_stop()

    def ready(self) -> Sequence[str]:
        return self.reasons


@dataclass
class Running:
    """A daemon that runs."""

    daemon: Daemon
    ended: "asyncio.Task[int]"
    file: Path
    control: aiohttp.ClientSession
    probes: aiohttp.ClientSession

    async def ask(self, question: str, method: str = "GET", **more: Any) -> tuple[int, Any]:
        """Status and JSON of an answer of the control socket."""
        async with self.control.request(method, f"http://agent{question}", **more) as response:
            return response.status, await response.json()

    async def probe(self, path: str) -> tuple[int, str]:
        """Status and text of an answer of the metrics' port."""
        listen = self.daemon.status()["parts"][0]["listen"]
        async with self.probes.get(f"http://{listen}{path}") as response:
            return response.status, await response.text()

    async def end(self) -> int:
        """Stop the daemon; its exit status."""
        self.daemon.end()
        return await self.ended


@asynccontextmanager
async def agent(
    tmp: Path, *parts: Part, config: str = "", notifier: Notifier | None = None
) -> AsyncIterator[Running]:
    """An agent with probes, ``parts`` and a control socket, ready. ``config``: more TOML."""
    file = tmp / "agent.toml"
    file.write_text(config)
    environment = {
        "MYCOPROXY_NODE_NAME": "alpha",
        "MYCOPROXY_STATE_DIRECTORY": str(tmp),
        "MYCOPROXY_CONTROL_SOCKET": str(tmp / "agent.sock"),
        "MYCOPROXY_METRICS_LISTEN": "127.0.0.1:0",
    }
    source = Source(file, environment)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    logs = Logs(node="alpha", stream=nowhere)
    daemon = Daemon(source, source.load(), logs=logs, notifier=notifier or Notifier())
    ended = asyncio.ensure_future(daemon.run([Probes(daemon.reasons), *parts, Control(daemon)]))
    try:
        while daemon.status()["state"] == "starting" and not ended.done():
            await asyncio.sleep(0.005)
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(tmp / "agent.sock"))
            ) as control,
            aiohttp.ClientSession() as probes,
        ):
            yield Running(daemon, ended, file, control, probes)
    finally:
        daemon.end()
        await asyncio.wait([ended])
        logs.close()
        os.close(nowhere)
