"""What a move leaves for a person to read: journal, logs, the cause in CRIU's log, the report."""

import json
from pathlib import Path

import pytest

from migrate.machine.journal import Journal, read
from migrate.machine.places import Places, first_error
from migrate.machine.plan import MovePlan
from migrate.machine.report import PHASES, MoveReport
from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.handover import Rehomed
from mycoproxy.netfilter.paths import Path as PathKind


@pytest.fixture
def plan(tmp_path: Path) -> MovePlan:
    def side(node: str) -> dict[str, str]:
        images = tmp_path / node
        images.mkdir()
        return {
            "node": node,
            "node_netns": "/proc/self/ns/net",
            "pod_netns": "/proc/self/ns/net",
            "runc_root": str(tmp_path / "runc"),
            "container_id": "redis",
            "bundle": str(tmp_path / "bundle"),
            "images": str(images),
        }

    return MovePlan.model_validate(
        {
            "move_id": "m-1",
            "source": side("alpha"),
            "target": side("beta"),
            "transfer_address": "10.0.0.2",
            "addresses": {"10.1.0.5": "10.2.0.5"},
            "logs": str(tmp_path / "logs"),
        }
    )


def test_a_journal_s_entry_is_on_both_sides_as_soon_as_it_is_written(tmp_path: Path) -> None:
    paths = tmp_path / "source", tmp_path / "target"
    with Journal(*paths) as journal:
        journal.write(machine="move", state="idle")
        journal.write(machine="handover", event="committed")
        for path in paths:
            entries = read(path)
            assert [entry["machine"] for entry in entries] == ["move", "handover"]
            assert all(isinstance(entry["time"], float) for entry in entries)


def test_a_journal_is_continued_and_is_nobody_else_s_to_read(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    for number in range(2):
        with Journal(path) as journal:
            journal.write(number=number)
    assert [entry["number"] for entry in read(path)] == [0, 1]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_last_line_that_a_crash_has_cut_is_left_out(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        journal.write(number=1)
        journal.write(number=2)
    whole = path.read_bytes()
    path.write_bytes(whole[: -1 - cut])
    assert [entry["number"] for entry in read(path)] == [1]


def test_a_journal_that_is_closed_twice_closes_nobody_else_s_descriptor(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.close()
    with (tmp_path / "other").open("wb") as other:
        journal.close()
        other.write(b"still open")


LOG = """\
(00.001) Warn  (criu/kerndat.c:1103): $XDG_RUNTIME_DIR not set
(00.023104) Error (criu/sk-unix.c:861): unix: External socket is used. Consider using --ext-unix-sk
(00.023110) Error (criu/cr-dump.c:1781): Dump files (pid: 4711) failed with -1
"""


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (LOG, "unix: External socket is used. Consider using --ext-unix-sk"),
        ("Error (criu/util.c:1): no time stamp\n", "no time stamp"),
        ("(00.1) pie: 1: Error (criu/pie/restorer.c:5): in the restorer\n", "in the restorer"),
        ("(00.1)      7: Error (criu/files.c:5): in a restored task\n", "in a restored task"),
        ("(00.1) Warn  (criu/x.c:1): Error in words only\n", None),
        ("", None),
        ("(00.1) Error (criu/rlimit.c:14): rlimit: Can't setup RLIMIT_NOFILE for self\n", None),
    ],
)
def test_the_first_error_in_criu_s_log_is_the_cause(
    tmp_path: Path, text: str, cause: str | None
) -> None:
    log = tmp_path / "dump.log"
    log.write_text(text)
    assert first_error(log) == cause


def test_a_log_that_is_not_there_or_is_no_text_has_no_cause(tmp_path: Path) -> None:
    assert first_error(tmp_path / "nowhere.log") is None
    (tmp_path / "dump.log").write_bytes(b"\xff\xfe\n")
    assert first_error(tmp_path / "dump.log") is None


def test_what_an_earlier_attempt_left_is_gone_when_places_are_made(plan: MovePlan) -> None:
    places = Places(plan)
    places.make()
    (places.source_images / "old.img").write_text("old")
    places.make()
    for directory in (places.source_images, places.target_images):
        assert directory.stat().st_mode & 0o777 == 0o700
        assert list(directory.iterdir()) == []
    places.remove()
    places.remove()
    assert not places.source_images.exists() and not places.target_images.exists()


def test_two_moves_at_once_have_places_of_their_own(plan: MovePlan) -> None:
    one, other = Places(plan), Places(plan.model_copy(update={"move_id": "m-2"}))
    one.make()
    other.make()
    one.remove()
    assert other.source_images.is_dir() and other.target_images.is_dir()


def test_both_sides_may_have_one_directory(plan: MovePlan) -> None:
    target = plan.target.model_copy(update={"images": plan.source.images})
    places = Places(plan.model_copy(update={"target": target}))
    places.make()
    assert places.source_images != places.target_images


def test_logs_and_journals_outlive_a_failure_and_images_do_not(plan: MovePlan) -> None:
    places = Places(plan)
    places.make()
    (places.source_images / "dump.log").write_text("why")
    (places.target_images / "restore.log").write_text("why not")
    (places.source_images / "pages-1.img").write_text("memory of a workload")
    with Journal(*places.journals) as journal:
        journal.write(machine="move")
    places.save_logs()
    places.remove()
    assert sorted(path.name for path in places.logs.iterdir()) == [
        "dump.log",
        "restore.log",
        "source.journal",
        "target.journal",
    ]
    assert read(places.logs / "source.journal")[0]["machine"] == "move"


def test_a_failure_is_blamed_on_criu_s_first_error_and_names_the_log(plan: MovePlan) -> None:
    places = Places(plan)
    places.make()
    (places.source_images / "dump.log").write_text(LOG)
    text = places.blame("dump", RuntimeError("exit status 1"))
    assert text.startswith("dump failed: unix: External socket is used")
    assert str(places.logs / "dump.log") in text


def test_without_a_log_a_failure_is_blamed_on_the_error_itself(plan: MovePlan) -> None:
    places = Places(plan)
    assert "restore failed: no runc" in places.blame("restore", RuntimeError("no runc"))
    assert "did not end in time" in places.blame("restore", TimeoutError())


def test_phases_follow_each_other_and_add_up_to_the_freeze() -> None:
    report = MoveReport("m-1", "alpha", "beta")
    report.marks = {"begin": 10.0, **{name: 10.0 + n for n, name in enumerate(PHASES, start=1)}}
    phases = report.phases_ms()
    assert list(phases) == list(PHASES)
    assert sum(phases.values()) == pytest.approx(report.freeze_ms) == pytest.approx(6000)


def test_a_move_whose_end_nobody_saw_can_be_reported() -> None:
    report = MoveReport("m-1", "alpha", "beta", warnings=["runc did not end in time"])
    report.marks = {"begin": 0.0, **dict.fromkeys(PHASES[:-1], 0.1)}
    assert json.loads(json.dumps(report.as_dict()))["warnings"] == ["runc did not end in time"]


def test_a_report_is_json_and_counts_paths_by_node() -> None:
    name = FourTuple(Endpoint("10.1.0.5", 6379), Endpoint("192.0.2.7", 40000))
    report = MoveReport("m-1", "alpha", "beta", connections=3)
    report.marks = {"begin": 0.0, **dict.fromkeys(PHASES, 0.1)}
    report.rehomed = [
        Rehomed("router", name, PathKind.REBIND),
        Rehomed("router", name, PathKind.REBIND),
        Rehomed("client", name, PathKind.TRANSLATE),
    ]
    printed = json.loads(json.dumps(report.as_dict()))
    assert printed["rehomed"] == {"rebind@router": 2, "translate@client": 1}
    assert printed["connections_moved"] == 3
    assert printed["freeze_ms"] == 100.0
