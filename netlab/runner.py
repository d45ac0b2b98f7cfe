"""Runs a scenario: brings the lab up, starts load and captures, moves, and takes it all down again.

Everything is taken down whatever happens: a failure, a signal. What is measured is plain data
(``Outcome``); what it means is ``report``'s business.
"""

import asyncio
import functools
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from migrate.machine.report import MoveReport
from mycoproxy.errors import MycoError
from netlab import inventory, topology
from netlab.capture import Capture, Findings, Servers, find, read_pcap
from netlab.capture.merge import merge
from netlab.lab import Lab
from netlab.load.process import LoadProcess
from netlab.load.series import read_samples
from netlab.load.summary import ClientSummary
from netlab.moving import move_pod
from netlab.report import ClientRun, MoveTimes
from netlab.scenario import Client, Move, Scenario, Wait
from netlab.streams import UploadInFreeze, uploads_in_freezes

Progress = Callable[[str], None]

_PRELOAD_SECONDS = 60.0
# A client's own bound: it ends by itself, should whatever started it be gone.
_CLIENT_SECONDS = 3600.0


@dataclass(slots=True)
class Outcome:
    """What a run measured. ``error`` is what ended it early, if anything did."""

    moves: list[MoveTimes] = field(default_factory=list)
    reports: list[MoveReport] = field(default_factory=list)
    clients: list[ClientRun] = field(default_factory=list)
    findings: Findings | None = None
    capture_drops: int = 0
    uploads: list[UploadInFreeze] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    error: MycoError | None = None


class Runner:
    """One run of a scenario in a lab of its own. ``out`` gets the logs of what failed."""

    def __init__(
        self, scenario: Scenario, *, lab_name: str | None, out: Path, progress: Progress
    ) -> None:
        self._scenario = scenario
        self._topology = topology.load(Path(scenario.topology))
        self._lab_name = lab_name or scenario.name
        self._out = out
        self._progress = progress
        self._outcome = Outcome()
        self._pod_addresses: set[str] = set()

    async def run(self, moves: int | None) -> Outcome:
        """Run it, with so many moves (as the time line says if None).

        A ``MycoError`` after the lab was up is part of the outcome. Raises ``MycoError`` if the
        lab could not be brought up, and passes a cancellation on after taking the lab down.
        """
        steps = self._scenario.steps(moves)
        self._progress(f"lab {self._lab_name}: nodes, links, Services")
        lab = Lab.up(self._topology, self._lab_name)
        try:
            scratch = lab.layout.scratch
            scratch.mkdir()
            try:
                await self._in(lab, scratch, steps)
            except MycoError as error:
                self._outcome.error = error
                self._save(lab.logs, scratch)
        finally:
            self._progress("taking the lab down")
            lab.down()
            self._outcome.leftovers = inventory.leftovers(self._lab_name)
        return self._outcome

    async def _in(self, lab: Lab, scratch: Path, steps: Sequence[Wait | Move]) -> None:
        scenario = self._scenario
        pod = lab.start_pod(scenario.pod)
        self._pod_addresses.update(pod.addresses)
        self._preload(lab, scratch)
        captures: list[Capture] = []
        processes: list[tuple[Client, LoadProcess]] = []
        try:
            for tap in scenario.captures:
                path = scratch / f"{tap.node}-{tap.device}.pcap"
                start = functools.partial(lab.popen, tap.node)
                captures.append(Capture(start, tap.device, path))
            self._progress(f"{len(scenario.clients)} clients connect")
            for client in scenario.clients:
                processes.append((client, self._start(lab, client, scratch)))
            for _, process in processes:
                process.wait_ready()
            await self._follow(lab, steps)
        finally:
            # Whatever happened: what the clients and the captures saw by now is wanted.
            self._progress("reading what the clients saw")
            self._stop_clients(processes, scratch)
            self._stop_captures(captures)

    def _preload(self, lab: Lab, scratch: Path) -> None:
        wanted = self._scenario.preload
        megabytes = wanted.keys * wanted.value_bytes / 1e6
        self._progress(f"filling the server with {wanted.keys:,} keys ({megabytes:.0f} MB)")
        node = self._scenario.clients[0].node
        loading = LoadProcess(
            functools.partial(lab.popen, node),
            ["preload", *self._server(lab, "service", 4), *self._keys()],
            log=scratch / "preload.log",
        )
        loading.wait_ready(_PRELOAD_SECONDS)
        if not loading.stop(_PRELOAD_SECONDS).ok:
            raise MycoError("the server did not take what it was to be filled with")

    def _keys(self) -> list[str]:
        wanted = self._scenario.preload
        return ["--keys", str(wanted.keys), "--value-bytes", str(wanted.value_bytes)]

    def _server(self, lab: Lab, to: str, version: int) -> list[str]:
        service = lab.topology.service(self._scenario.service)
        pod = lab.pod(self._scenario.pod)
        addresses = map(str, service.addresses) if to == "service" else pod.addresses
        host = next((each for each in addresses if (":" in each) == (version == 6)), None)
        if host is None:
            raise MycoError(f"the {to} has no IPv{version} address")
        return ["--host", host, "--port", str(service.port if to == "service" else pod.port)]

    def _start(self, lab: Lab, client: Client, scratch: Path) -> LoadProcess:
        arguments = [client.kind, *self._server(lab, client.to, client.ip)]
        arguments += ["--name", client.name, "--group", client.group]
        arguments += ["--seconds", str(_CLIENT_SECONDS)]
        arguments += ["--samples", str(_samples(scratch, client))]
        if client.kind in ("checker", "benchmark"):
            arguments += ["--connections", str(client.connections)]
        if client.kind == "checker":
            arguments += ["--think", str(client.think_ms / 1e3), *self._keys()]
        if client.kind == "redis-cli":
            arguments += ["--interval", str(client.think_ms / 1e3)]
        if client.kind in ("download", "upload"):
            arguments += ["--size", str(client.size_mb << 20), "--rate", str(client.rate_mb * 1e6)]
        return LoadProcess(
            functools.partial(lab.popen, client.node),
            arguments,
            log=scratch / f"{client.name}.log",
        )

    async def _follow(self, lab: Lab, steps: Sequence[Wait | Move]) -> None:
        total = sum(isinstance(step, Move) for step in steps)
        done = 0
        for step in steps:
            if isinstance(step, Wait):
                await asyncio.sleep(step.wait)
                continue
            done += 1
            report = await move_pod(lab, self._scenario.pod, step.move_to, logs=self._out)
            self._pod_addresses.update(lab.pod(self._scenario.pod).addresses)
            self._outcome.reports.append(report)
            times = _times(done - 1, report)
            self._outcome.moves.append(times)
            self._progress(
                f"move {done} of {total}: {report.source} -> {report.target}, "
                f"{report.connections} connections, freeze {times.freeze_ms:.0f} ms, "
                f"handover {times.handover_ms:.1f} ms"
            )
        await asyncio.sleep(self._scenario.settle)

    def _stop_clients(self, processes: Sequence[tuple[Client, LoadProcess]], scratch: Path) -> None:
        failures: list[MycoError] = []
        for client, process in processes:
            try:
                summary: ClientSummary = process.stop()
            except MycoError as error:
                failures.append(error)
                continue
            path = _samples(scratch, client)
            samples = read_samples(path) if path.exists() and path.stat().st_size else None
            self._outcome.clients.append(ClientRun(summary, samples))
        if failures:
            raise failures[0]

    def _stop_captures(self, captures: Sequence[Capture]) -> None:
        service = self._topology.service(self._scenario.service)
        pod = self._topology.pod(self._scenario.pod)
        servers = Servers(
            paths={
                "service": frozenset(map(str, service.addresses)),
                "direct": frozenset(self._pod_addresses),
            },
            ports=frozenset({service.port, pod.port or service.port}),
        )
        resumes = [move.resume for move in self._outcome.moves]
        found = []
        for capture in captures:
            self._outcome.capture_drops += capture.stop().dropped
            packets = read_pcap(capture.path, capture.clock)
            found.append(find(packets, servers, resumes))
            summaries = [client.summary for client in self._outcome.clients]
            self._outcome.uploads += uploads_in_freezes(
                packets, servers, summaries, self._outcome.moves
            )
        self._outcome.findings = merge(found)

    def _save(self, *directories: Path) -> None:
        self._out.mkdir(parents=True, exist_ok=True)
        for directory in directories:
            for log in directory.glob("*.log"):
                shutil.copy(log, self._out / log.name)


def _samples(scratch: Path, client: Client) -> Path:
    return scratch / f"{client.name}.samples"


def _times(index: int, report: MoveReport) -> MoveTimes:
    return MoveTimes(
        index=index,
        source=report.source,
        target=report.target,
        freeze_start=report.marks["begin"],
        handover_start=report.marks["restore"],
        handover_end=report.marks["handover"],
        resume=report.marks["resume"],
        phases_ms=report.phases_ms(),
        connections_moved=report.connections,
    )


def elapsed(progress: Progress) -> Progress:
    """A progress that is told the seconds since now, too."""
    begin = time.monotonic()
    return lambda text: progress(f"{time.monotonic() - begin:5.1f} s  {text}")
