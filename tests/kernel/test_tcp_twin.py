"""After a move, the same traffic: the moved connection is as good as its twin, which stayed."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from netlab import twin
from netlab.cli import cli
from netlab.tcp_bench.places import Places
from netlab.tcp_bench.twins import Twins

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

LINE = (
    "ESTAB 0 376 10.98.0.1:80 10.98.1.1:5000 timer:(on,172ms,0) ts sack bbr wscale:10,9 rto:204"
    " rtt:0.021/0.005 mss:1448 cwnd:246 bbr:(bw:6bps,mrtt:0.006) send 1356bps lastsnd:16"
    " pacing_rate 165bps delivery_rate 609bps delivered:2975 app_limited rcv_space:14600"
)

MEASURED = ("rcv_rtt ", "rcv_space ", "rcv_ssthresh ", "snd_wnd ")
"""Fields that need more traffic than most tests have."""


@pytest.fixture
def places() -> Iterator[Places]:
    with Places() as made:
        yield made


@pytest.fixture
def twins(places: Places) -> Iterator[Twins]:
    with Twins(places) as made:
        yield made


def sysctl(places: Places, name: str, value: int) -> None:
    for place in (places.client, places.source, places.target):
        place.call(Path("/proc/sys/net/ipv4", name).write_text, str(value))


def by_field(rows: list[twin.Row]) -> dict[str, twin.Row]:
    return {row.field: row for row in rows}


def without_options(found: list[str]) -> list[str]:
    return [text for text in found if text.split()[0] not in twin.OPTIONS]


def number(row: twin.Row) -> float:
    assert row.moved is not None, f"{row.field} is not there"
    return float(row.moved.partition("/")[0].removesuffix("bps"))


@pytest.mark.parametrize("history", ["long", "short"])
def test_a_moved_connection_is_as_good_as_its_twin(twins: Twins, history: str) -> None:
    """With a long history all is tuned by then; with a short one it has to be tuned afterwards."""
    twins.traffic(**({} if history == "long" else {"rounds": 2, "size": 100}))
    twins.move()
    twins.traffic()
    assert without_options(twin.differences(twins.server_rows())) == []
    assert twin.differences(twins.client_rows()) == []


@pytest.mark.parametrize(
    "sysctls",
    [
        {},
        {"tcp_timestamps": 0},
        {"tcp_sack": 0},
        {"tcp_window_scaling": 0},
        {"tcp_timestamps": 0, "tcp_sack": 0, "tcp_window_scaling": 0},
    ],
    ids=lambda values: "-".join(values) or "all",
)
def test_what_was_negotiated_is_the_same(places: Places, sysctls: dict[str, int]) -> None:
    for name, value in sysctls.items():
        sysctl(places, name, value)
    with Twins(places) as twins:
        twins.traffic(size=100_000)
        twins.move()
        twins.traffic(size=100_000)
        rows = by_field(twins.server_rows())
    for field, name in (("ts", "tcp_timestamps"), ("sack", "tcp_sack")):
        assert (field in rows) == (name not in sysctls)
    if "tcp_window_scaling" in sysctls:
        # After a move it is scaling by nothing, which is the same to the peer.
        assert (rows["wscale"].stayed, rows["wscale"].moved) == (None, "0,0")
    assert (
        without_options(
            [text for text in twin.differences([*rows.values()]) if not text.startswith(MEASURED)]
        )
        == []
    )
    assert rows["mss"].moved == rows["mss"].stayed == ("1460" if "ts" not in rows else "1448")
    assert rows["pmtu"].moved == rows["pmtu"].stayed == "1500"


def test_the_round_trip_is_estimated_anew_from_the_first_answer(twins: Twins) -> None:
    twins.traffic(rounds=3, size=100)
    twins.move()
    before = by_field(twins.server_rows())
    assert before["rtt"].moved is None  # nothing has been measured, and nothing is made up
    twins.traffic(rounds=1, size=100)
    after = by_field(twins.server_rows())
    assert 0 < number(after["rtt"]) < 100
    assert 0 < number(after["rto"]) < 1000


def test_the_congestion_window_grows_again(twins: Twins) -> None:
    twins.traffic()
    twins.move()
    assert number(by_field(twins.server_rows())["cwnd"]) == 10  # a new connection's
    twins.traffic()
    rows = by_field(twins.server_rows())
    assert number(rows["cwnd"]) > 20
    assert number(rows["pacing_rate"]) > 0


def test_the_windows_grow_beyond_those_of_a_new_connection(twins: Twins) -> None:
    twins.traffic(rounds=2, size=100)
    twins.move()
    early = by_field(twins.server_rows())
    twins.traffic()
    late = by_field(twins.server_rows())
    for field in ("rcv_ssthresh", "rcv_space", "snd_wnd"):
        assert number(late[field]) > 2 * number(early[field]), field


def test_nothing_is_sent_twice(twins: Twins) -> None:
    twins.traffic(size=1_000_000)
    twins.move()
    twins.traffic(size=1_000_000)
    for rows in (twins.server_rows(), twins.client_rows()):
        found = by_field(rows)
        assert not {"retrans", "bytes_retrans", "lost", "dsack_dups"} & set(found)


def test_explicit_congestion_notification_is_given_up_and_traffic_goes_on(places: Places) -> None:
    sysctl(places, "tcp_ecn", 1)
    with Twins(places) as twins:
        twins.traffic(rounds=2, size=1_000_000)
        twins.move()
        twins.traffic(rounds=2, size=1_000_000)
        ecn = by_field(twins.server_rows())["ecn"]
    assert (ecn.stayed, ecn.moved) == ("yes", None)


def test_what_the_owner_set_is_the_same(twins: Twins) -> None:
    twins.move()
    differing = [row for row in twins.server_rows() if row.field in twin.OPTIONS and row.wrong]
    assert differing == []


def test_a_line_of_ss_is_taken_apart() -> None:
    fields = twin.parse(LINE)
    assert fields["send-q"] == "376"
    assert fields["timer"] == "(on,172ms,0)"
    assert (fields["ts"], fields["sack"], fields["app_limited"]) == ("yes",) * 3
    assert fields["congestion"] == "bbr"
    assert fields["bbr"] == "(bw:6bps,mrtt:0.006)"
    assert fields["wscale"] == "10,9"
    assert fields["send"] == "1356bps"
    assert fields["pacing_rate"] == "165bps"
    assert fields["delivered"] == "2975"


@pytest.mark.parametrize(
    ("field", "stayed", "moved"),
    [
        ("mss", "1448", "524"),
        ("ts", "yes", None),
        ("sack", "yes", None),
        ("wscale", "10,10", "0,0"),
        ("rto", "204", None),
        ("rtt", "0.02/0.01", None),
        ("cwnd", "246", "2"),
        ("cwnd", "246", "10"),
        ("rcv_space", "166280", "14600"),
        ("rcv_ssthresh", "7241363", "64088"),
        ("snd_wnd", "7241363", "64088"),
        ("bytes_retrans", None, "1448"),
        ("TCP_NODELAY", "1", "0"),
        ("advmss", "1448", "536"),
    ],
)
def test_what_is_worse_is_found(field: str, stayed: str | None, moved: str | None) -> None:
    one = {field: stayed} if stayed else {}
    other = {field: moved} if moved else {}
    assert len(twin.differences(twin.side_by_side(one, other))) == 1


def test_equal_twins_do_not_differ() -> None:
    fields = twin.parse(LINE)
    assert twin.differences(twin.side_by_side(fields, fields)) == []


def test_the_command_prints_both_side_by_side() -> None:
    result = CliRunner().invoke(cli, ["bench", "tcp", "--twin", "--json"])
    found = json.loads(result.stdout)
    assert set(found) == {"server", "client", "differences"}
    assert without_options([text.partition(": ")[2] for text in found["differences"]]) == []
    assert result.exit_code == (1 if found["differences"] else 0)
    fields = {row["field"] for row in found["server"]}
    assert {"mss", "wscale", "sack", "ts", "rtt", "rto", "cwnd", "rcv_space"} <= fields
