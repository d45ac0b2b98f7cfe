"""The journal on a file system that is really full, and in a process that is really killed."""

import ctypes
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mycoproxy.agreement.effects import Keys, Record, RecordKind
from mycoproxy.agreement.journal import Journal, JournalError
from mycoproxy.agreement.messages import MoveId, Plan

CLONE_FS, CLONE_NEWNS = 0x00000200, 0x00020000  # linux/sched.h
MS_REC, MS_PRIVATE = 1 << 14, 1 << 18  # linux/mount.h

KEYS = Keys(b"c" * 32, b"a" * 32)
_libc = ctypes.CDLL(None, use_errno=True)

Run = Callable[[Callable[[Path], None]], None]


def begun(number: int) -> tuple[MoveId, Record]:
    move = MoveId("a", "0" * 16, number)
    return move, Record(RecordKind.BEGUN, Plan(move, "b", ("c",), *KEYS.locks()), KEYS)


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Run]:
    """Runs a function with a tmpfs of 512 KiB, in a mount namespace of a thread of its own: it
    is gone with the thread."""

    def mount() -> None:
        def check(result: int) -> None:
            if result != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

        check(_libc.unshare(CLONE_FS | CLONE_NEWNS))
        check(_libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))
        check(_libc.mount(b"tmpfs", bytes(tmp_path), b"tmpfs", 0, b"size=512k"))

    with ThreadPoolExecutor(1, initializer=mount) as thread:
        yield lambda function: thread.submit(function, tmp_path).result(timeout=60)


def fill(directory: Path) -> None:
    """Take all the room that is left."""
    with (directory / "filler").open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


@pytest.mark.root
def test_a_full_disk_stops_a_beginning_and_leaves_nothing_of_it(tiny: Run) -> None:
    def full(directory: Path) -> None:
        journal = Journal(directory / "journal")
        fill(directory)
        move, record = begun(1)
        with pytest.raises(JournalError, match="No space left") as failure:
            journal.append(move, record, forced=True)
        assert not failure.value.unsure
        assert journal.open_moves() == ([], [])
        (directory / "filler").unlink()
        journal.append(move, record, forced=True)
        journal.close()

    tiny(full)


@pytest.mark.root
def test_what_was_begun_can_be_ended_on_a_full_disk(tiny: Run) -> None:
    def full(directory: Path) -> None:
        journal = Journal(directory / "journal")
        move, first = begun(1)
        journal.append(move, first, forced=True)
        journal.attach(move, "small", bytes(range(256)) * 100)
        fill(directory)
        with pytest.raises(JournalError, match="No space left") as failure:
            journal.attach(move, "large", bytes(300_000))
        assert not failure.value.unsure
        fill(directory)  # also what the attempt had taken and given back
        last = [Record(RecordKind.PREPARED), Record(RecordKind.COMMITTED, key=b"k" * 32)]
        last += [Record(RecordKind.LIVE)] * 100
        for record in last:
            journal.append(move, record, forced=True)
        journal.close()
        journal = Journal(directory / "journal")
        ((found,), _) = journal.open_moves()
        assert found.records == [first, *last]
        assert found.attachments == {"small": bytes(range(256)) * 100}
        journal.forget(move)
        journal.close()

    tiny(full)


@pytest.mark.root
def test_many_moves_fill_the_disk_and_every_one_that_was_begun_can_be_ended(tiny: Run) -> None:
    def full(directory: Path) -> None:
        journal = Journal(directory / "journal")
        open_ = []
        with pytest.raises(JournalError, match="No space left"):
            for number in range(100):
                journal.append(*begun(number), forced=True)
                open_.append(number)
        assert len(open_) >= 4
        for number in open_:
            journal.append(begun(number)[0], Record(RecordKind.COMMITTED), forced=True)
        journal.close()
        journal = Journal(directory / "journal")
        found = {one.move.number: one.records[-1].kind for one in journal.open_moves()[0]}
        assert found == dict.fromkeys(open_, RecordKind.COMMITTED)
        journal.close()

    tiny(full)


WRITER = """
import sys
from pathlib import Path
from mycoproxy.agreement.effects import Keys, Record, RecordKind
from mycoproxy.agreement.journal import Journal
from mycoproxy.agreement.messages import MoveId, Plan

keys = Keys(b"c" * 32, b"a" * 32)
journal = Journal(Path(sys.argv[1]))
number = 0
while True:
    number += 1
    move = MoveId("a", "0" * 16, number)
    plan = Plan(move, "b", ("c",), *keys.locks())
    journal.append(move, Record(RecordKind.BEGUN, plan, keys), forced=True)
    journal.attach(move, "state", number.to_bytes(4, "big") * 100_000)
    journal.append(move, Record(RecordKind.PREPARED), forced=True)
    print(number, flush=True)
    if number > 3:
        journal.forget(MoveId("a", "0" * 16, number - 3))
"""


def test_an_agent_that_is_killed_in_the_middle_leaves_whole_records_only(tmp_path: Path) -> None:
    for attempt in range(8):
        directory = tmp_path / str(attempt)
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(directory)], stdout=subprocess.PIPE, text=True
        )
        timer = threading.Timer(20, writer.kill)
        timer.start()
        try:
            assert writer.stdout is not None
            said = 0
            for line in writer.stdout:
                said = int(line)
                if said >= 4 + attempt:
                    break
            time.sleep(0.0007 * attempt)  # somewhere in the middle: any place will do
            writer.send_signal(signal.SIGKILL)
            rest, _ = writer.communicate()
        finally:
            timer.cancel()
            writer.kill()
            writer.wait()
        said = max([said, *(int(line) for line in rest.splitlines() if line)])
        journal = Journal(directory)
        moves, damaged = journal.open_moves()
        assert damaged == []
        by_number = {one.move.number: one for one in moves}
        assert max(by_number) >= said
        for number, one in by_number.items():
            prepared = one.records[1:] == [Record(RecordKind.PREPARED)]
            assert prepared or one.records[1:] == []
            assert prepared or number == max(by_number)
            state = number.to_bytes(4, "big") * 100_000
            assert one.attachments in ({"state": state}, {} if not prepared else None)
        journal.close()


def test_forcing_a_record_is_measured_not_promised(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    journal = Journal(tmp_path)
    times = []
    for number in range(20):
        move, first = begun(number)
        journal.append(move, first, forced=True)
        for _ in range(5):
            begin = time.perf_counter()
            journal.append(move, Record(RecordKind.COMMITTED, key=b"k" * 32), forced=True)
            times.append(time.perf_counter() - begin)
        journal.forget(move)
    journal.close()
    record_property("forced record, median, ms", round(statistics.median(times) * 1e3, 3))
    assert len(times) == 100
