"""Benchmark of those who connect while the workload stands: when are they answered?

Redis of topology ``demo`` moves there and back. A client opens a connection through the Service
every few milliseconds, asks at once, and waits for none of them. Those that were opened between the
beginning of the freeze and the resume are looked at. (A SYN that gets lost is sent again after a
second: it would show.)
"""

import asyncio
import errno
import select
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Final

from migrate.machine.report import MoveReport
from mycoproxy.errors import MycoError
from mycoproxy.namespaces import NamespaceWorker
from netlab import inventory, topology
from netlab.bench import fill
from netlab.lab import Lab, running
from netlab.moving import move_pod

Progress = Callable[[str], None]

LAB: Final = "bench_newcomers"
_EVERY: Final = 0.005  # seconds between two connections
_ANSWER_SECONDS: Final = 10.0
_PORT: Final = 6379
_PING: Final = b"PING\r\n"
_NODES: Final = ("beta", "alpha")


class Newcomers:
    """The client: one thread in its namespace. ``opened`` and ``answered``: CLOCK_MONOTONIC
    seconds by connection, as far as they came."""

    def __init__(self, worker: NamespaceWorker, host: str) -> None:
        self.opened: dict[int, float] = {}
        self.answered: dict[int, float] = {}
        self._host = host
        self._numbers: dict[int, int] = {}
        self._ending = threading.Event()
        self._done = worker.submit(self._run)

    def end(self) -> None:
        """Open no more; returns when all are answered. Raises ``MycoError`` if one is not."""
        self._ending.set()
        self._done.result(2 * _ANSWER_SECONDS)

    def _run(self) -> None:
        waiting: dict[int, socket.socket] = {}
        epoll = select.epoll()
        due = time.monotonic()
        deadline = due + 3600
        try:
            while not self._ending.is_set() or waiting:
                now = time.monotonic()
                if self._ending.is_set():
                    deadline = min(deadline, now + _ANSWER_SECONDS)
                elif now >= due:
                    self._open(waiting, epoll)
                    due = now + _EVERY
                if now > deadline:
                    raise MycoError(f"{len(waiting)} connections were never answered")
                for fd, event in epoll.poll(max(0.0, due - time.monotonic())):
                    self._serve(fd, event, waiting, epoll)
        finally:
            epoll.close()
            for sock in waiting.values():
                sock.close()

    def _open(self, waiting: dict[int, socket.socket], epoll: select.epoll) -> None:
        sock = socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET)
        sock.setblocking(False)
        if sock.connect_ex((self._host, _PORT)) not in (0, errno.EINPROGRESS):
            sock.close()
            raise MycoError("a connection was refused")
        fd = sock.fileno()
        waiting[fd] = sock
        self._numbers[fd] = number = len(self.opened)
        self.opened[number] = time.monotonic()
        epoll.register(fd, select.EPOLLOUT)

    def _serve(
        self, fd: int, event: int, waiting: dict[int, socket.socket], epoll: select.epoll
    ) -> None:
        sock = waiting[fd]
        if event & select.EPOLLOUT:
            sock.send(_PING)
            epoll.modify(fd, select.EPOLLIN)
            return
        if not sock.recv(64):
            raise MycoError("a connection was ended unanswered")
        self.answered[self._numbers[fd]] = time.monotonic()
        epoll.unregister(fd)
        del waiting[fd]
        sock.close()


def measure(moves: int, progress: Progress) -> dict[str, object]:
    """Figures of ``moves`` moves, in milliseconds. Raises ``MycoError``."""
    inventory.remove(LAB)
    waits: list[list[float]] = []
    with running(topology.load(Path("demo")), LAB) as lab:
        fill(lab)
        hosts = [str(one) for one in lab.topology.service("redis").addresses]
        for number in range(moves):
            host = hosts[number % len(hosts)]
            waits.append(_one(lab, _NODES[number % len(_NODES)], host))
            progress(
                f"move {number + 1}, {host}: {len(waits[-1])} connected meanwhile, the last one "
                f"was answered {max(waits[-1]):.1f} ms after the resume"
            )
    return figures(waits)


def figures(waits: list[list[float]]) -> dict[str, object]:
    """``waits``: of each move, how long after its resume each newcomer was answered."""
    worst = [max(each) for each in waits]
    return {
        "moves": len(waits),
        "newcomers": sum(map(len, waits)),
        "answered_after_resume_ms": round(median(worst), 1),
        "answered_after_resume_worst_ms": round(max(worst), 1),
        "each_ms": [round(one, 1) for one in worst],
    }


def _one(lab: Lab, node: str, host: str) -> list[float]:
    with NamespaceWorker(lab.node("client").netns) as worker:
        newcomers = Newcomers(worker, host)
        try:
            report = asyncio.run(move_pod(lab, "redis", node))
        finally:
            newcomers.end()
    return waits_of(report, newcomers)


def waits_of(report: MoveReport, newcomers: Newcomers) -> list[float]:
    """Milliseconds from the resume to the answer, of those opened while the workload stood."""
    begin, resumed = report.marks["begin"], max(report.marks.values())
    return [
        (newcomers.answered[number] - resumed) * 1e3
        for number, opened in newcomers.opened.items()
        if begin <= opened <= resumed
    ]
