"""A lab with a redis, clients that check every answer, and moves: what the e2e tests share."""

import asyncio
import functools
import time
from collections.abc import Callable
from pathlib import Path

from migrate.machine.plan import Deadlines
from migrate.machine.report import MoveReport
from netlab.lab import Lab
from netlab.load.process import LoadProcess
from netlab.load.series import read_samples
from netlab.load.summary import ClientSummary
from netlab.moving import move_pod


class Moving:
    """A lab with a redis in it, clients that work on it, and moves."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab = lab
        self.directory = directory
        self.logs = directory / "logs"
        self._clients: list[LoadProcess] = []
        self.pod = lab.start_pod("redis")
        self.service = str(lab.topology.service("redis").addresses[0])

    def checker(self, node: str, host: str, connections: int = 5) -> LoadProcess:
        """Clients that check every answer, from ``node``; ready when this returns."""
        name = f"{node}-{len(self._clients)}"
        arguments = ["checker", "--host", host, "--name", name, "--connections", str(connections)]
        arguments += ["--keys", "1000", "--samples", str(self.directory / f"{name}.samples")]
        return self._started(node, name, arguments)

    def checkers(self) -> list[LoadProcess]:
        """Clients through the Service, and clients that dialled the pod."""
        return [
            self.checker("client", self.service),
            self.checker("neighbour", self.pod.addresses[0]),
            self.checker("neighbour", self.pod.addresses[1]),
        ]

    def preload(self) -> None:
        """Fill the server with what the checkers expect."""
        arguments = ["preload", "--host", self.service, "--keys", "1000"]
        loading = self._started("client", "preload", arguments)
        assert loading.stop().ok

    def _started(self, node: str, name: str, arguments: list[str]) -> LoadProcess:
        start = functools.partial(self.lab.popen, node)
        process = LoadProcess(start, arguments, log=self.directory / f"{name}.log")
        self._clients.append(process)
        process.wait_ready()
        return process

    def move(
        self,
        node: str,
        progress: Callable[[str], None] = lambda _: None,
        deadlines: Deadlines = Deadlines(),  # noqa: B008 - frozen
    ) -> MoveReport:
        """Move the pod; raises what the mover raises."""
        moving = move_pod(
            self.lab, "redis", node, logs=self.logs, deadlines=deadlines, progress=progress
        )
        return asyncio.run(moving)

    def close(self) -> None:
        for client in self._clients:
            client.kill()

    def requests(self, client: LoadProcess) -> int:
        """How many requests of a client have been answered by now."""
        path = self.directory / f"{client.arguments[client.arguments.index('--name') + 1]}.samples"
        return len(read_samples(path).records)

    @staticmethod
    def wait_until(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
            time.sleep(0.02)


def assert_unharmed(*summaries: ClientSummary) -> None:
    """No connection was lost, no byte was wrong, and every client went on to the end."""
    for summary in summaries:
        assert not summary.lost, summary.lost
        assert not summary.wrong, summary.wrong
        assert summary.bytes_wrong == 0
        assert summary.requests > 0
