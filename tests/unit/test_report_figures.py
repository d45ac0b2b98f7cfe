"""From samples, summaries and findings to the run's figures."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from rich.console import Console

from netlab.capture.findings import Event, Findings, Retransmission
from netlab.load.samples import Verdict
from netlab.load.series import PROGRESS_DTYPE, REQUEST_DTYPE, Samples
from netlab.load.summary import ClientSummary, LostConnection
from netlab.plot import plot_moves
from netlab.report import ClientRun, MoveTimes, Report, longest_wait_ms, make_report
from netlab.report_table import render

CLEAN = Findings(1000, 3, (), (), (), (), 0, {}, (), ())
PHASES = {"dump": 70.0, "freeze": 5.0, "restore": 100.0, "other": 1.0, "resume": 4.0}


def move(index: int, start: float, freeze: float = 0.2, handover: float = 0.01) -> MoveTimes:
    resume = start + freeze
    source, target = ("alpha", "beta") if index % 2 == 0 else ("beta", "alpha")
    times = (start, resume - 0.02, resume - 0.02 + handover, resume)
    return MoveTimes(index, source, target, *times, PHASES, 50)


def requests(name: str, group: str, *waits: tuple[float, float]) -> ClientRun:
    rows = [(0, 10, sent, answered, Verdict.RIGHT) for sent, answered in waits]
    return ClientRun(
        summary(name, group), Samples("requests", name, group, np.array(rows, REQUEST_DTYPE))
    )


def summary(name: str = "c", group: str = "service") -> ClientSummary:
    return ClientSummary(
        "checker", name, group, 1, (1,), (), 10, 100, 0, (), (0.1,), 0.0, 9.0, "SIGTERM"
    )


def text_of(report: Report) -> str:
    console = Console(width=100, file=io.StringIO())
    console.print(render(report))
    return cast(io.StringIO, console.file).getvalue()


def good() -> Report:
    clients = [
        requests("s", "service", (0.5, 0.6), (1.0, 1.21), (5.1, 5.33)),
        requests("d", "direct", (0.9, 1.205), (5.05, 5.31)),
    ]
    return make_report([move(0, 1.0), move(1, 5.0, 0.3)], clients, findings=CLEAN)


def test_the_gap_is_the_longest_wait_that_touches_the_freeze() -> None:
    found = requests("s", "service", (0.0, 0.9), (0.95, 1.3), (1.1, 1.25), (1.5, 9.0))
    assert found.samples is not None
    assert longest_wait_ms(found.samples.records, 1.0, 1.2) == pytest.approx(350)
    assert longest_wait_ms(found.samples.records, 1.31, 1.49) is None


def test_figures_are_medians_and_maxima_over_the_moves() -> None:
    figures = good().to_json()
    assert (figures["moves"], figures["connections_moved"]) == (2, 100)
    assert (figures["freeze_ms"], figures["freeze_ms_max"]) == (250.0, 300.0)
    assert (figures["client_gap_ms"], figures["client_gap_ms_max"]) == (282.5, 305.0)
    assert figures["handover_ms"] == 10.0
    assert figures["gap_minus_freeze_ms_by_group"] == {"direct": 32.5, "service": -30.0}
    assert (figures["bytes_checked"], figures["bytes_wrong"]) == (200, 0)


def test_phases_come_in_the_order_in_which_they_happen() -> None:
    assert list(good().to_json()["phases_ms"]) == ["freeze", "dump", "restore", "resume", "other"]


def test_the_json_object_has_what_the_scenario_promises() -> None:
    figures = json.loads(json.dumps(good().to_json()))
    promised = {
        "moves", "freeze_ms", "client_gap_ms", "handover_ms", "freeze_ms_max", "client_gap_ms_max",
        "connections_moved", "connections_lost", "bytes_checked", "bytes_wrong", "resets",
        "late_retransmissions", "phases_ms", "leftovers",
    }  # fmt: skip
    assert promised <= set(figures)
    assert figures["leftovers"] == []
    assert isinstance(figures["phases_ms"], dict)


def test_a_clean_run_is_ok() -> None:
    assert good().ok
    assert good().warnings == ()


@pytest.mark.parametrize(
    "spoiled",
    [
        replace(good(), clients=(replace(summary(), lost=(LostConnection(0, "eof", 1.0),)),)),
        replace(good(), clients=(replace(summary(), bytes_wrong=1),)),
        replace(good(), clients=(replace(summary(), wrong=("INCR",)),)),
        replace(good(), clients=(replace(summary(), bytes_checked=0),)),
        replace(good(), findings=replace(CLEAN, resets=(Event(1.0, "x", False),))),
        replace(good(), findings=None),
        replace(good(), leftovers=("namespace alpha",)),
        replace(good(), moves=()),
    ],
    ids=["lost", "wrong byte", "wrong answer", "unchecked", "reset", "no capture", "left", "idle"],
)
def test_any_harm_or_want_of_proof_makes_a_run_fail(spoiled: Report) -> None:
    assert not spoiled.ok
    assert spoiled.to_json()["ok"] is False
    assert "FAILED: " in text_of(spoiled)


def test_a_connection_that_was_lost_twice_counts_once() -> None:
    lost = (LostConnection(0, "a", 1.0), LostConnection(0, "b", 2.0), LostConnection(1, "c", 2.0))
    assert replace(good(), clients=(replace(summary(), lost=lost),)).connections_lost == 2


def test_a_move_that_no_client_saw_is_a_warning_and_not_a_gap_of_zero() -> None:
    report = make_report([move(0, 50.0)], [requests("s", "service", (1.0, 2.0))], findings=CLEAN)
    assert report.to_json()["client_gap_ms"] is None
    assert "move 0" in report.warnings[0]


def test_a_streams_gap_is_told_apart_from_the_clients() -> None:
    rows = np.array([(0.9, 1, 1), (1.25, 2, 2), (1.3, 3, 3)], PROGRESS_DTYPE)
    stream = ClientRun(summary("download"), Samples("progress", "download", "service", rows))
    report = make_report(
        [move(0, 1.0)], [stream, requests("s", "service", (1.0, 1.2))], findings=CLEAN
    )
    (one,) = report.moves
    assert one.client_gap_ms == pytest.approx(200)
    assert one.stream_gap_ms == {"download": pytest.approx(350)}


def test_connections_opened_between_the_moves_are_counted() -> None:
    opened = tuple(Event(time, "x", True) for time in (0.5, 2.0, 9.0))
    assert replace(good(), findings=replace(CLEAN, opened=opened)).opened_during_moves == 1


def test_retransmissions_and_drops_reach_the_figures() -> None:
    again = Retransmission(1.3, "x", 1, 10, 0)
    findings = replace(CLEAN, retransmissions=(again, again), late_retransmissions=(again,))
    report = make_report(
        [move(0, 1.0)],
        [requests("s", "service", (1.0, 1.2))],
        findings=findings,
        capture_drops=7,
    )
    figures = report.to_json()
    counts = [
        figures[name] for name in ("retransmissions", "late_retransmissions", "capture_drops")
    ]
    assert counts == [2, 1, 7]
    assert "missed 7 packets" in report.warnings[0]


def test_the_table_names_every_figure() -> None:
    text = text_of(good())
    for wanted in ("freeze", "client gap", "handover", "moved", "resets", "dump 70.0", "ok: "):
        assert wanted in text


@pytest.mark.parametrize("count", [1, 2])
def test_the_picture_is_a_png(tmp_path: Path, count: int) -> None:
    moves = [move(0, 1.0), move(1, 5.0)][:count]
    rows = np.array([(0.9, 1, 1), (1.25, 2, 2), (1.3, 3, 3)], PROGRESS_DTYPE)
    stream = ClientRun(summary("download"), Samples("progress", "download", "service", rows))
    clients = [requests("s", "service", (0.95, 0.96), (1.0, 1.2)), stream, ClientRun(summary("b"))]
    plot_moves(tmp_path / "a.png", moves, clients)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
