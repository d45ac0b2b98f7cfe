"""Ends of connections that check every byte, their table, and how a connection is judged."""

import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netlab.paths.clients import Connection
from netlab.paths.end.content import RING_BYTES, count_wrong, piece, start_of
from netlab.paths.end.stream import Report, StrangerError, Stream
from netlab.paths.result import judge, settled
from netlab.paths.table import ACTIVITIES, PATHS, WORKLOAD, path
from netlab.topology import load

STREAMING = (7, 200, 8)
QUIET = (7, 0, 0)


class Pair:
    """Two ends, joined; ``pass_on`` lets both read what is there, at a time of choice."""

    def __init__(self, hello: tuple[int, int, int]) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        with listener:
            near = socket.create_connection(listener.getsockname(), timeout=5)
            far = listener.accept()[0]
        self.opener = Stream(near, hello=hello)
        self.acceptor = Stream(far)
        self.opener.greet()
        for now in (1.0, 1.0):
            self.pass_on(now)

    def pass_on(self, now: float) -> None:
        for end in (self.acceptor, self.opener):
            if not end.ended and select.select([end.socket], [], [], 0.2)[0]:
                end.read(now)

    def judged(self) -> list[Report]:
        return [self.opener.report(), self.acceptor.report()]

    def close(self) -> None:
        self.opener.socket.close()
        self.acceptor.socket.close()


@pytest.fixture
def streaming() -> Iterator[Pair]:
    pair = Pair(STREAMING)
    yield pair
    pair.close()


@pytest.fixture
def quiet() -> Iterator[Pair]:
    pair = Pair(QUIET)
    yield pair
    pair.close()


@settings(deadline=None, database=None)
@given(
    start=st.integers(0, RING_BYTES - 1),
    offset=st.integers(0, 1 << 40),
    size=st.integers(1, 1 << 16),
    cut=st.integers(0, 1 << 16),
)
def test_stream_is_the_same_however_it_is_cut(start: int, offset: int, size: int, cut: int) -> None:
    cut = min(cut, size)
    whole = piece(start, offset, size)
    assert len(whole) == size
    parts = bytes(piece(start, offset, cut)) + bytes(piece(start, offset + cut, size - cut))
    assert parts == whole


@given(shift=st.integers(1, RING_BYTES - 1), offset=st.integers(0, 1 << 20))
def test_lost_or_repeated_bytes_do_not_fall_on_equal_ones(shift: int, offset: int) -> None:
    assert piece(0, offset, 64) != piece(0, offset + shift, 64)


def test_both_ends_of_a_connection_send_different_streams() -> None:
    starts = {start_of(number, opener=opener) for number in range(200) for opener in (True, False)}
    assert len(starts) > 390


def test_wrong_bytes_are_counted_one_by_one() -> None:
    expected = piece(0, 0, 5)
    found = bytearray(expected)
    found[1] ^= 1
    found[4] ^= 255
    assert count_wrong(expected, bytes(found)) == 2


def test_every_byte_of_both_directions_arrives_and_is_right(streaming: Pair) -> None:
    for beat in range(50):
        streaming.opener.beat()
        streaming.acceptor.beat()
        streaming.pass_on(1.0 + beat / 100)
    result = judge("p", 4, "sending", streaming.judged())
    assert result.ok
    assert result.bytes == 50 * 208
    assert 9 < result.gap_ms < 11


def test_longest_wait_is_the_gap_and_where_it_began(streaming: Pair) -> None:
    for now in (2.0, 2.1, 5.1, 5.2):
        streaming.opener.beat()
        streaming.pass_on(now)
        if now == 2.0:
            streaming.acceptor.begin(now)
    report = streaming.acceptor.report()
    assert report["gap"] == pytest.approx(3.0)
    assert report["gap_at"] == pytest.approx(2.1)


def test_spoiled_byte_is_found(streaming: Pair) -> None:
    streaming.opener.spoil()
    streaming.opener.beat()
    streaming.acceptor.beat()
    streaming.pass_on(2.0)
    result = judge("p", 4, "sending", streaming.judged())
    assert (result.wrong, result.resets, result.ok) == (1, 0, False)


def test_reset_is_counted_at_the_end_that_it_reaches(streaming: Pair) -> None:
    streaming.opener.reset()
    streaming.pass_on(2.0)
    result = judge("p", 4, "sending", streaming.judged())
    assert result.resets == 1
    assert streaming.acceptor.report()["reset"]
    assert "as it was told" in result.error


def test_end_of_stream_is_an_error_and_no_reset(streaming: Pair) -> None:
    streaming.opener.socket.close()
    streaming.acceptor.read(2.0)
    result = judge("p", 4, "sending", [streaming.acceptor.report()])
    assert (result.error, result.resets) == ("acceptor: end of stream", 0)


def test_quiet_connection_says_nothing_until_it_is_asked(quiet: Pair) -> None:
    quiet.opener.beat()
    quiet.acceptor.beat()
    assert not settled(quiet.judged())
    quiet.opener.ask(3.0)
    quiet.pass_on(3.25)
    result = judge("p", 4, "idle", quiet.judged())
    assert result.ok
    assert result.bytes == 128
    assert result.gap_ms == pytest.approx(250)


def test_what_is_on_its_way_is_not_settled(streaming: Pair) -> None:
    streaming.opener.beat()
    streaming.acceptor.beat()
    assert not settled(streaming.judged())
    assert "did not arrive" in judge("p", 4, "sending", streaming.judged()).error
    streaming.pass_on(2.0)
    assert settled(streaming.judged())


def test_connection_of_somebody_else_is_told_apart() -> None:
    near, far = socket.socketpair(socket.AF_UNIX)
    with near, far:
        end = Stream(cast(socket.socket, _Nodelay(far)))
        near.sendall(b"GET / HTTP/1.1\r\n")
        with pytest.raises(StrangerError):
            end.read(1.0)


class _Nodelay:
    """A unix socket that takes TCP's option."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def setsockopt(self, *_: object) -> None:
        return

    def __getattr__(self, name: str) -> object:
        return getattr(self._sock, name)


def test_connection_of_one_end_only_is_an_error() -> None:
    assert judge("p", 4, "idle", []).error == "was never open at both ends"


def test_rows_have_names_of_their_own_and_places_that_are_in_the_topology() -> None:
    kube = load(Path("kube-service"))
    places = {node.name for node in kube.nodes} | {pod.name for pod in kube.pods}
    assert len({row.name for row in PATHS}) == len(PATHS)
    for row in PATHS:
        assert {row.opener, row.acceptor, row.client} <= places
        assert WORKLOAD in {row.opener, row.acceptor}
        assert (row.service is not None) == (row.dials in ("virtual", "node-port", "external"))
        assert (row.entry is not None) == (row.dials in ("node-port", "external"))
        if row.service is not None:
            assert kube.service(row.service).pod == row.acceptor


def test_rows_come_from_one_port_but_none_dials_what_another_one_does_from_there() -> None:
    rows = [row for row in PATHS if row.from_port is not None]
    pairs = [(row.opener, row.dials, row.from_port) for row in rows]
    assert len(set(pairs)) == len(pairs) > len({port for *_, port in pairs})
    assert not any(row.port_is_taken for row in PATHS if row not in rows)
    ports = [
        Connection(0, path("routed-same-port"), family, activity).from_port
        for family in (4, 6)
        for activity in ACTIVITIES
    ]
    assert len(set(ports)) == len(ports)


def test_each_place_a_client_can_be_in_has_rows() -> None:
    openers = {row.opener for row in PATHS}
    assert {"client-alpha", "client-beta", "client-gamma", "alpha", "beta", "gamma"} <= openers
    assert {"outside", "routed", WORKLOAD} <= openers
    assert {row.strategy for row in PATHS} == {
        "rebind",
        "translate",
        "anchor",
        "carry",
        "nothing",
    }
