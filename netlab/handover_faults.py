"""Faults in the middle of handovers: agents killed, stopped, cut off, with a full disk.

A lab of topology ``kube-service`` with real agents; the workload moves again and again, and in each
move one fault is injected, at a moment of its own: when the move comes to a certain step, and some
milliseconds later. After each: exactly one copy runs, and nobody has a move open. In the end every
connection has all its bytes, and was never reset.
"""

import asyncio
import random
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from migrate.machine.machine import Action
from migrate.machine.plan import Deadlines
from mycoproxy.errors import MycoError
from netlab import inventory, topology
from netlab.agents import PORT, LabAgents
from netlab.lab import Lab, running
from netlab.moving import move_pod
from netlab.paths.clients import PathClients
from netlab.paths.table import PATHS, WORKLOAD
from netlab.services import apply

Progress = Callable[[str], None]

KINDS: Final = ("kill", "stop", "cut", "full")
STEPS: Final = (Action.FREEZE, Action.DUMP, Action.SEND, Action.RESTORE, Action.HAND_OVER)
ROLES: Final = ("source", "target", "peer")
_STOPPED_SECONDS: Final = 1.5
_CUT_SECONDS: Final = 1.5
_FULL_SECONDS: Final = 1.0
_SETTLE_SECONDS: Final = 30.0
_LATEST_MS: Final = 80
_STATE_MB: Final = 4


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens, to whom, and when: ``delay_ms`` after the move has come to ``step``."""

    kind: str
    role: str
    step: Action
    delay_ms: float

    def __str__(self) -> str:
        return f"{self.kind} {self.role} {self.delay_ms:.0f} ms into {self.step.value}"


@dataclass(slots=True)
class Result:
    """What ``--json`` prints. ``needless_resets``: connections that were told by one."""

    injected: int = 0
    moved: int = 0
    rolled_back: int = 0
    wrong_copies: int = 0
    bytes_wrong: int = 0
    needless_resets: int = 0
    connections_lost: int = 0
    journals_left: int = 0
    seed: int = 0
    seconds: float = 0.0
    by_kind: dict[str, int] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Nothing was wrong."""
        return not (
            self.wrong_copies
            or self.bytes_wrong
            or self.needless_resets
            or self.connections_lost
            or self.journals_left
            or self.messages
        )


def choose(chance: random.Random) -> Fault:
    """One fault. Late steps more often: that is where the handover is."""
    steps = [*STEPS, *[Action.HAND_OVER] * 5]
    return Fault(
        chance.choice(KINDS),
        chance.choice(ROLES),
        chance.choice(steps),
        chance.uniform(0, _LATEST_MS),
    )


class Faults:
    """A run of ``count`` faults. ``run`` it once."""

    def __init__(self, count: int, seed: int, progress: Progress, *, lab: str = "faults") -> None:
        self._count, self._progress, self._lab_name = count, progress, lab
        self._chance = random.Random(seed)  # noqa: S311
        self._result = Result(seed=seed)
        self._lab: Lab
        self._clients: PathClients
        self._agents: LabAgents

    def run(self) -> Result:
        """Everything up to the first harm, and take it down."""
        begin = time.monotonic()
        inventory.remove(self._lab_name)
        rows = [row for row in PATHS if not row.name.startswith("self-")]
        with ExitStack() as stack:
            lab = running(topology.load(Path("kube-service")), self._lab_name)
            self._lab = stack.enter_context(lab)
            self._agents = stack.enter_context(LabAgents(self._lab, state_mb=_STATE_MB))
            self._clients = clients = stack.enter_context(
                PathClients(self._lab, rows, activities=("sending", "receiving"), beat=0.02)
            )
            clients.start()
            clients.wait_until_open(60)
            for number in range(self._count):
                self._one(number)
                if self._result.wrong_copies or self._result.needless_resets:
                    break  # what comes after it would say the same
            if not self._result.wrong_copies:
                self._judge(clients)
        self._result.seconds = round(time.monotonic() - begin, 1)
        return self._result

    def _one(self, number: int) -> None:
        fault = choose(self._chance)
        source = self._lab.pod(WORKLOAD).node
        others = [node for node in self._agents.nodes if node != source]
        target = self._chance.choice(others)
        victim = {
            "source": source,
            "target": target,
            "peer": next(node for node in others if node != target),
        }[fault.role]
        try:
            asyncio.run(self._move(target, fault, victim))
            outcome = "moved"
            self._result.moved += 1
        except MycoError as error:
            outcome = f"rolled back ({str(error)[:120]})"
            self._result.rolled_back += 1
        self._result.injected += 1
        kinds = self._result.by_kind
        kinds[fault.kind] = kinds.get(fault.kind, 0) + 1
        self._settle(fault)
        self._progress(f"{number + 1}: {source} -> {target}, {fault} ({victim}): {outcome}")

    async def _move(self, target: str, fault: Fault, victim: str) -> None:
        loop = asyncio.get_running_loop()
        injecting: list[asyncio.Task[None]] = []

        def progress(text: str) -> None:
            if text == fault.step.value and not injecting:
                injecting.append(loop.create_task(self._inject(fault, victim)))

        try:
            await move_pod(
                self._lab,
                WORKLOAD,
                target,
                agents=self._agents,
                progress=progress,
                deadlines=Deadlines(dump=10, restore=10, send=10, resume=20),
            )
        finally:
            await asyncio.gather(*injecting, return_exceptions=True)

    async def _inject(self, fault: Fault, victim: str) -> None:
        await asyncio.sleep(fault.delay_ms / 1e3)
        agents = self._agents
        match fault.kind:
            case "kill":
                await asyncio.to_thread(agents.kill, victim)
                await asyncio.to_thread(agents.start_one, victim)
                await asyncio.to_thread(agents.wait_ready, victim)
            case "stop":
                agents.signal(victim, signal.SIGSTOP)
                await asyncio.sleep(_STOPPED_SECONDS)
                agents.signal(victim, signal.SIGCONT)
            case "cut":
                self._cut(victim)
                await asyncio.sleep(_CUT_SECONDS)
                self._heal(victim)
            case "full":
                filler = agents.state(victim) / "filler"
                await asyncio.to_thread(_fill, filler)
                await asyncio.sleep(_FULL_SECONDS)
                filler.unlink(missing_ok=True)

    def _cut(self, node: str) -> None:
        rules = (
            "table inet netlab-cut { chain in { type filter hook input priority -400; "
            f"tcp dport {PORT} drop; tcp sport {PORT} drop; }} "
            "chain out { type filter hook output priority -400; "
            f"tcp dport {PORT} drop; tcp sport {PORT} drop; }} }}\n"
        )
        self._lab.node(node).worker.call(apply, rules)

    def _heal(self, node: str) -> None:
        self._lab.node(node).worker.call(apply, "delete table inet netlab-cut\n")

    def _settle(self, fault: Fault) -> None:
        """Wait until all is over; count what is wrong then."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while True:
            left = [node for node in self._agents.nodes if self._agents.journals(node)]
            if not left or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        if left:
            self._result.journals_left += len(left)
            self._result.messages.append(f"after {fault}: moves are open on {', '.join(left)}")
        copies = [pod for pod in self._lab.sandboxes() if pod.name == WORKLOAD and pod.running]
        if len(copies) != 1:
            where = ", ".join(pod.node for pod in copies) or "nowhere"
            self._result.wrong_copies += 1
            self._result.messages.append(f"after {fault}: the workload runs {where}")
            return
        told = [
            ends for ends in self._clients.reports().values() if any(end["reset"] for end in ends)
        ]
        if told:
            self._result.needless_resets = len(told)
            self._result.messages.append(f"after {fault}: {len(told)} connections were reset")

    def _judge(self, clients: PathClients) -> None:
        for one in clients.finish(60):
            self._result.bytes_wrong += one.wrong
            if not one.ok:
                self._result.connections_lost += 1
                self._result.messages.append(
                    f"{one.path} IPv{one.family} {one.activity}: {one.error}"
                )


def _fill(path: Path) -> None:
    with path.open("wb") as file:
        try:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        except OSError:
            pass
