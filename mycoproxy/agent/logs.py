"""The agent's log: lines of text or of JSON on standard error, each with its node and its move.

The standard ``logging`` is used as it is: ``log = logging.getLogger(__name__)``, ``log.info("%s
did", what)``, and ``extra={...}`` for fields. What is added here:

* ``move_id`` is a context variable. A line that is written while it is set bears it, so the lines
  of one move are found on all nodes by one word. A thread does not inherit it by itself: start what
  logs there with ``contextvars.copy_context().run``.
* A kind of line (logger, level, text before its arguments) that repeats is written some times a
  minute and then counted, so a peer that misbehaves fills no disk.
* Lines are formatted where they arise and written by a thread: a reader of standard error that
  stands still must not stop a handover. If too many wait, they are dropped and counted.
* Private keys and fields that are named like a secret are not written, whoever passes them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import queue
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from mycoproxy.agent.config import LogSection

move_id: ContextVar[str | None] = ContextVar("move_id", default=None)
"""The move on whose behalf the current task runs."""

INTERVAL: Final = 60.0
"""Seconds in which ``same_lines`` of one kind are written."""

_KINDS: Final = 1000  # that are told apart at once
_WAITING: Final = 10_000  # lines for the thread that writes
_LONGEST: Final = 8192  # characters of a message

_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
_SECRET_NAME = re.compile(r"(?i)(^|_)(password|passphrase|secret|token|private_key|key_pem)($|_)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_OF_A_RECORD: Final = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "move",
    "traceback",
}


@contextmanager
def of_move(identifier: str) -> Iterator[None]:
    """What is logged inside belongs to this move."""
    token = move_id.set(identifier)
    try:
        yield
    finally:
        move_id.reset(token)


@dataclass
class LogCounters:
    """Lines since the start: written by level, and dropped by reason."""

    info: int = 0
    warning: int = 0
    error: int = 0
    repeated: int = 0
    overflow: int = 0


class Logs(logging.Handler):
    """The agent's only handler, on the root logger from ``install`` to ``close``."""

    def __init__(
        self, *, node: str, stream: int = 2, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``stream`` is a file descriptor."""
        super().__init__()
        self.counters = LogCounters()
        self._node = node
        self._stream = stream
        self._clock = clock
        self._closed = False
        self._as_json = False
        self._same_lines = LogSection().same_lines
        # What has been written of a kind: since when, how often, and a record of what was not.
        self._kinds: OrderedDict[tuple[str, int, str], _Kind] = OrderedDict()
        self._lines: queue.Queue[bytes | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def install(self, config: LogSection) -> None:
        """Take over the root logger, at the level of the configuration."""
        root = logging.getLogger()
        for handler in list(root.handlers):
            root.removeHandler(handler)
        root.addHandler(self)
        logging.captureWarnings(capture=True)
        # It logs each request, and at debug level each step of the event loop.
        for noisy in ("aiohttp.access", "asyncio"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        self.apply(config)

    def apply(self, config: LogSection) -> None:
        """Another level or format from the next line on."""
        self._as_json = config.format == "json"
        self._same_lines = config.same_lines
        logging.getLogger().setLevel(config.level.upper())

    def emit(self, record: logging.LogRecord) -> None:
        """``logging`` calls this, on any thread, one at a time."""
        try:
            now = self._clock()
            if not hasattr(record, "move"):
                record.move = move_id.get()
            self._summarise(now)
            if self._is_repeated(record, now):
                self.counters.repeated += 1
            else:
                self._put(record)
        except Exception:  # noqa: BLE001 - what is logged must not end what logs it
            self.handleError(record)

    def close(self, within: float = 2.0) -> None:
        """Write what waits, for at most ``within`` seconds, and let go of the root logger."""
        logging.getLogger().removeHandler(self)
        if not self._closed:
            self._closed = True
            self._summarise(math.inf)
            with contextlib.suppress(queue.Full):
                self._lines.put(None, timeout=within)
                self._thread.join(within)
        super().close()

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        message = _clean(record.getMessage())
        fields = {
            name: _plain(name, value)
            for name, value in vars(record).items()
            if name not in _OF_A_RECORD
        }
        trace = None
        if record.exc_info and record.exc_info[0] is not None:
            trace = _without_keys(_TRACES.formatException(record.exc_info))
        time_text = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        head = {
            "time": time_text.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "node": self._node,
            "logger": record.name,
        }
        move = getattr(record, "move", None)
        if move is not None:
            head["move"] = str(move)
        if self._as_json:
            end = {"traceback": trace} if trace else {}
            # What is said of every line stands first, and no field takes its place.
            line: dict[str, Any] = {**head, "message": message, **end}
            for name, value in fields.items():
                line.setdefault(name, value)
            return json.dumps(line, ensure_ascii=False)
        words = [head["time"], head["level"].upper(), self._node]
        if move is not None:
            words.append(_CONTROL.sub(_escaped, f"move={move}"))
        words += [f"{record.name}:", _CONTROL.sub(_escaped, message)]
        words += [f"{name}={_CONTROL.sub(_escaped, str(value))}" for name, value in fields.items()]
        text = " ".join(words)
        return text + ("\n  " + trace.replace("\n", "\n  ") if trace else "")

    # Of repetition.

    def _is_repeated(self, record: logging.LogRecord, now: float) -> bool:
        name = (record.name, record.levelno, str(record.msg))
        kind = self._kinds.get(name)
        if kind is None:
            if len(self._kinds) >= _KINDS:
                _, oldest = self._kinds.popitem(last=False)
                self._say_dropped(oldest)
            self._kinds[name] = _Kind(since=now, written=1, last=record)
            return False
        kind.last = record
        if kind.written < self._same_lines:
            kind.written += 1
            return False
        kind.dropped += 1
        return True

    def _summarise(self, now: float) -> None:
        """Say how many lines were dropped, of the kinds whose minute is over."""
        while self._kinds:
            name, kind = next(iter(self._kinds.items()))
            if now - kind.since < INTERVAL:
                return
            del self._kinds[name]
            self._say_dropped(kind)

    def _say_dropped(self, kind: _Kind) -> None:
        if not kind.dropped:
            return
        last = kind.last
        text = f"{kind.dropped} more like this in {INTERVAL:.0f} s, the last: {last.getMessage()}"
        self._put(
            logging.makeLogRecord(
                {
                    "name": last.name,
                    "levelno": last.levelno,
                    "levelname": last.levelname,
                    "msg": text,
                    "repeated": kind.dropped,
                }
            )
        )

    # Of writing.

    def _put(self, record: logging.LogRecord) -> None:
        line = (self.format(record) + "\n").encode(errors="backslashreplace")
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.counters.overflow += 1
            return
        if record.levelno >= logging.ERROR:
            self.counters.error += 1
        elif record.levelno >= logging.WARNING:
            self.counters.warning += 1
        else:
            self.counters.info += 1

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            rest = memoryview(line)
            try:
                while rest:
                    rest = rest[os.write(self._stream, rest) :]
            except OSError:
                # Nobody reads it any more. There is no other place to say so.
                self.counters.overflow += 1


@dataclass
class _Kind:
    since: float
    written: int
    last: logging.LogRecord
    dropped: int = 0


_TRACES = logging.Formatter()


def _without_keys(text: str) -> str:
    return _PRIVATE_KEY.sub("[private key]", text)


def _clean(text: str) -> str:
    text = _without_keys(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _plain(name: str, value: Any) -> Any:  # noqa: ANN401
    """A field as JSON can have it, without secrets."""
    if _SECRET_NAME.search(name):
        return "[not shown]"
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): _plain(str(key), each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(name, each) for each in value]
    return _clean(str(value))
