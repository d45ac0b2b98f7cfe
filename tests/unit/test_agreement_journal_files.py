"""The journal of one agent on an ordinary directory: what is there after whatever happened."""

import errno
import os
from pathlib import Path

import pytest

from mycoproxy.agreement.effects import Keys, Record, RecordKind
from mycoproxy.agreement.journal import ROOM, Journal, JournalError
from mycoproxy.agreement.journal_file import Frame, encode
from mycoproxy.agreement.messages import MoveId, Plan

KEYS = Keys(b"c" * 32, b"a" * 32)
PREPARED, COMMITTED = Record(RecordKind.PREPARED), Record(RecordKind.COMMITTED, key=b"k" * 32)


def begun(number: int = 1, journal: str = "0" * 16) -> tuple[MoveId, Record]:
    move = MoveId("a", journal, number)
    return move, Record(RecordKind.BEGUN, Plan(move, "b", ("c",), *KEYS.locks()), KEYS)


def written(directory: Path, *records: Record, attach: bytes | None = None) -> tuple[MoveId, Path]:
    """The one move of a journal that was closed."""
    journal = Journal(directory)
    move, first = begun()
    journal.append(move, first, forced=True)
    if attach is not None:
        journal.attach(move, "state", attach)
    for record in records:
        journal.append(move, record, forced=True)
    journal.close()
    (path,) = directory.glob("*.move")
    return move, path


def read(directory: Path) -> tuple[list[list[Record]], int]:
    """The records of every open move, and how many damaged files there are."""
    journal = Journal(directory)
    moves, damaged = journal.open_moves()
    journal.close()
    return [one.records for one in moves], len(damaged)


def test_records_and_attachments_are_there_after_a_restart(tmp_path: Path) -> None:
    move, _ = written(tmp_path, PREPARED, COMMITTED, attach=bytes(3_000_000) + b"end")
    journal = Journal(tmp_path)
    ((found,), damaged) = journal.open_moves()
    assert (found.move, damaged) == (move, [])
    assert found.records == [begun()[1], PREPARED, COMMITTED]
    assert found.attachments == {"state": bytes(3_000_000) + b"end"}
    journal.append(move, Record(RecordKind.LIVE), forced=False)
    journal.close()
    assert read(tmp_path) == ([[begun()[1], PREPARED, COMMITTED, Record(RecordKind.LIVE)]], 0)


def test_a_forgotten_move_leaves_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    move, first = begun()
    journal.append(move, first, forced=True)
    journal.forget(move)
    journal.forget(move)
    assert [path.name for path in tmp_path.iterdir()] == ["identity"]
    with pytest.raises(JournalError, match="its beginning comes first"):
        journal.append(move, PREPARED, forced=True)
    journal.close()


@pytest.mark.parametrize("rest", ["nothing", "zeros", "noise"])
def test_a_record_torn_at_any_byte_is_as_if_it_had_not_been_written(
    tmp_path: Path, rest: str
) -> None:
    _, path = written(tmp_path, PREPARED, COMMITTED)
    whole = path.read_bytes()
    ends = [0]
    for record in (begun()[1], PREPARED, COMMITTED):
        ends.append(ends[-1] + len(encode(Frame("", record.to_plain()))))
    for cut in range(ends[1], ends[3]):
        filler = {"nothing": b"", "zeros": bytes(ROOM), "noise": b"\xa5" * 300}[rest]
        path.write_bytes(whole[:cut] + filler)
        expected = [begun()[1], PREPARED] if cut >= ends[2] else [begun()[1]]
        assert read(tmp_path) == ([expected], 0), f"cut at byte {cut}"
        journal = Journal(tmp_path)  # and the journal goes on from there
        journal.open_moves()
        journal.append(begun()[0], COMMITTED, forced=True)
        journal.close()
        assert read(tmp_path) == ([[*expected, COMMITTED]], 0), f"cut at byte {cut}"


def test_any_bit_wrong_in_the_last_record_takes_it_away_whole(tmp_path: Path) -> None:
    _, path = written(tmp_path, PREPARED, COMMITTED)
    whole = path.read_bytes()
    size = len(encode(Frame("", COMMITTED.to_plain())))
    begin = whole.rindex(encode(Frame("", COMMITTED.to_plain())))
    for at in range(begin, begin + size):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        assert read(tmp_path) == ([[begun()[1], PREPARED]], 0), f"byte {at}"


def test_a_file_that_is_broken_before_its_end_is_set_aside(tmp_path: Path) -> None:
    _, path = written(tmp_path, PREPARED, COMMITTED)
    whole = path.read_bytes()
    last = whole.rindex(encode(Frame("", COMMITTED.to_plain())))
    for at in range(last):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        assert read(tmp_path) == ([], 1), f"byte {at}"
        path.with_suffix(".damaged").unlink()


def test_of_a_damaged_move_there_is_no_telling(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    move, first = begun(journal=journal.identity)
    other, _ = begun(2, journal.identity)
    journal.append(move, first, forced=True)
    journal.close()
    (path,) = tmp_path.glob("*.move")
    path.write_bytes(b"?" + path.read_bytes()[1:])
    for _ in range(2):  # it stays so over another restart
        journal = Journal(tmp_path)
        journal.open_moves()
        assert (journal.lost(move), journal.lost(other)) == (True, False)
        journal.close()


@pytest.mark.parametrize("body", [{"kind": "surrender"}, {"kind": "begun"}, 7, None])
def test_a_record_that_no_version_wrote_is_not_guessed_at(tmp_path: Path, body: object) -> None:
    _, path = written(tmp_path)
    path.write_bytes(path.read_bytes().rstrip(b"\0") + encode(Frame("", body)))
    assert read(tmp_path) == ([], 1)


def test_a_journal_that_was_lost_has_another_identity(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "one")
    identity = journal.identity
    journal.close()
    again, other = Journal(tmp_path / "one"), Journal(tmp_path / "two")
    assert again.identity == identity != other.identity
    assert other.lost(begun(journal=identity)[0])
    assert not again.lost(begun(journal=identity)[0])
    again.close()
    other.close()


def test_two_agents_cannot_use_one_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(JournalError, match="another agent uses it"):
        Journal(tmp_path)
    journal.close()
    Journal(tmp_path).close()


def test_many_moves_are_kept_apart(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for number in range(300):
        move, first = begun(number)
        journal.append(move, first, forced=False)
        if number % 2:
            journal.append(move, PREPARED, forced=False)
        if number % 3 == 0:
            journal.forget(move)
    journal.close()
    journal = Journal(tmp_path)
    found = {one.move.number: len(one.records) for one in journal.open_moves()[0]}
    assert found == {number: 1 + number % 2 for number in range(300) if number % 3}
    journal.close()


@pytest.mark.parametrize("call", ["pwrite", "fdatasync", "posix_fallocate"])
def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    journal = Journal(tmp_path)
    move, first = begun()
    journal.append(move, first, forced=True)
    fail_once(monkeypatch, call)
    with pytest.raises(JournalError) as failure:
        journal.attach(move, "state", bytes(200_000))
    assert not failure.value.unsure
    journal.append(move, COMMITTED, forced=True)
    journal.close()
    assert read(tmp_path) == ([[first, COMMITTED]], 0)


def test_a_write_that_cannot_be_taken_back_is_unsure_and_is_taken_back_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    move, first = begun()
    journal.append(move, first, forced=True)
    with monkeypatch.context() as patch:
        fail_always(patch, "fdatasync")
        for _ in range(2):
            with pytest.raises(JournalError) as failure:
                journal.append(move, COMMITTED, forced=True)
            assert failure.value.unsure
    journal.append(move, Record(RecordKind.ABORTED), forced=True)
    journal.close()
    assert read(tmp_path) == ([[first, Record(RecordKind.ABORTED)]], 0)


@pytest.mark.parametrize("call", ["pwrite", "fsync", "open"])
def test_a_beginning_that_fails_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    journal = Journal(tmp_path)
    move, first = begun()
    fail_once(monkeypatch, call)
    with pytest.raises(JournalError):
        journal.append(move, first, forced=True)
    assert [path.name for path in tmp_path.iterdir()] == ["identity"]
    journal.append(move, first, forced=True)
    journal.close()
    assert read(tmp_path) == ([[first]], 0)


def fail_once(patch: pytest.MonkeyPatch, call: str) -> None:
    honest = getattr(os, call)

    def failing(*args: object) -> None:
        patch.setattr(os, call, honest)
        raise OSError(errno.EIO, "as the test has it")

    patch.setattr(os, call, failing)


def fail_always(patch: pytest.MonkeyPatch, call: str) -> None:
    def failing(*args: object) -> None:
        raise OSError(errno.EIO, "as the test has it")

    patch.setattr(os, call, failing)
