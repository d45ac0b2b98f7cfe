"""runc, the OCI runtime: what is asked of it and what it is told.

One ``Runc`` is one runtime root (``--root``), which is one node's containers. Errors come from
runc's own log, so that the cause stands in the message.
"""

import asyncio
import json
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mycoproxy.errors import MycoError, RefusedError

_STATE_TIMEOUT = 10.0  # seconds


class RuncError(MycoError):
    """A runc command failed."""


@dataclass(frozen=True, slots=True)
class Container:
    """A container as ``runc state`` tells of it. ``pid`` is its init, in our PID namespace."""

    container_id: str
    pid: int
    status: str
    bundle: Path


class Job:
    """A runc command that is under way."""

    def __init__(self, process: asyncio.subprocess.Process, what: str, log: Path) -> None:
        self._process = process
        self._what = what
        self._log = log

    async def wait(self, *, timeout: float) -> None:
        """Wait for its end. Raises ``RuncError`` with runc's reason if it failed."""
        try:
            async with asyncio.timeout(timeout):
                status = await self._process.wait()
        except TimeoutError:
            await self.kill()
            raise RuncError(
                f"{self._what} did not end within {timeout:g} s; {self._where}"
            ) from None
        if status != 0:
            raise RuncError(f"{self._what} failed: {self.reason()}; {self._where}")

    async def fail_when_ended(self) -> None:
        """Wait for its end, and raise ``RuncError`` however it ended: it was not to end yet."""
        await self._process.wait()
        raise RuncError(f"{self._what} failed: {self.reason()}; {self._where}")

    async def end(self, *, timeout: float) -> None:
        """Wait for its end however it ends; kill it if it does not."""
        try:
            async with asyncio.timeout(timeout):
                await self._process.wait()
        except TimeoutError:
            await self.kill()

    def reason(self) -> str:
        """The last error in runc's log."""
        return _last_error(self._log) or f"exit status {self._process.returncode}"

    @property
    def ended(self) -> bool:
        """Whether the command has ended."""
        return self._process.returncode is not None

    async def kill(self) -> None:
        """End runc itself at once. What it started is not touched."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    @property
    def _where(self) -> str:
        return f"see {self._log}"


class Runc:
    """runc with one runtime root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def knows(self, container_id: str) -> bool:
        """Whether there is a container of that name, in whatever state."""
        return (self.root / container_id).exists()

    def state(self, container_id: str) -> Container:
        """Raises ``RefusedError``: there is no such container, or runc cannot tell."""
        if not self.knows(container_id):
            raise RefusedError(f"no container {container_id!r} under runc's root {self.root}")
        try:
            result = subprocess.run(
                ["runc", "--root", str(self.root), "state", container_id],
                capture_output=True,
                text=True,
                check=False,
                timeout=_STATE_TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            raise RefusedError(f"runc does not tell the state of {container_id}") from None
        if result.returncode != 0:
            reason = result.stderr.strip() or f"exit status {result.returncode}"
            raise RefusedError(f"runc cannot tell the state of {container_id}: {reason}")
        state = json.loads(result.stdout)
        return Container(
            container_id=container_id,
            pid=int(state["pid"]),
            status=str(state["status"]),
            bundle=Path(state["bundle"]),
        )

    async def checkpoint(
        self, container_id: str, *, images: Path, environment: Mapping[str, str]
    ) -> Job:
        """Start a checkpoint that leaves the tasks as they are (running or frozen)."""
        return await self._start(
            ["checkpoint", "--leave-running", "--image-path", str(images), container_id],
            what=f"checkpoint of {container_id}",
            log=images / "runc-checkpoint.log",
            environment=environment,
        )

    async def restore(
        self, container_id: str, *, bundle: Path, images: Path, environment: Mapping[str, str]
    ) -> Job:
        """Start a restore into a new container; runc ends when the container runs."""
        return await self._start(
            [
                *["restore", "--detach", "--bundle", str(bundle)],
                *["--image-path", str(images), container_id],
            ],
            what=f"restore of {container_id}",
            log=images / "runc-restore.log",
            environment=environment,
        )

    async def delete(self, container_id: str, *, timeout: float = 10.0) -> None:
        """Remove a container by force, with its cgroups. No such container is fine."""
        process = await asyncio.create_subprocess_exec(
            *["runc", "--root", str(self.root), "delete", "--force", container_id],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(timeout):
                _, errors = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise RuncError(f"removing {container_id} did not end within {timeout:g} s") from None
        if process.returncode != 0:
            raise RuncError(f"removing {container_id} failed: {errors.decode().strip()}")

    async def _start(
        self, arguments: list[str], *, what: str, log: Path, environment: Mapping[str, str]
    ) -> Job:
        process = await asyncio.create_subprocess_exec(
            *["runc", "--root", str(self.root), "--log", str(log), "--log-format", "json"],
            *arguments,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return Job(process, what, log)


def _last_error(log: Path) -> str | None:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry.get("level") in ("error", "fatal"):
            return str(entry.get("msg"))
    return None
