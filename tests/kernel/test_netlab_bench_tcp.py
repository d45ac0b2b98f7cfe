"""``netlab bench tcp``: its fields are there and make sense, and nothing is left behind.

No test here says how fast anything has to be.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
from click.testing import CliRunner

from mycoproxy import tcp
from mycoproxy.errors import MycoError, RefusedError
from netlab import bench_tcp
from netlab.cli import cli
from netlab.tcp_bench import tables
from netlab.tcp_bench.child import Child, descriptors
from netlab.tcp_bench.connections import answer, connected
from netlab.tcp_bench.handover import Handovers
from netlab.tcp_bench.peer import Peer
from netlab.tcp_bench.places import Places
from netlab.tcp_bench.series import Series
from netlab.tcp_bench.single_move import SingleMove
from netlab.tcp_bench.throughput import RATE, Windows, to_client, to_server

pytestmark = [pytest.mark.root, pytest.mark.timeout(90)]

PARTS = ("hold_s", "capture_s", "codec_s", "rehome_s", "establish_s", "release_s")
SHORT = Windows(warm=0.1, width=0.2, after=0.2)


@pytest.fixture
def places() -> Iterator[Places]:
    with Places() as made:
        yield made


@pytest.fixture
def peer(places: Places) -> Iterator[Child]:
    with Child(places.client, Peer) as made:
        yield made


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_every_field_is_there_and_makes_sense() -> None:
    files = open_files()
    said: list[str] = []
    figures = bench_tcp.measure(1, said.append, most=20, windows=SHORT)
    found = json.loads(json.dumps(figures))
    assert found["rounds"] == 1
    assert found["capture_establish_us"] == pytest.approx(
        found["options_us"] + found["capture_us"] + found["establish_us"], abs=0.2
    )
    assert min(found["options_us"], found["capture_us"], found["establish_us"]) > 0
    assert set(found["per_connection_us"]) == {"10", "20"}
    assert found["handover_20_s"] == pytest.approx(
        found["per_connection_us"]["20"] * 20e-6, abs=0.001
    )
    assert tuple(found["handover_20_parts"]) == PARTS
    assert all(part > 0 for part in found["handover_20_parts"].values())
    assert sum(found["handover_20_parts"].values()) == pytest.approx(
        found["handover_20_s"], abs=0.001
    )
    assert found["bytes_per_connection"] > found["encoded_bytes"] > 50
    assert found["not_kept"] == []
    assert set(found["throughput"]) == {"to_client", "to_server"}
    assert all(each["before_mbit_s"] > 0 for each in found["throughput"].values())
    assert found["throughput_ratio_after_move"] > 0
    assert found["link_gbit_s"] == RATE
    assert len(said) >= 4  # progress
    tables.figures(found)
    assert open_files() == files


def test_the_sizes_are_the_powers_of_ten_up_to_the_most() -> None:
    assert bench_tcp.sizes(10_000) == [10, 100, 1000, 10_000]
    assert bench_tcp.sizes(250) == [10, 100, 250]
    assert bench_tcp.sizes(3) == [3]


def test_handovers_follow_each_other_on_the_same_places(places: Places, peer: Child) -> None:
    with Handovers(places, peer) as handovers:
        for count in (1, 50, 7):
            handover = handovers.run(count)
            assert handover.connections == count
            assert sum(handover.parts().values()) == pytest.approx(handover.total_s, abs=1e-5)


def test_a_connection_that_does_not_answer_after_the_handover_is_an_error(
    places: Places, peer: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong_numbers(state: tcp.TcpState) -> bytes:
        send = state.send._replace(una=(state.send.una + 100_000_000) % (1 << 32))
        return encode(replace(state, send=send))

    encode = tcp.encode
    monkeypatch.setattr(tcp, "encode", wrong_numbers)
    with Handovers(places, peer, deadline=1.0) as handovers, pytest.raises(MycoError, match="time"):
        handovers.run(2)


def test_a_wrong_answer_is_an_error(places: Places, peer: Child) -> None:
    with connected(places, peer, 2) as socks:
        peer.start("ask", 1)
        answer(socks[:1])
        socks[1].recv(100)
        socks[1].sendall(b"nonsense")
        with pytest.raises(MycoError, match="wrong answer"):
            peer.result()


def test_no_byte_is_lost_when_one_connection_is_moved(places: Places, peer: Child) -> None:
    with connected(places, peer, 1) as socks, SingleMove(places) as single:
        peer.start("ask", 1)
        socks[0] = single.move(socks[0])  # the question is in the queue, or on its way
        answer(socks)
        peer.result()


def test_what_a_child_is_asked_and_cannot_do_is_said(places: Places, peer: Child) -> None:
    with pytest.raises(MycoError, match=r"Peer\.connect: .*refused"):
        peer.call("connect", "127.0.0.1", 9, 1)
    peer.call("close")  # and it goes on


def test_a_child_that_ends_is_noticed(places: Places) -> None:
    with Child(places.client, Peer) as peer:
        peer.start("no_such_method")
        with pytest.raises(MycoError, match="has ended"):
            peer.result()


def test_a_limited_link_carries_no_more_than_its_rate(places: Places, peer: Child) -> None:
    windows = Windows(warm=0.2, width=0.3, after=0.3)
    with places.limited(0.1):
        for rates in (to_client(places, peer, windows), to_server(places, peer, windows)):
            assert 0 < rates.before * 8e-9 < 0.11
            assert 0 < rates.after * 8e-9 < 0.11
    with places.limited(0.1):  # as often as one likes
        pass


def test_too_many_descriptors_are_refused_beforehand() -> None:
    with pytest.raises(RefusedError, match="open files"), descriptors(1 << 31):
        pass


def test_the_rate_is_that_of_the_window() -> None:
    series = Series(times=[0.0, 1.0, 2.0, 3.0], totals=[0, 100, 400, 1000])
    assert series.rate(1.0, 3.0) == 450
    assert series.rate(0.5, 1.5) == 100


def test_help_names_every_field() -> None:
    said = CliRunner().invoke(cli, ["bench", "tcp", "--help"]).output
    for field in (
        "capture_establish_us",
        "handover_10000_s",
        "bytes_per_connection",
        "throughput_ratio_after_move",
        "per_connection_us",
    ):
        assert field in said
