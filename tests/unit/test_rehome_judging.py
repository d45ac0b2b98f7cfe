"""When a row of the rehome matrix is ok, which strategy and which freeze it is given."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.errors import UsageError
from mycoproxy.handover import Rehomed
from mycoproxy.netfilter.paths import Path as Way
from netlab.paths.clients import Connection
from netlab.paths.end.stream import Report
from netlab.paths.result import PathResult
from netlab.paths.table import path
from netlab.rehome_matrix import RehomeMatrix
from netlab.rehome_rows import Moved, judge_row, pairs_of, strategies, strategy_of

MOVES = (Moved(10.0, 10.2, {0: "rebind"}), Moved(20.0, 20.4, {0: "translate"}))


def end(*, opener: bool, local: str, peer: str) -> Report:
    return Report(
        connection=0,
        opener=opener,
        local=local,
        peer=peer,
        open=True,
        sent=1,
        received=1,
        wrong=0,
        sent_sha256="",
        received_sha256="",
        gap=0.0,
        gap_at=0.0,
        reset=False,
        error="",
    )


def result(
    *,
    gap_at: float = 9.995,
    gap_ms: float = 210.0,
    wrong: int = 0,
    resets: int = 0,
    error: str = "",
) -> PathResult:
    return PathResult(
        path="pod-gamma-virtual",
        family=4,
        activity="sending",
        gap_ms=gap_ms,
        gap_at=gap_at,
        bytes=2,
        wrong=wrong,
        resets=resets,
        error=error,
        ends=(),
    )


def connection(name: str = "pod-gamma-virtual", number: int = 0) -> Connection:
    return Connection(number, path(name), 4, "sending")


def test_a_row_is_ok_if_its_connection_is_and_the_first_strategy_is_the_tables() -> None:
    row, why = judge_row(connection(), result(), MOVES, 0)
    assert (row.ok, row.strategy, row.resets, why) == (True, "rebind", 0, "")
    assert row.freeze_ms == pytest.approx(200)


@pytest.mark.parametrize(
    ("bad", "resets", "said"),
    [
        (result(error="opener: end of stream"), 0, "opener: end of stream"),
        (result(wrong=3), 0, "3 wrong bytes"),
        (result(resets=1), 0, "1 ends were told"),
        (result(), 2, "2 resets crossed"),
    ],
)
def test_what_makes_a_row_bad_is_said(bad: PathResult, resets: int, said: str) -> None:
    row, why = judge_row(connection(), bad, MOVES, resets)
    assert not row.ok
    assert said in why
    assert row.resets == bad.resets + resets


def test_another_strategy_than_the_tables_makes_a_row_bad() -> None:
    row, why = judge_row(connection("pod-gamma-address"), result(), MOVES, 0)
    assert not row.ok
    assert why == "strategy translate expected, rebind found"


def test_a_row_that_was_never_moved_is_bad_and_has_neither_strategy_nor_freeze() -> None:
    row, why = judge_row(connection(), result(), (), 0)
    assert (row.ok, row.strategy, row.freeze_ms) == (False, None, None)
    assert "no move found" in why


def test_a_long_gap_is_reported_and_not_judged() -> None:
    row, _ = judge_row(connection(), result(gap_ms=900.0), MOVES, 0)
    assert (row.ok, row.gap_ms) == (True, 900.0)


@pytest.mark.parametrize(
    ("gap_at", "gap_ms", "freeze_ms"),
    [
        (9.995, 210.0, 200),  # began before the freeze: the last byte before it
        (20.05, 360.0, 400),
        (10.15, 10_100.0, 400),  # over both: most of it in the second
        (15.0, 2.0, 200),  # in none of them: the last one before it
        (30.0, 2.0, 400),
        (5.0, 2.0, 200),
    ],
)
def test_the_freeze_is_of_the_move_that_the_gap_was_in(
    gap_at: float, gap_ms: float, freeze_ms: float
) -> None:
    row, _ = judge_row(connection(), result(gap_at=gap_at, gap_ms=gap_ms), MOVES, 0)
    assert row.freeze_ms == pytest.approx(freeze_ms)


@pytest.mark.parametrize(
    ("ways", "name"),
    [
        ((), "nothing"),
        ((Way.ADMIT,), "nothing"),
        ((Way.ADMIT, Way.REBIND), "rebind"),
        ((Way.CARRY, Way.TRANSLATE), "carry"),
        ((Way.ADMIT, Way.ANCHOR), "anchor"),
    ],
)
def test_what_nodes_do_together_has_one_name(ways: Sequence[Way], name: str) -> None:
    assert strategy_of(ways) == name


def test_connections_are_found_in_a_report_by_the_names_of_the_workloads_sockets() -> None:
    workload, pod = "[2001:db8:244:1::2]:7000", "[2001:db8:244:3::2]:40000"
    incoming = [
        end(opener=True, local=pod, peer="[2001:db8:96::10]:80"),
        end(opener=False, local=workload, peer=pod),
    ]
    outgoing = [
        end(opener=True, local="10.244.1.2:50000", peer="10.96.0.20:80"),
        end(opener=False, local="10.244.3.3:7000", peer="10.244.1.2:50000"),
    ]
    names = (
        FourTuple(Endpoint("2001:db8:244:1::2", 7000), Endpoint("2001:db8:244:3::2", 40000)),
        FourTuple(Endpoint("::ffff:10.244.1.2", 50000), Endpoint("::ffff:10.96.0.20", 80)),
    )
    found = strategies(
        [connection(), connection("to-virtual", 1), connection("self-loopback", 2)],
        {0: incoming, 1: outgoing, 2: []},
        [
            Rehomed("beta", names[0], Way.ADMIT),
            Rehomed("gamma", names[0], Way.REBIND),
            Rehomed("beta", names[1], Way.CARRY),
        ],
    )
    assert found == {0: "rebind", 1: "carry", 2: "nothing"}


def test_a_reset_is_known_by_any_name_of_either_end() -> None:
    ends = [
        end(opener=True, local="198.51.100.2:40000", peer="192.0.2.18:30080"),
        end(opener=False, local="10.244.1.2:7000", peer="192.0.2.18:50000"),
    ]
    outside, masqueraded = Endpoint("198.51.100.2", 40000), Endpoint("192.0.2.18", 50000)
    dialled, workload = Endpoint("192.0.2.18", 30080), Endpoint("10.244.1.2", 7000)
    pairs = pairs_of(ends)
    assert frozenset((dialled, outside)) in pairs
    assert frozenset((masqueraded, workload)) in pairs
    assert frozenset((outside, workload)) in pairs
    assert pairs_of([end(opener=True, local="", peer="")]) == set()


@pytest.mark.parametrize("moves", [("alpha",), ("beta", "beta"), ("router",), ("beta", "")])
def test_moves_that_lead_nowhere_are_refused(moves: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only another one of alpha, beta, gamma"):
        RehomeMatrix(moves, out=tmp_path)
