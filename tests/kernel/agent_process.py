"""The agent as a real process in a network namespace, with files of its own, and who asks it."""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from conftest import Node

from mycoproxy.pki.authority_directory import AuthorityDirectory

WITHIN = 20.0  # seconds, for whatever is waited for
COMMAND = [sys.executable, "-c", "from mycoproxy.cli import main; main(prog_name='mycoproxy')"]


class AgentProcess:
    """An agent whose files are in a directory that everybody may look into."""

    def __init__(self, node: Node, directory: Path) -> None:
        self.node = node
        self.directory = directory
        self.file = directory / "agent.toml"
        self.socket = directory / "run" / "agent.sock"
        self.log = directory / "log"
        self.config('[log]\nformat = "json"\n')
        authority = AuthorityDirectory.create(directory / "authority", cluster="lab")
        authority.issue("alpha", directory / "pki")
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(directory / "notify"))
        self._notify.settimeout(WITHIN)
        self.processes: list[subprocess.Popen[str]] = []

    def config(self, text: str) -> None:
        self.file.write_text(text)

    def environment(self, **more: str) -> dict[str, str]:
        usual = {name: value for name, value in os.environ.items() if "MYCOPROXY" not in name}
        return {
            **usual,
            "MYCOPROXY_CONFIG": str(self.file),
            "MYCOPROXY_NODE_NAME": "alpha",
            "MYCOPROXY_PKI_DIRECTORY": str(self.directory / "pki"),
            "MYCOPROXY_STATE_DIRECTORY": str(self.directory / "run"),
            "MYCOPROXY_CONTROL_SOCKET": str(self.socket),
            # Not those of others on this machine: what a dead agent left there is removed.
            "MYCOPROXY_NAMESPACES_PODS": "/run/netns/mycoproxy-none-*",
            "NOTIFY_SOCKET": str(self.directory / "notify"),
            **more,
        }

    def spawn(self, command: Sequence[str] = COMMAND, **environment: str) -> subprocess.Popen[str]:
        """Start an agent, in the node's namespace; its log goes to the file."""
        with self.log.open("a") as log:
            process = self.node.call(
                lambda: subprocess.Popen(
                    [*command, "agent"],
                    env=self.environment(**environment),
                    stderr=log,
                    text=True,
                )
            )
        self.processes.append(process)
        return process

    def start(self, command: Sequence[str] = COMMAND, **environment: str) -> subprocess.Popen[str]:
        """The same, and wait until it is ready."""
        process = self.spawn(command, **environment)
        self.told("READY=1")
        return process

    def told(self, wanted: str) -> None:
        """Wait for a word to systemd."""
        while wanted not in self._notify.recv(4096).decode().splitlines():
            pass

    def run(
        self, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A command that asks the agent."""
        return subprocess.run(
            [*COMMAND, *arguments],
            env=self.environment(**(environment or {})),
            capture_output=True,
            text=True,
            timeout=WITHIN,
            check=False,
        )

    def json(self, *arguments: str) -> Any:
        result = self.run(*arguments, "--json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    def post(self, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        """To the control socket, as a driver does."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(WITHIN)
            sock.connect(str(self.socket))
            connection = http.client.HTTPConnection("agent")
            connection.sock = sock
            connection.request("POST", path, json.dumps(body))
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def get(self, path: str) -> tuple[int, str]:
        """From the metrics' port."""

        def ask() -> tuple[int, str]:
            connection = http.client.HTTPConnection("127.0.0.1", 7421, timeout=WITHIN)
            with contextlib.closing(connection):
                connection.request("GET", path)
                response = connection.getresponse()
                return response.status, response.read().decode()

        return self.node.call(ask)

    def lines(self) -> list[dict[str, Any]]:
        """The log, all of which is JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(WITHIN)
        self._notify.close()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WITHIN
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {WITHIN:g} s"
        time.sleep(0.01)
