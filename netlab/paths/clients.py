"""A connection for each path, IP version and activity in a lab, all at once; and how they fared."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from mycoproxy.errors import MycoError, UsageError
from netlab.lab import Lab
from netlab.paths.control import answers, ask
from netlab.paths.end.stream import Report
from netlab.paths.result import PathResult, begun, judge, settled
from netlab.paths.table import ACTIVITIES, PATHS, WORKLOAD, Activity, ClientPath

_PORT = 7000  # of every end outside the workload
_BEAT_BYTES = 200  # a beat in the direction that streams: 20 kB/s
_LITTLE_BYTES = 8  # a beat in the other one, so that a gap is seen at both ends
_POLL = 0.02  # seconds
_START_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Connection:
    """One connection; ``number`` is its name on the wire."""

    number: int
    path: ClientPath
    family: int
    activity: Activity

    @property
    def from_port(self) -> int | None:
        """The port that the opener dials from: one for each family and activity."""
        first = self.path.from_port
        return first and first + 2 * ACTIVITIES.index(self.activity) + (self.family == 6)

    @property
    def beat_bytes(self) -> tuple[int, int]:
        """What the opener and the acceptor send at each beat."""
        if self.activity == "idle":
            return 0, 0
        client, workload = _BEAT_BYTES, _LITTLE_BYTES
        if self.activity == "receiving":
            client, workload = workload, client
        return (workload, client) if self.path.outgoing else (client, workload)


class PathClients:
    """The connections, and the processes at their other ends. The lab has its pods started.

    ``beat`` is the time between two sends of a connection, in seconds; the workload has its own
    (its pod's arguments).
    """

    def __init__(
        self,
        lab: Lab,
        rows: Sequence[ClientPath] = PATHS,
        families: Sequence[int] = (4, 6),
        activities: Sequence[Activity] = ACTIVITIES,
        *,
        beat: float = 0.01,
    ) -> None:
        self._lab = lab
        self._beat = beat
        self._directory = lab.layout.run / "paths"
        self._processes: dict[str, subprocess.Popen[Any]] = {}
        self.connections = tuple(
            Connection(number, *each)
            for number, each in enumerate(product(rows, families, activities))
        )

    # --- a run ----------------------------------------------------------------------------

    def start(self) -> None:
        """Start a process in every place that has an end, and dial. Raises ``MycoError``."""
        self._directory.mkdir(exist_ok=True)
        paths = [each.path for each in self.connections]
        places = {place for path in paths for place in (path.opener, path.acceptor)}
        for place in sorted(places - {WORKLOAD}):
            self._processes[place] = self._start(place)
        for place in places:
            self._wait(
                lambda place=place: answers(self._control(place)),  # type: ignore[misc]
                lambda place=place: f"no end answers in {place}: {self._log_of(place)}",  # type: ignore[misc]
                _START_SECONDS,
            )
        for place in sorted(places):
            wanted = [self._order(each) for each in self.connections if each.path.opener == place]
            self._ask(place, "open", connections=wanted)

    def wait_until_open(self, seconds: float) -> None:
        """Wait until both ends of every connection know each other; gaps count from then on.

        Raises ``MycoError`` naming those that do not come about within ``seconds``.
        """
        self._wait(
            lambda: not self._not_open(),
            lambda: f"not open after {seconds:g} s: {', '.join(self._not_open())}",
            seconds,
        )
        for place in self._everywhere():
            self._ask(place, "begin")

    def finish(self, seconds: float = 30.0) -> list[PathResult]:
        """Ask what was not asked so far, let all arrive, and end.

        What has not arrived after ``seconds`` is an error in the results, in the order of
        ``connections``.
        """
        for place in self._everywhere():
            clients = [
                [each.number, not each.path.outgoing]
                for each in self.connections
                if each.path.client == place
            ]
            self._ask(place, "ask", of=clients)
        deadline = time.monotonic() + seconds
        # Each end has its say, however soon the end comes.
        self._reports_when(begun, deadline)
        for place in self._everywhere():
            self._ask(place, "stop")
        reports = self._reports_when(settled, deadline)
        self._end()
        return [
            judge(each.path.name, each.family, each.activity, reports[each.number])
            for each in self.connections
        ]

    def reports(self) -> dict[int, list[Report]]:
        """What the ends of each connection, by its number, see now."""
        return self._reports()

    def disturb(
        self, do: Literal["spoil", "reset"], number: int, *, at: Literal["opener", "acceptor"]
    ) -> None:
        """Do wrong at one end of a connection: one other byte, or a reset. It has to be noticed."""
        path = self.connections[number].path
        place = path.opener if at == "opener" else path.acceptor
        self._ask(place, do, of=[[number, at == "opener"]])

    def close(self) -> None:
        """Kill what still runs. The lab's end does it too."""
        for process in self._processes.values():
            process.kill()
        self._wait_for_ends()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- how ------------------------------------------------------------------------------

    def _start(self, place: str) -> subprocess.Popen[Any]:
        command = [sys.executable, "-m", "netlab.paths.end", "--stdin-stops"]
        command += ["--port", str(_PORT), "--control", str(self._control(place))]
        command += ["--beat", str(self._beat)]
        with self._log(place).open("wb") as log:
            return self._lab.popen(
                place, command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log
            )

    def _order(self, wanted: Connection) -> dict[str, object]:
        host, port = self.dialled(wanted)
        opener, acceptor = wanted.beat_bytes
        return {
            "connection": wanted.number,
            "host": host,
            "port": port,
            "opener_bytes": opener,
            "acceptor_bytes": acceptor,
            "from_port": wanted.from_port,
        }

    def dialled(self, connection: Connection) -> tuple[str, int]:
        """The address and port that the opener dials. Raises ``UsageError``."""
        path = connection.path
        topology = self._lab.topology
        if path.dials == "loopback":
            return ("127.0.0.1" if connection.family == 4 else "::1"), self._port(path.acceptor)
        if path.dials == "virtual" and path.service is not None:
            service = topology.service(path.service)
            return _of_family(map(str, service.addresses), connection.family), service.port
        if path.dials == "external" and path.service is not None:
            service = topology.service(path.service)
            return _of_family(map(str, service.external_addresses), connection.family), service.port
        if path.dials == "node-port" and path.service is not None and path.entry is not None:
            node_port = topology.service(path.service).node_port
            if node_port is not None:
                return self._node_address(path.entry, connection.family), node_port
        if path.dials == "address":
            port = self._port(path.acceptor)
            if any(path.acceptor == pod.name for pod in topology.pods):
                return _of_family(self._lab.pod(path.acceptor).addresses, connection.family), port
            return self._node_address(path.acceptor, connection.family), port
        raise UsageError(f"path {path.name} does not say what it dials, or there is no such port")

    def _port(self, place: str) -> int:
        return self._lab.port_of(WORKLOAD) if place == WORKLOAD else _PORT

    def _node_address(self, node: str, family: int) -> str:
        addresses = self._lab.topology.link_addresses(node)
        return _of_family((str(each.ip) for each in addresses), family)

    def _control(self, place: str) -> Path:
        if place == WORKLOAD:  # wherever it is now
            return self._lab.pod(WORKLOAD).data / "control"
        return self._directory / f"{place}.control"

    def _log(self, place: str) -> Path:
        return self._directory / f"{place}.log"

    def _log_of(self, place: str) -> str:
        log = self._log(place)
        return log.read_text()[-500:] if log.exists() else "it is in the pod"

    def _ask(self, place: str, do: str, **arguments: object) -> Any:  # noqa: ANN401
        return ask(self._control(place), do, **arguments)

    def _everywhere(self) -> list[str]:
        return [*self._processes, WORKLOAD]

    def _not_open(self) -> list[str]:
        ends = {
            (number, opener)
            for place in self._everywhere()
            for number, opener, is_open, ended in self._ask(place, "status")
            if is_open and not ended
        }
        return [
            f"{each.path.name} IPv{each.family} {each.activity}"
            for each in self.connections
            if not {(each.number, True), (each.number, False)} <= ends
        ]

    def _reports(self) -> dict[int, list[Report]]:
        found: dict[int, list[Report]] = {each.number: [] for each in self.connections}
        for place in self._everywhere():
            for report in self._ask(place, "report"):
                found[report["connection"]].append(report)
        return found

    def _reports_when(
        self, condition: Callable[[Sequence[Report]], bool], deadline: float
    ) -> dict[int, list[Report]]:
        """Once ``condition`` holds for the ends of each connection, or at the deadline."""
        while True:
            reports = self._reports()
            if all(map(condition, reports.values())) or time.monotonic() > deadline:
                return reports
            time.sleep(_POLL)

    def _end(self) -> None:
        for place in self._processes:
            self._ask(place, "quit")
        self._ask(WORKLOAD, "forget")
        self._wait_for_ends()

    def _wait_for_ends(self) -> None:
        for process in self._processes.values():
            with process:  # closes its standard input
                process.wait(_START_SECONDS)
        self._processes.clear()

    @staticmethod
    def _wait(condition: Callable[[], bool], problem: Callable[[], str], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise MycoError(problem())
            time.sleep(_POLL)


def _of_family(addresses: Iterable[str], family: int) -> str:
    for address in addresses:
        if (":" in address) == (family == 6):
            return address
    raise UsageError(f"no IPv{family} address to dial")
