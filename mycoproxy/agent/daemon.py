"""The agent as a process: parts up in order, reloads, signals, parts down in reverse order.

It ends for one of three reasons: it was told to, a part could not start, or a part ended by
itself. In each case the parts that run are stopped, each within its time; a second signal ends
the process at once. Moves are journaled, so nothing here has to be finished to be safe.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

from mycoproxy import __version__
from mycoproxy.agent import config_text
from mycoproxy.agent.config import Config
from mycoproxy.agent.config_changes import Changes, changes_between
from mycoproxy.agent.config_source import Loaded, Source
from mycoproxy.agent.logs import Logs
from mycoproxy.agent.metrics import Metrics
from mycoproxy.agent.notify import Notifier
from mycoproxy.agent.part import Part
from mycoproxy.agent.questions import Questions
from mycoproxy.errors import MycoError, RefusedError

log = logging.getLogger(__name__)

START: Final = 30.0
"""Seconds for each part to start."""

RELOAD: Final = 10.0
"""Seconds for each part to take a configuration."""

_BEAT: Final = 1.0
_CANCELLED: Final = 2.0


class Daemon:
    """One agent. Has what ``part.Agent`` promises to parts. ``run`` once, on one event loop."""

    def __init__(self, source: Source, loaded: Loaded, *, logs: Logs, notifier: Notifier) -> None:
        self.questions = Questions()
        self.metrics = Metrics(node=loaded.config.node.name, version=__version__)
        self._source = source
        self._loaded = loaded
        self._logs = logs
        self._notifier = notifier
        self._parts: list[Part] = []
        self._started: list[Part] = []
        self._state = "starting"
        self._since = time.time()
        self._tasks: dict[asyncio.Task[None], Part] = {}
        self._end = asyncio.Event()
        self._told = False
        self._failure: str | None = None
        self._reloading = asyncio.Lock()
        self._reload_tasks: set[asyncio.Task[Any]] = set()
        self.metrics.watch_logs(logs.counters)
        self.metrics.watch_parts(self._parts_ready)
        self.metrics.reloaded.set_to_current_time()

    @property
    def config(self) -> Config:
        """The configuration in use."""
        return self._loaded.config

    def spawn(self, part: Part, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """As ``part.Agent`` says."""
        task = asyncio.get_running_loop().create_task(work, name=part.name)
        self._tasks[task] = part
        task.add_done_callback(self._ended)
        return task

    async def run(self, parts: Sequence[Part]) -> int:
        """Until it is told to end. The exit status: 0, or 1 if a part failed.

        Raises what a part raised when it could not start.
        """
        self._parts = list(parts)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_end, number)
        loop.add_signal_handler(signal.SIGHUP, self._told_to_reload)
        beat = loop.create_task(self._beat())
        try:
            await self._up()
            await self._end.wait()
        except MycoError as error:
            log.error("cannot start: %s", error)  # noqa: TRY400 - an answer, no fault
            raise
        finally:
            clean = await self._down()
            beat.cancel()
        if self._failure is not None:
            log.error("ended: %s", self._failure)
            return 1
        log.info("ended")
        return 0 if clean else 1

    def end(self) -> None:
        """Stop, as after SIGTERM."""
        self._end.set()

    # Up and down.

    async def _up(self) -> None:
        async with self._reloading:
            starting = asyncio.ensure_future(self._start_parts())
            ending = asyncio.ensure_future(self._end.wait())
            try:
                await asyncio.wait([starting, ending], return_when=asyncio.FIRST_COMPLETED)
            finally:
                ending.cancel()
                starting.cancel()  # does nothing if it is done
            try:
                await starting
            except asyncio.CancelledError:
                if not self._end.is_set():
                    raise
                return
            if not self._end.is_set():
                self._state = "running"
                seconds = time.time() - self._since
                log.info(
                    "running", extra={"version": __version__, "start_seconds": round(seconds, 3)}
                )
                self._notifier.ready("running")

    async def _start_parts(self) -> None:
        for part in self._parts:
            try:
                async with asyncio.timeout(START):
                    await part.start(self)
            except TimeoutError as error:
                raise MycoError(f"{part.name}: did not start within {START:g} s") from error
            self._started.append(part)
            log.debug("part %s started", part.name)

    async def _down(self) -> bool:
        self._state = "stopping"
        self._notifier.stopping()
        log.info("stopping")
        clean = True
        for part in reversed(self._started):
            if not await self._stop_part(part):
                clean = False
        # Of a part that could not start.
        await self._cancel(list(self._tasks))
        return clean

    async def _stop_part(self, part: Part) -> bool:
        seconds = self.config.limits.shutdown_seconds
        clean = False
        try:
            async with asyncio.timeout(seconds):
                await part.stop()
            clean = True
        except TimeoutError:
            log.error("part %s did not stop within %g s", part.name, seconds)  # noqa: TRY400
        except Exception:
            log.exception("part %s failed to stop", part.name)
        await self._cancel([task for task, owner in self._tasks.items() if owner is part])
        return clean

    async def _cancel(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=_CANCELLED)
            for task in left:
                log.error("a task goes on though it was cancelled: %r", task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        part = self._tasks.pop(task)
        if self._state == "stopping":
            return
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, MycoError):
            log.error("part %s failed", part.name, exc_info=error)
        why = f": {error}" if error is not None else ""
        self._failure = self._failure or f"part {part.name} ended by itself{why}"
        self._end.set()

    # Signals.

    def _told_to_end(self, number: int) -> None:
        name = signal.Signals(number).name
        if self._told:
            self._end_at_once(number)
        self._told = True
        log.info("%s: stopping; another one ends the agent at once", name)
        self._end.set()

    def _end_at_once(self, number: int) -> NoReturn:
        log.warning("a second signal: ending at once")
        self._logs.close(within=0.2)
        os._exit(128 + number)

    def _told_to_reload(self) -> None:
        task = asyncio.ensure_future(self._reload_and_log())
        self._reload_tasks.add(task)
        task.add_done_callback(self._reload_tasks.discard)

    async def _reload_and_log(self) -> None:
        try:
            await self.reload()
        except MycoError:
            pass  # reload has logged it
        except Exception:
            log.exception("the reload failed")

    # Reload.

    async def reload(self) -> Changes:
        """Read the configuration again and use it: all that can be changed, or nothing.

        Raises ``ConfigError`` if it makes no sense, or what a part raised that cannot take it.
        One at a time; during the start it waits for its end.
        """
        async with self._reloading:
            if self._state == "stopping":
                raise RefusedError("the agent is stopping")
            self._notifier.reloading()
            try:
                read = await asyncio.to_thread(self._source.load)
                after, changes = changes_between(self._loaded, read)
                await self._take(after)
            except Exception as error:
                self.metrics.reloads.labels("refused").inc()
                log.error("reload refused, nothing was changed: %s", error)  # noqa: TRY400
                raise
            finally:
                self._notifier.ready("running")
            self.metrics.reloads.labels("applied").inc()
            self.metrics.reloaded.set_to_current_time()
            for change in changes.applied:
                log.info("reload: %s is now %s", change.key, change.new)
            for change in changes.needs_restart:
                log.warning("reload: %s takes effect at the next start", change.key)
            log.info("reloaded")
            return changes

    async def _take(self, after: Loaded) -> None:
        """All parts take the configuration, or all go on with the one of before."""
        before = self._loaded
        taken: list[Part] = []
        try:
            for part in self._parts:
                taken.append(part)
                await _reload_part(part, after.config)
        except Exception:
            # The one that raised goes on as before by itself, but after a timeout who knows.
            for part in reversed(taken):
                try:
                    await _reload_part(part, before.config)
                except Exception as error:  # noqa: BLE001 - whatever it is, the part is lost
                    self._failure = f"part {part.name} took no configuration back: {error}"
                    self._end.set()
            raise
        self._loaded = after
        self._logs.apply(after.config.log)

    # What is asked.

    def reasons(self) -> list[tuple[str, str]]:
        """Part and reason of all that keeps the agent from being ready."""
        found = [("agent", self._state)] if self._state != "running" else []
        for part in self._parts:
            if part not in self._started:
                found.append((part.name, "not started yet"))
            else:
                found += [(part.name, reason) for reason in part.ready()]
        return found

    def _parts_ready(self) -> dict[str, bool]:
        not_ready = {name for name, _ in self.reasons()}
        return {part.name: part.name not in not_ready for part in self._parts}

    def status(self) -> dict[str, Any]:
        """For ``mycoproxy status``."""
        reasons = self.reasons()
        described = config_text.as_dict(self._loaded)
        return {
            "version": __version__,
            "node": self.config.node.name,
            "pid": os.getpid(),
            "state": self._state,
            "started": datetime.fromtimestamp(self._since, UTC).isoformat(timespec="seconds"),
            "uptime_seconds": round(time.time() - self._since, 3),
            "ready": not reasons,
            "draining": self.questions.is_draining(),
            "reasons": [{"part": part, "reason": reason} for part, reason in reasons],
            "config": {
                "file": str(self._source.file) if self._source.file else None,
                "set": {
                    key: each for key, each in described.items() if each["origin"] != "default"
                },
            },
            "parts": [
                {
                    "name": part.name,
                    "ready": all(part.name != name for name, _ in reasons),
                    **(part.status() if part in self._started else {}),
                }
                for part in self._parts
            ],
        }

    def describe_config(self) -> dict[str, Any]:
        """Each key with its value, and who said it."""
        return config_text.as_dict(self._loaded)

    async def _beat(self) -> None:
        """Once a second: how late the loop is, and a sign of life for systemd."""
        loop = asyncio.get_running_loop()
        interval = min(_BEAT, (self._notifier.watchdog or _BEAT) / 3)
        while True:
            due = loop.time() + interval
            await asyncio.sleep(interval)
            self.metrics.loop_delay.observe(max(0.0, loop.time() - due))
            if self._notifier.watchdog is not None:
                self._notifier.alive()


async def _reload_part(part: Part, config: Config) -> None:
    try:
        async with asyncio.timeout(RELOAD):
            await part.reload(config)
    except TimeoutError as error:
        raise MycoError(f"{part.name}: took no configuration within {RELOAD:g} s") from error
