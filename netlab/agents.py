"""Agents for a lab: a real ``mycoproxy agent`` process on each node that hosts pods."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from mycoproxy.agent.control_client import ControlClient
from mycoproxy.errors import MycoError
from mycoproxy.pki.authority_directory import AuthorityDirectory
from netlab import syscalls
from netlab.lab import Lab

PORT: Final = 7420
_METRICS: Final = 7421
_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 15.0
_POLL: Final = 0.02
_COMMAND: Final = (
    sys.executable,
    "-c",
    "from mycoproxy.cli import main; main(prog_name='mycoproxy')",
    "agent",
)


class LabAgents:
    """The agents of one lab. ``start`` brings all of them up; ``stop`` ends them.

    ``state_mb``: give each a file system of that size for its state, which can be filled up.
    """

    def __init__(self, lab: Lab, *, state_mb: int | None = None) -> None:
        self._lab = lab
        self._state_mb = state_mb
        self._directory = lab.layout.run / "agents"
        self.nodes = [node.name for node in lab.nodes if node.spec.pod_bridge]
        self._processes: dict[str, subprocess.Popen[Any]] = {}

    def socket(self, node: str) -> Path:
        """Its control socket."""
        return self._directory / node / "agent.sock"

    def state(self, node: str) -> Path:
        """Where its journal is."""
        return self._directory / node / "state"

    def log(self, node: str) -> Path:
        """What it says."""
        return self._directory / node / "log"

    def journals(self, node: str) -> list[Path]:
        """The moves that it has not done with."""
        return sorted((self.state(node) / "journal").glob("*.move"))

    def start(self) -> None:
        """Certificates, configurations, processes; returns when all are ready."""
        authority = AuthorityDirectory.create(self._directory / "authority", cluster="lab")
        for node in self.nodes:
            directory = self._directory / node
            directory.mkdir()
            self.state(node).mkdir()
            if self._state_mb is not None:
                options = f"size={self._state_mb}m,mode=700"
                syscalls.mount("tmpfs", self.state(node), "tmpfs", syscalls.MS_NODEV, options)
            authority.issue(node, directory / "pki")
            (directory / "agent.toml").write_text(self._config(node))
        for node in self.nodes:
            self.start_one(node)
        for node in self.nodes:
            self.wait_ready(node)

    def start_one(self, node: str) -> None:
        """One of them, new or again; does not wait."""
        directory = self._directory / node
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("MYCOPROXY_")
        }
        with self.log(node).open("ab") as log:
            self._processes[node] = self._lab.popen(
                node,
                [*_COMMAND, "--config", str(directory / "agent.toml")],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=environment,
            )

    def wait_ready(self, node: str) -> None:
        """Until it answers. Raises ``MycoError``."""
        deadline = time.monotonic() + _START_SECONDS
        client = ControlClient(self.socket(node))
        while True:
            try:
                client.get("/v1/status")
            except MycoError as error:
                ended = self._processes[node].poll() is not None
                if ended or time.monotonic() > deadline:
                    said = self.log(node).read_text()[-800:]
                    raise MycoError(f"the agent of {node} is not up: {error}\n{said}") from error
                time.sleep(_POLL)
            else:
                return

    def signal(self, node: str, number: signal.Signals) -> None:
        """Send it a signal."""
        self._processes[node].send_signal(number)

    def kill(self, node: str) -> None:
        """As a crash would."""
        process = self._processes[node]
        process.kill()
        process.wait(_STOP_SECONDS)

    def stop(self) -> None:
        """End all of them, as systemd would."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(_STOP_SECONDS)
        self._processes.clear()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _config(self, node: str) -> str:
        directory = self._directory / node
        address = self._address(node)
        others = {other: f"{self._address(other)}:{PORT}" for other in self.nodes if other != node}
        pods = self._lab.layout.netns(node, "*")
        sections: dict[str, dict[str, object]] = {
            "node": {"name": node},
            "namespaces": {"node": str(self._lab.node(node).netns), "pods": [str(pods)]},
            "peers": {"listen": [f"{address}:{PORT}"], "static": others},
            "pki": {"directory": str(directory / "pki")},
            "control": {"socket": str(self.socket(node)), "request_seconds": 60},
            "metrics": {"listen": f"127.0.0.1:{_METRICS}"},
            "state": {"directory": str(self.state(node))},
        }
        return "\n".join(
            f"[{name}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in section.items())
            for name, section in sections.items()
        )

    def _address(self, node: str) -> str:
        return next(
            str(each.ip) for each in self._lab.topology.link_addresses(node) if each.version == 4
        )


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)  # of texts, numbers and lists of them TOML takes JSON's form
