"""Faults in the middle of handovers: agents killed, stopped, cut off, with a full disk.

A lab of topology ``kube-service`` with real agents; the workload moves again and again, and in each
move one fault is injected, at a moment of its own (``fault_plan``). After each: exactly one copy
runs, every agent answers, and nobody has a move open (``fault_judging``). In the end every
connection has all its bytes, and was never reset.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from migrate.machine.plan import Deadlines
from mycoproxy.errors import MycoError
from netlab import inventory, topology
from netlab.agents import LabAgents
from netlab.fault_injection import Injection
from netlab.fault_judging import Judge, Result
from netlab.fault_plan import Fault, Part, choose
from netlab.lab import Lab, running
from netlab.moving import move_pod
from netlab.paths.clients import PathClients
from netlab.paths.table import PATHS, WORKLOAD
from netlab.topology import Topology

Progress = Callable[[str], None]

#: Seconds between two sends of a connection. Half of them are in the middle of something when the
#: tasks are frozen; more often, and the clients take the time that the agents need.
_BEAT: Final = 0.05
_STATE_MB: Final = 4
_TRIES: Final = 5
_DEADLINES: Final = Deadlines(dump=10, restore=10, send=10, resume=20)


class Faults:
    """A run: ``part`` of the ``count`` faults of ``seed``. ``run`` it once.

    ``logs``: where to keep the agents' logs if there is harm; default: a new temporary directory.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        progress: Progress,
        *,
        part: Part = Part(),  # noqa: B008 - frozen
        lab: str = "faults",
        logs: Path | None = None,
    ) -> None:
        self._faults = part.of(choose(count, seed))
        self._progress, self._lab_name, self._logs = progress, lab, logs
        self._result = Result(seed=seed, part=str(part))
        self._lab: Lab
        self._agents: LabAgents
        self._judge: Judge

    def run(self) -> Result:
        """Everything up to the first harm, and take it down."""
        begin = time.monotonic()
        inventory.remove(self._lab_name)
        rows = [row for row in PATHS if not row.name.startswith("self-")]
        with ExitStack() as stack:
            self._lab = stack.enter_context(running(_topology(), self._lab_name))
            self._agents = stack.enter_context(LabAgents(self._lab, state_mb=_STATE_MB))
            clients = stack.enter_context(
                PathClients(self._lab, rows, activities=("sending", "receiving"), beat=_BEAT)
            )
            clients.start()
            clients.wait_until_open(60)
            self._judge = Judge(self._lab, self._agents, clients, self._result, self._logs)
            for number, fault in enumerate(self._faults, 1):
                self._one(number, fault)
                if not self._result.is_good:
                    break  # what comes after it would say the same
            else:
                self._last()
            if self._result.is_good:
                self._judge.finish()
            self._judge.count_refusals()
        self._result.seconds = round(time.monotonic() - begin, 1)
        return self._result

    def _last(self) -> None:
        """After all that, a move that nothing happens to has to come about."""
        self._judge.begin()
        source = self._lab.pod(WORKLOAD).node
        target = next(node for node in self._agents.nodes if node != source)
        try:
            asyncio.run(move_pod(self._lab, WORKLOAD, target, agents=self._agents))
        except MycoError as error:
            self._judge.tell("all", [f"a move without a fault failed: {error}"])
        else:
            self._judge.look("all")

    def _one(self, number: int, fault: Fault) -> None:
        """A move with this fault; more than one if it does not come to the fault's step."""
        for _ in range(_TRIES):
            if self._attempt(number, fault):
                self._result.injected += 1
                kinds = self._result.by_kind
                kinds[fault.kind] = kinds.get(fault.kind, 0) + 1
                return
            if not self._result.is_good:
                return
            self._result.not_reached += 1
        self._judge.tell(str(fault), [f"{_TRIES} moves did not come so far"])

    def _attempt(self, number: int, fault: Fault) -> bool:
        """One move, and what is to be said of it. Whether the fault was injected."""
        source = self._lab.pod(WORKLOAD).node
        others = [node for node in self._agents.nodes if node != source]
        target, peer = others[fault.turn], others[1 - fault.turn]
        victim = {"source": source, "target": target, "peer": peer}[fault.role]
        self._judge.begin()
        begun, failure, error = asyncio.run(self._move(target, fault, victim))
        if begun:
            self._result.moved += error is None
            self._result.rolled_back += error is not None
        outcome = "moved" if error is None else f"rolled back ({str(error)[:120]})"
        what = str(fault) if begun else f"no fault, {fault.step.value} was not reached"
        self._progress(f"{number}: {source} -> {target}, {what} ({victim}): {outcome}")
        if failure is not None:
            self._judge.tell(str(fault), [str(failure)])
        else:
            self._judge.look(f"{fault} ({source} -> {target})")
        return begun

    async def _move(
        self, target: str, fault: Fault, victim: str
    ) -> tuple[bool, MycoError | None, MycoError | None]:
        """Whether the fault came, what went wrong in bringing it about, and why nothing moved."""
        injection = Injection(self._lab, self._agents, fault, victim)
        failure = error = None
        try:
            await move_pod(
                self._lab,
                WORKLOAD,
                target,
                agents=self._agents,
                progress=injection.reach,
                deadlines=_DEADLINES,
            )
        except MycoError as failed:
            error = failed
        finally:
            try:
                await injection.end()
            except MycoError as failed:
                failure = failed
        return injection.begun, failure, error


def _topology() -> Topology:
    """The workload sends as often as its clients do."""
    loaded = topology.load(Path("kube-service"))
    pods = tuple(
        pod.model_copy(update={"args": ("--beat", str(_BEAT))}) if pod.name == WORKLOAD else pod
        for pod in loaded.pods
    )
    return loaded.model_copy(update={"pods": pods})
