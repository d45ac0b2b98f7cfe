"""tcpdump in a network namespace: what was sent is what is read, up to the last packet."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mycoproxy.errors import MycoError
from netlab.capture import Capture, Servers, find, flows, read_pcap
from netlab.capture.findings import ack_progress
from netlab.load.process import LoadProcess
from netlab.load.redis_server import RedisServer
from netlab.load.series import read_samples

pytestmark = pytest.mark.root

PORT = 7000


def _servers(link: Any) -> Servers:
    return Servers({"direct": frozenset({link.left_v4, link.left_v6})}, frozenset({PORT}))


def _talk(link: Any, version: int, *, count: int, size: int) -> None:
    """``count`` times ``size`` bytes to the server, each answered by one byte; orderly closed."""
    address = (link.address("left", version), PORT)
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with (
        link.left.call(socket.create_server, address, family=family) as listener,
        link.right.call(socket.create_connection, address, 10) as near,
    ):
        listener.settimeout(10)
        far, _ = listener.accept()
        with far:
            far.settimeout(10)
            for _ in range(count):
                near.sendall(b"x" * size)
                received = 0
                while received < size:
                    received += len(far.recv(65536))
                far.sendall(b"y")
                near.recv(1)
            near.shutdown(socket.SHUT_WR)
            assert far.recv(1) == b""


@pytest.mark.parametrize("version", [4, 6])
def test_a_capture_holds_every_packet_up_to_its_stop(
    netns_pair: Any, tmp_path: Path, version: int
) -> None:
    start = partial(netns_pair.right.call, subprocess.Popen)
    with Capture(
        start, netns_pair.right_ifname, tmp_path / "a.pcap", expression=f"tcp port {PORT}"
    ) as capture:
        begin = time.monotonic()
        _talk(netns_pair, version, count=50, size=20_000)
        end = time.monotonic()
        statistics = capture.stop()
    packets = read_pcap(tmp_path / "a.pcap", capture.clock)
    assert (statistics.captured, statistics.dropped) == (len(packets), 0)
    assert abs(statistics.clock_drift_seconds) < 1
    assert begin <= packets.time.min() <= packets.time.max() <= end + 0.1
    servers = _servers(netns_pair)
    (flow,) = flows(packets, servers)
    up = packets.payload[flow.rows][flow.from_client].sum()
    down = packets.payload[flow.rows][~flow.from_client].sum()
    assert (up, down) == (50 * 20_000, 50)
    found = find(packets, servers)
    assert (found.resets, found.retransmissions, found.server_fins) == ((), (), ())
    assert found.connections_by_client == {f"direct {netns_pair.address('right', version)}": 1}
    progress = ack_progress(packets, flow, begin, end)
    assert 50 * 20_000 <= progress.total <= 50 * 20_000 + 2  # SYN and FIN count as well


def test_a_reset_is_in_the_capture(netns_pair: Any, tmp_path: Path) -> None:
    start = partial(netns_pair.right.call, subprocess.Popen)
    with Capture(start, netns_pair.right_ifname, tmp_path / "a.pcap") as capture:
        with pytest.raises(ConnectionRefusedError):
            netns_pair.right.call(socket.create_connection, (netns_pair.left_v4, PORT), 10)
        capture.stop()
    packets = read_pcap(tmp_path / "a.pcap", capture.clock)
    (reset,) = find(packets, _servers(netns_pair)).resets
    assert not reset.from_client


def test_an_interface_that_is_not_there_is_an_error_with_tcpdumps_words(
    netns_pair: Any, tmp_path: Path
) -> None:
    start = partial(netns_pair.right.call, subprocess.Popen)
    with pytest.raises(MycoError, match="nosuch"):
        Capture(start, "nosuch", tmp_path / "a.pcap")


def test_an_upload_is_acknowledged_while_the_server_stands_until_the_window_is_full(
    netns_pair: Any, tmp_path: Path
) -> None:
    start = partial(netns_pair.right.call, subprocess.Popen)
    with (
        netns_pair.left.call(RedisServer, netns_pair.left_v4) as server,
        Capture(start, netns_pair.right_ifname, tmp_path / "a.pcap") as capture,
    ):
        where = ("--host", server.host, "--port", str(server.port))
        sizes = ("--size", "100000000", "--rate", "20e6", "--once")
        arguments = ("upload", *where, "--name", "u", "--samples", str(tmp_path / "u"), *sizes)
        with LoadProcess(start, arguments, log=tmp_path / "log") as client:
            client.wait_ready()
            _wait_for(lambda: _moved(tmp_path / "u") > 1_000_000, "a megabyte")
            begin = time.monotonic()
            os.kill(server.process.pid, signal.SIGSTOP)
            _wait_for(lambda: _stuck(tmp_path / "u"), "the upload to stand still")
            end = time.monotonic()
            os.kill(server.process.pid, signal.SIGCONT)
            summary = client.stop()
        capture.stop()
    assert summary.ok, summary
    packets = read_pcap(tmp_path / "a.pcap", capture.clock)
    servers = Servers({"direct": frozenset({server.host})}, frozenset({server.port}))
    (flow,) = [each for each in flows(packets, servers) if each.client_port in summary.local_ports]
    progress = ack_progress(packets, flow, begin, end)
    assert progress.total > 100_000
    assert progress.closed
    found = find(packets, servers, resumes=[end])
    assert found.zero_windows
    assert (found.resets, found.late_retransmissions) == ((), ())


def _moved(samples: Path) -> int:
    return int(read_samples(samples).records["moved"].max(initial=0))


def _stuck(samples: Path) -> bool:
    """No progress for a second: far more than the pace of the upload."""
    times = read_samples(samples).records["time"]
    return bool(time.monotonic() - times.max() > 1)


def _wait_for(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.01)
