"""The workload of topology ``kube-service`` moves under every path there is, by real agents.

Every row of ``netlab.paths.table`` is opened over IPv4 and IPv6, by a client that sends, one that
receives and one that is idle; then the workload moves, with traffic going on. Rows are judged by
what their two ends saw, by what the agents say they did for them, and by the resets that crossed
the router. How long a gap was is reported and not judged: on a busy machine it is the machine's.
"""

import asyncio
import functools
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from migrate.machine.report import MoveReport
from mycoproxy.addresses import Endpoint
from mycoproxy.errors import MycoError, UsageError
from netlab import inventory, topology
from netlab.agents import PORT, LabAgents
from netlab.capture import Capture, read_pcap
from netlab.capture.packets import SYN
from netlab.lab import Lab
from netlab.moving import move_pod
from netlab.paths.clients import Connection, PathClients
from netlab.paths.end.stream import Report
from netlab.paths.result import PathResult
from netlab.paths.table import WORKLOAD
from netlab.rehome_rows import Moved, Row, judge_row, pairs_of, resets_in, strategies

Progress = Callable[[str], None]
Resets = Mapping[frozenset[Endpoint], int]
"""How many resets there were between two endpoints, whoever sent them."""

_ROUTER: Final = "router"
_HOSTS: Final = ("alpha", "beta", "gamma")  # whatever the router forwards comes or goes by these
_OPEN_SECONDS: Final = 30.0
_ARRIVE_SECONDS: Final = 20.0
_TRAFFIC_BYTES: Final = 160  # each way: twenty beats of the direction that sends little
_TRAFFIC_SECONDS: Final = 10.0
_JOURNAL_SECONDS: Final = 10.0
_POLL: Final = 0.1
# SYNs prove that a capture sees the connections. pcap-filter's tcp[] is for IPv4 only; 6 is SYN and
# RST, in the 14th byte of the header.
_EXPRESSION: Final = (
    f"not port {PORT} and ((tcp[13] & 6 != 0) or (ip6[6] == 6 and ip6[40 + 13] & 6 != 0))"
)


@dataclass(slots=True)
class Matrix:
    """What a run came to. ``failures``: why it is not good, a line each.

    ``moves``: the movers' reports, with how many connections each strategy was used for.
    ``logs``: where the logs of a run that failed are.
    """

    rows: list[Row] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    moves: list[dict[str, object]] = field(default_factory=list)
    journals_left: int = 0
    leftovers: list[str] = field(default_factory=list)
    logs: Path | None = None

    @property
    def ok(self) -> bool:
        """Every row is, and nothing else was wrong."""
        return bool(self.rows) and not self.failures


class RehomeMatrix:
    """A run in a lab of its own: ``moves`` are the nodes to go to, one after the other.

    ``out`` is where the logs of a run that failed are copied. With ``keep`` the lab and its agents
    stay up when all is done. Raises ``UsageError`` for moves that lead nowhere.
    """

    def __init__(
        self,
        moves: Sequence[str] = ("beta",),
        *,
        out: Path,
        lab_name: str | None = None,
        keep: bool = False,
        progress: Progress = lambda _: None,
    ) -> None:
        self._topology = topology.load(Path("kube-service"))
        self._moves = tuple(moves)
        self._out = out
        self._lab_name = lab_name or self._topology.name
        self._keep = keep
        self._progress = progress
        self._matrix = Matrix()
        self._moved: list[Moved] = []
        self._pairs: dict[frozenset[Endpoint], int] = {}
        home = self._topology.pod(WORKLOAD).node
        for before, node in zip((home, *self._moves), self._moves, strict=False):
            if node not in _HOSTS or node == before:
                raise UsageError(
                    f"a move from {before} to {node!r} is wanted: only another one of "
                    f"{', '.join(_HOSTS)} will do"
                )

    async def run(self) -> Matrix:
        """Run it. A ``MycoError`` after the lab was up is one of the failures.

        Raises ``MycoError`` if there could be no lab. However it ends, the lab is taken down.
        """
        with ExitStack() as stack:
            self._progress(f"lab {self._lab_name}: nodes, links, Services, pods")
            lab = Lab.up(self._topology, self._lab_name)
            stack.callback(self._take_down, lab)
            agents = LabAgents(lab)
            stack.callback(agents.stop)
            try:
                for pod in self._topology.pods:
                    lab.start_pod(pod.name)
                self._progress(f"agents on {', '.join(agents.nodes)}")
                agents.start()
                await self._measure(lab, agents)
                await self._wait_for_journals(agents)
            except MycoError as error:
                self._matrix.failures.append(str(error))
            if not self._matrix.ok:
                self._save_logs(lab, agents)
            if self._keep:
                stack.pop_all()
                lab.close()
                self._progress(f"lab {self._lab_name} stays up: netlab down {self._lab_name}")
        return self._matrix

    async def _measure(self, lab: Lab, agents: LabAgents) -> None:
        with ExitStack() as stack:
            clients = stack.enter_context(PathClients(lab))
            lab.layout.scratch.mkdir(exist_ok=True)
            start = functools.partial(lab.popen, _ROUTER)
            captures = [
                stack.enter_context(
                    Capture(
                        start, device, lab.layout.scratch / f"{device}.pcap", expression=_EXPRESSION
                    )
                )
                for device in _HOSTS
            ]
            clients.start()
            clients.wait_until_open(_OPEN_SECONDS)
            self._progress(f"{len(clients.connections)} connections are open")
            await self._traffic(clients)
            for node in self._moves:
                try:
                    await self._move(lab, agents, clients, node)
                except MycoError as error:
                    self._matrix.failures.append(f"the move to {node} failed: {error}")
                    break
                await self._traffic(clients)
            self._progress("asking the idle ones, and letting everything arrive")
            results = clients.finish(_ARRIVE_SECONDS)
            resets = self._resets(captures)
        self._judge(clients.connections, results, resets)

    async def _move(self, lab: Lab, agents: LabAgents, clients: PathClients, node: str) -> None:
        before = clients.reports()
        report: MoveReport = await move_pod(lab, WORKLOAD, node, agents=agents)
        found = strategies(clients.connections, before, report.rehomed)
        self._moved.append(Moved(report.marks["begin"], max(report.marks.values()), found))
        counts = dict(Counter(found.values()))
        self._matrix.moves.append({**report.as_dict(), "strategies": counts})
        self._progress(
            f"{report.source} -> {report.target}: {report.connections} connections, "
            f"freeze {report.freeze_ms:.0f} ms"
        )

    async def _traffic(self, clients: PathClients) -> None:
        """Let all that stream do so for a little while; what does not shows in its row."""
        streaming = [each.number for each in clients.connections if each.activity != "idle"]
        # To answer takes the ends some milliseconds, which would lengthen the gaps of a move.
        await asyncio.sleep(_POLL)
        before, deadline = clients.reports(), time.monotonic() + _TRAFFIC_SECONDS

        def goes_on(number: int, now: Mapping[int, Sequence[Report]]) -> bool:
            known = {end["opener"]: end["received"] for end in before[number]}
            return all(
                end["error"] or end["received"] >= known.get(end["opener"], 0) + _TRAFFIC_BYTES
                for end in now[number]
            )

        self._learn_pairs(before)
        while time.monotonic() < deadline:
            now = clients.reports()
            if all(goes_on(number, now) for number in streaming):
                return
            await asyncio.sleep(_POLL)
        self._progress(f"not everything streams within {_TRAFFIC_SECONDS:g} s: going on")

    def _learn_pairs(self, reports: Mapping[int, Sequence[Report]]) -> None:
        for number, ends in reports.items():
            self._pairs |= dict.fromkeys(pairs_of(ends), number)

    def _resets(self, captures: Sequence[Capture]) -> Resets:
        seen: set[tuple[Endpoint, Endpoint, int, int]] = set()
        for capture in captures:
            dropped = capture.stop().dropped
            packets = read_pcap(capture.path)
            if dropped or not (packets.flags & SYN).any():
                self._matrix.failures.append(
                    f"the capture at {_ROUTER}'s {capture.interface} is worth nothing: {dropped} "
                    f"packets dropped, {len(packets)} seen"
                )
            # What goes from one host to another crosses two of the devices.
            seen.update(resets_in(packets))
        return Counter(frozenset((source, destination)) for source, destination, *_ in seen)

    def _judge(
        self, connections: Sequence[Connection], results: Sequence[PathResult], resets: Resets
    ) -> None:
        self._learn_pairs(
            {each.number: result.ends for each, result in zip(connections, results, strict=True)}
        )
        counts: Counter[int] = Counter()
        for pair, count in resets.items():
            if pair in self._pairs:
                counts[self._pairs[pair]] += count
            else:
                names = " and ".join(sorted(map(str, pair)))
                self._matrix.failures.append(f"{count} resets between {names}, of no row known")
        for each, result in zip(connections, results, strict=True):
            row, why = judge_row(each, result, self._moved, counts[each.number])
            self._matrix.rows.append(row)
            if why:
                name = f"{row.path} IPv{row.family} {row.activity}"
                self._matrix.failures.append(f"{name}: {why}")

    async def _wait_for_journals(self, agents: LabAgents) -> None:
        """The agents are done with a move a little later than the mover is."""
        deadline = time.monotonic() + _JOURNAL_SECONDS
        while left := [path for node in agents.nodes for path in agents.journals(node)]:
            if time.monotonic() > deadline:
                self._matrix.journals_left = len(left)
                self._matrix.failures.append(f"journals are left: {', '.join(map(str, left))}")
                return
            await asyncio.sleep(_POLL)

    def _save_logs(self, lab: Lab, agents: LabAgents) -> None:
        self._out.mkdir(parents=True, exist_ok=True)
        for node in agents.nodes:
            if agents.log(node).exists():
                shutil.copy(agents.log(node), self._out / f"agent-{node}.log")
        for log in lab.logs.glob("*.log"):
            shutil.copy(log, self._out / log.name)
        self._matrix.logs = self._out

    def _take_down(self, lab: Lab) -> None:
        self._progress("taking the lab down")
        lab.down()
        self._matrix.leftovers = inventory.leftovers(self._lab_name)
        self._matrix.failures += [f"left behind: {each}" for each in self._matrix.leftovers]
