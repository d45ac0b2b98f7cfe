"""What a fault did: one copy, agents that answer, no move open, no connection that knows of it.

Looked at after each fault, once all has settled; and in the end every byte is asked for. The first
harm ends a run: what comes after it would say the same.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mycoproxy.agent.control_client import ControlClient
from mycoproxy.errors import MycoError
from netlab.agents import LabAgents
from netlab.lab import Lab
from netlab.paths.clients import PathClients
from netlab.paths.table import WORKLOAD

_SETTLE_SECONDS: Final = 30.0
_LAST_SECONDS: Final = 60.0
_POLL: Final = 0.02
_LINES: Final = 12  # of each agent's log


@dataclass(slots=True)
class Result:
    """What ``--json`` prints.

    ``moved`` and ``rolled_back`` count the moves with a fault in them; ``not_reached`` others, that
    ended before their fault's step and were tried again. ``wrong_copies``: times when not exactly
    one copy ran; ``needless_resets``: connections that were told by one; ``connections_lost``: that
    ended otherwise, or lack bytes; ``journals_left``: agents with a move open that should be over;
    ``agents_died``: agents that do not answer, though nobody does anything to them.
    ``journal_refusals``: lines in the agents' logs that a full disk did not take a record: at least
    so many, for lines that repeat are not all written. ``logs``: where they are kept after a harm.
    """

    injected: int = 0
    moved: int = 0
    rolled_back: int = 0
    not_reached: int = 0
    wrong_copies: int = 0
    bytes_wrong: int = 0
    needless_resets: int = 0
    connections_lost: int = 0
    journals_left: int = 0
    agents_died: int = 0
    journal_refusals: int = 0
    seed: int = 0
    part: str = "1/1"
    seconds: float = 0.0
    by_kind: dict[str, int] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    logs: str = ""

    @property
    def is_good(self) -> bool:
        """Nothing was wrong."""
        return not (
            self.wrong_copies
            or self.bytes_wrong
            or self.needless_resets
            or self.connections_lost
            or self.journals_left
            or self.agents_died
            or self.messages
        )


class Judge:
    """Of one lab; writes what it finds into ``result``."""

    def __init__(
        self, lab: Lab, agents: LabAgents, clients: PathClients, result: Result, logs: Path | None
    ) -> None:
        self._lab, self._agents, self._clients = lab, agents, clients
        self._result = result
        self._logs = logs
        self._begin: dict[str, int] = {}

    def begin(self) -> None:
        """A fault is about to come: what the agents say from now on belongs to it."""
        self._begin = {node: self._agents.log(node).stat().st_size for node in self._agents.nodes}

    def look(self, after: str) -> None:
        """Wait until all is over; count and tell what is wrong then."""
        harms = [*self._open(), *self._copies()]
        if not harms:
            try:
                harms += self._ends()
            except MycoError as error:  # a workload that stands still, or is not there
                self._result.wrong_copies += 1
                harms.append(f"an end does not answer: {error}")
        self.tell(after, harms)

    def tell(self, after: str, harms: list[str]) -> None:
        """Write down what is wrong, with what the agents have to say, and keep their logs."""
        if not harms:
            return
        self._result.messages += [f"after {after}: {harm}" for harm in harms]
        for node in self._agents.nodes:
            lines = self._said(node)[-_LINES:]
            self._result.messages += [f"{node}: {line}" for line in lines]
        kept = self._logs or Path(tempfile.mkdtemp(prefix="handover-faults-"))
        kept.mkdir(parents=True, exist_ok=True)
        for node in self._agents.nodes:
            shutil.copy(self._agents.log(node), kept / f"{node}.log")
            for journal in self._agents.journals(node):
                shutil.copy(journal, kept / f"{node}-{journal.name}")
        shutil.copytree(self._lab.logs, kept / "lab", dirs_exist_ok=True)
        self._result.logs = str(kept)
        self._result.messages.append(f"logs are kept in {kept}")

    def finish(self) -> None:
        """Every byte of every connection, and what the journals did not take."""
        self.begin()
        lost = []
        for one in self._clients.finish(_LAST_SECONDS):
            self._result.bytes_wrong += one.wrong
            self._result.needless_resets += bool(one.resets)
            if not one.ok:
                self._result.connections_lost += not one.resets
                lost.append(f"{one.path} IPv{one.family} {one.activity}: {one.error or 'wrong'}")
        self.tell("all", lost)

    def count_refusals(self) -> None:
        """Look for what a full disk did not take."""
        for node in self._agents.nodes:
            lines = self._agents.log(node).read_text(errors="replace").splitlines()
            self._result.journal_refusals += sum(
                "journal of" in line and "No space left" in line for line in lines
            )

    def _open(self) -> list[str]:
        deadline = time.monotonic() + _SETTLE_SECONDS
        silent = _left(self._agents.nodes, self._is_silent, deadline)
        left = _left(self._agents.nodes, self._agents.journals, deadline)
        self._result.agents_died += len(silent)
        self._result.journals_left += len(left)
        return [
            *(f"the agent of {node} does not answer" for node in silent),
            *(f"a move is open on {node}" for node in left),
        ]

    def _is_silent(self, node: str) -> bool:
        try:
            ControlClient(self._agents.socket(node)).get("/v1/status")
        except MycoError:
            return True
        return False

    def _copies(self) -> list[str]:
        copies = [pod for pod in self._lab.sandboxes() if pod.name == WORKLOAD and pod.running]
        if len(copies) == 1:
            return []
        self._result.wrong_copies += 1
        return [f"the workload runs {', '.join(pod.node for pod in copies) or 'nowhere'}"]

    def _ends(self) -> list[str]:
        reports = self._clients.reports().values()
        reset = sum(any(end["reset"] for end in ends) for ends in reports)
        lost = sum(
            any(end["error"] for end in ends) and not any(end["reset"] for end in ends)
            for ends in reports
        )
        wrong = sum(end["wrong"] for ends in reports for end in ends)
        self._result.needless_resets += reset
        self._result.connections_lost += lost
        self._result.bytes_wrong += wrong
        found = {"connections were reset": reset, "connections ended": lost, "bytes wrong": wrong}
        return [f"{number} {what}" for what, number in found.items() if number]

    def _said(self, node: str) -> list[str]:
        with self._agents.log(node).open("rb") as log:
            log.seek(self._begin.get(node, 0))
            return log.read().decode(errors="replace").splitlines()


def _left(nodes: list[str], is_left: Callable[[str], Any], deadline: float) -> list[str]:
    """Those of which it is true still at the deadline; [] as soon as there are none."""
    while (left := [node for node in nodes if is_left(node)]) and time.monotonic() < deadline:
        time.sleep(_POLL)
    return left
