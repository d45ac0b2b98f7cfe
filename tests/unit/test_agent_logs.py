"""The agent's log: what a line bears, what it never bears, and how repetition is kept short."""

import asyncio
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mycoproxy.agent.config import LogSection
from mycoproxy.agent.logs import INTERVAL, Logs, move_id, of_move

log = logging.getLogger("mycoproxy.test")

KEY = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIIrYSSNQFaA2Hwf1duRSxKtLYX5CB04f\n"


class Written:
    """Logs that write to a file, with a clock that the test moves."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb", buffering=0)
        self.now = 0.0
        self.logs = Logs(node="alpha", stream=self._file.fileno(), clock=lambda: self.now)

    def lines(self) -> list[str]:
        """What has been written; ends the logs."""
        self.close()
        return self._path.read_text().splitlines()

    def close(self) -> None:
        self.logs.close()
        self._file.close()

    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines()]


Start = Callable[..., Written]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    made: list[Written] = []

    def begin(**config: Any) -> Written:
        made.append(Written(tmp_path / "log"))
        made[-1].logs.install(LogSection(**config))
        return made[-1]

    try:
        yield begin
    finally:
        for each in made:
            each.close()
        logging.captureWarnings(capture=False)
        root.handlers, root.level = before[0], before[1]


def test_a_json_line_has_time_level_node_logger_and_fields(start: Start) -> None:
    written = start(format="json")
    log.info("moved %d", 3, extra={"peer": "beta", "seconds": 0.5, "worst": float("inf")})
    (line,) = written.objects()
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "node": "alpha",
        "logger": "mycoproxy.test",
        "message": "moved 3",
        "peer": "beta",
        "seconds": 0.5,
        "worst": "inf",
    }


def test_a_text_line_is_one_line_whatever_is_in_it(start: Start) -> None:
    written = start()
    log.warning("peer said %s", "a\nb\x1b[31m", extra={"name_of": "x\r\ny"})
    (line,) = written.lines()
    assert line.endswith(r"WARNING alpha mycoproxy.test: peer said a\nb\x1b[31m name_of=x\r\ny")


def test_lines_of_a_move_bear_it_also_in_tasks_and_only_inside(start: Start) -> None:
    written = start(format="json")

    async def step(name: str) -> None:
        log.info(name)

    async def move(identifier: str) -> None:
        with of_move(identifier):
            await asyncio.gather(step("a"), step("b"))
        log.info("after")

    async def both() -> None:
        await asyncio.gather(move("m-1"), move("m-2"))

    asyncio.run(both())
    assert move_id.get() is None
    found = {(line["message"], line.get("move")) for line in written.objects()}
    assert found == {("a", "m-1"), ("b", "m-1"), ("a", "m-2"), ("b", "m-2"), ("after", None)}


def test_a_field_cannot_take_the_place_of_what_each_line_bears(start: Start) -> None:
    written = start(format="json")
    log.info("x", extra={"node": "other", "level": "none", "time": "never"})
    (line,) = written.objects()
    assert line["node"] == "alpha"
    assert line["level"] == "info"
    assert line["time"] != "never"


def test_secrets_are_not_written(start: Start) -> None:
    written = start(format="json")
    log.error("cannot read %s", KEY, extra={"secret": "s3cr3t", "x": {"api_token": "s3cr3t"}})
    try:
        raise ValueError(KEY)
    except ValueError:
        log.exception("failed")
    lines = written.lines()
    assert "MHcCAQ" not in "".join(lines)
    assert "s3cr3t" not in "".join(lines)
    assert json.loads(lines[0])["message"] == "cannot read [private key]"
    assert "ValueError" in json.loads(lines[1])["traceback"]


def test_level_and_format_change_from_the_next_line_on(start: Start) -> None:
    written = start(level="warning")
    log.info("not written")
    written.logs.apply(LogSection(level="debug", format="json"))
    log.debug("written")
    (line,) = written.objects()
    assert line["message"] == "written"


def test_a_line_that_repeats_is_counted_and_said_when_its_minute_is_over(start: Start) -> None:
    written = start(format="json", same_lines=3)
    for number in range(100):
        log.warning("peer %d is silent", number)
    log.warning("another kind")
    written.now = INTERVAL + 1
    with of_move("m-3"):
        log.info("later")
    log.warning("peer %d is silent", 100)
    lines = written.objects()
    assert [line["message"] for line in lines] == [
        "peer 0 is silent",
        "peer 1 is silent",
        "peer 2 is silent",
        "another kind",
        "97 more like this in 60 s, the last: peer 99 is silent",
        "later",
        "peer 100 is silent",
    ]
    assert lines[4]["repeated"] == 97
    assert "move" not in lines[4]
    assert written.logs.counters.repeated == 97


def test_what_was_counted_is_said_at_the_end(start: Start) -> None:
    written = start(same_lines=1)
    for _ in range(3):
        log.info("again")
    assert "2 more like this" in written.lines()[-1]


def test_any_number_of_kinds_takes_bounded_memory(start: Start) -> None:
    written = start()
    for number in range(3000):
        log.info(f"kind {number}")
    assert len(written.logs._kinds) == 1000


def test_a_reader_that_stands_still_does_not_stop_who_logs(start: Start) -> None:
    reader, writer = os.pipe()
    logs = Logs(node="alpha", stream=writer)
    logs.install(LogSection(same_lines=1_000_000))
    try:
        for number in range(11_000):
            log.info("%d%s", number, "x" * 100)
        assert logs.counters.overflow > 0
    finally:
        os.close(reader)
        logs.close()
        os.close(writer)


def test_a_very_long_message_is_cut(start: Start) -> None:
    written = start()
    log.info("x" * 100_000)
    (line,) = written.lines()
    assert line.endswith("... (100000 characters)")
    assert len(line) < 9000
