"""The load clients against a real redis-server on loopback: they pass what is right, and notice
what is not. Stopping the server (SIGSTOP) stands for the freeze of a move."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mycoproxy.errors import MycoError
from netlab.load.content import content, key_name
from netlab.load.plan import Preloaded
from netlab.load.preload import preload, verify
from netlab.load.process import LoadProcess
from netlab.load.redis_server import RedisServer
from netlab.load.samples import Verdict
from netlab.load.series import Records, read_samples
from netlab.report import longest_wait_ms

FREEZE_SECONDS = 0.3
KEYS = Preloaded(keys=500, value_bytes=100)
KEY_OPTIONS = ("--keys", "500", "--value-bytes", "100")
CLIENTS = {
    "checker": ("checker", "--connections", "5", *KEY_OPTIONS),
    "redis-cli": ("redis-cli",),
    "download": ("download", "--size", "3000000", "--rate", "2000000"),
    "upload": ("upload", "--size", "3000000", "--rate", "2000000"),
}

Start = Callable[..., LoadProcess]


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with RedisServer(getattr(request, "param", "127.0.0.1")) as running:
        yield running


@pytest.fixture
def start(server: RedisServer, tmp_path: Path) -> Iterator[Start]:
    """Starts one of `CLIENTS`, and waits until it is ready."""
    started: list[LoadProcess] = []

    def start_one(kind: str, *more: str) -> LoadProcess:
        where = ("--host", server.host, "--port", str(server.port))
        named = ("--name", kind, "--samples", str(tmp_path / kind))
        arguments = [*CLIENTS[kind], *where, *named, *more]
        client = LoadProcess(subprocess.Popen, arguments, log=tmp_path / f"{kind}.log")
        started.append(client)
        client.wait_ready()
        return client

    assert preload(server.host, server.port, KEYS, seconds=20).ok
    yield start_one
    for client in started:
        client.kill()


def until(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.01)


def records(tmp_path: Path, kind: str) -> Records:
    return read_samples(tmp_path / kind).records


def grown(tmp_path: Path, kind: str, by: int = 5) -> Callable[[], bool]:
    """A condition: the client has written ``by`` more samples than now."""
    before = len(records(tmp_path, kind))
    return lambda: len(records(tmp_path, kind)) >= before + by


def freeze(server: RedisServer) -> tuple[float, float]:
    """When the server stood still, and when it was let go."""
    os.kill(server.process.pid, signal.SIGSTOP)
    stopped = Path(f"/proc/{server.process.pid}/stat")
    until(lambda: stopped.read_text().rsplit(")", 1)[1].split()[0] == "T", "stop the server")
    begin = time.monotonic()
    time.sleep(FREEZE_SECONDS)  # the freeze itself
    end = time.monotonic()
    os.kill(server.process.pid, signal.SIGCONT)
    return begin, end


@pytest.mark.parametrize("server", ["127.0.0.1", "::1"], indirect=True)
@pytest.mark.parametrize("kind", ["checker", "redis-cli"])
def test_a_freeze_is_a_long_wait_and_nothing_else(
    server: RedisServer, start: Start, tmp_path: Path, kind: str
) -> None:
    client = start(kind)
    until(grown(tmp_path, kind), "work before the freeze")
    begin, end = freeze(server)
    until(grown(tmp_path, kind), "work after the freeze")
    summary = client.stop()
    assert summary.ok, summary
    assert summary.requests > 10
    assert summary.bytes_checked > 0
    waits = records(tmp_path, kind)
    longest = longest_wait_ms(waits, begin, end)
    assert longest is not None
    assert longest > FREEZE_SECONDS * 1e3 / 2
    # An answer that was sent just before the freeze may be read a moment later, not more.
    assert not ((waits["answered"] > begin + FREEZE_SECONDS / 2) & (waits["answered"] < end)).any()
    assert (waits["verdict"] == Verdict.RIGHT).all()
    assert max(summary.longest_wait_s) >= FREEZE_SECONDS / 2
    assert all(summary.local_ports)


@pytest.mark.parametrize("server", ["127.0.0.1", "::1"], indirect=True)
@pytest.mark.parametrize("kind", ["download", "upload"])
def test_a_stream_across_a_freeze_arrives_complete(
    server: RedisServer, start: Start, tmp_path: Path, kind: str
) -> None:
    client = start(kind)
    until(grown(tmp_path, kind), "progress before the freeze")
    freeze(server)
    until(grown(tmp_path, kind), "progress after the freeze")
    summary = client.stop()
    assert summary.ok, summary
    transfers = summary.details["transfers"]
    assert transfers
    assert all(each["right"] and each["bytes"] == 3_000_000 for each in transfers)
    assert all(each["sha256"] == summary.details["sha256"] for each in transfers)
    progress = records(tmp_path, kind)
    assert progress["moved"].max() >= 3_000_000
    assert (progress["acknowledged"] <= progress["moved"]).all()


def test_a_value_changed_behind_its_back_is_wrong(
    server: RedisServer, start: Start, tmp_path: Path
) -> None:
    client = start("checker")
    for index in range(KEYS.keys):
        value = content(key_name(index), KEYS.value_bytes)
        server.ask(b"SET", key_name(index), value[:-1] + bytes([value[-1] ^ 1]))

    def noticed() -> bool:
        return bool((records(tmp_path, "checker")["verdict"] == Verdict.WRONG).any())

    until(noticed, "notice the wrong byte")
    summary = client.stop()
    assert not summary.ok
    assert summary.bytes_wrong == sum(records(tmp_path, "checker")["verdict"] == Verdict.WRONG)
    assert summary.wrong
    assert summary.lost == ()


@pytest.mark.parametrize("kind", ["checker", "redis-cli"])
def test_a_request_that_is_done_twice_is_wrong(
    server: RedisServer, start: Start, tmp_path: Path, kind: str
) -> None:
    client = start(kind)
    server.ask(b"INCR", b"count:checker:0" if kind == "checker" else b"count:redis-cli:redis-cli")

    def noticed() -> bool:
        return bool((records(tmp_path, kind)["verdict"] == Verdict.WRONG).any())

    until(noticed, "notice the double count")
    summary = client.stop()
    assert summary.bytes_wrong > 0
    assert summary.wrong


@pytest.mark.parametrize("kind", list(CLIENTS))
def test_a_killed_connection_is_lost_and_not_opened_again(
    server: RedisServer, start: Start, tmp_path: Path, kind: str
) -> None:
    client = start(kind)
    until(grown(tmp_path, kind), "work")
    # The connection that asks is spared (SKIPME): all others are the client's.
    killed = server.ask(b"CLIENT", b"KILL", b"TYPE", b"normal", b"SKIPME", b"yes")
    assert killed != b":0\r\n"
    until(lambda: client.process.poll() is not None, "end")
    summary = client.stop()
    assert not summary.ok
    assert len({lost.connection for lost in summary.lost}) == summary.connections
    assert all(lost.reason for lost in summary.lost)


def test_a_connection_that_hangs_at_the_end_is_lost(
    server: RedisServer, start: Start, tmp_path: Path
) -> None:
    client = start("checker", "--drain", "0.2")
    until(grown(tmp_path, "checker", 1), "work")
    os.kill(server.process.pid, signal.SIGSTOP)
    time.sleep(FREEZE_SECONDS)  # many times the pause of a connection: now all of them wait
    summary = client.stop()
    assert len(summary.lost) == summary.connections
    assert all("no answer for" in lost.reason for lost in summary.lost)
    last = records(tmp_path, "checker")[-summary.connections :]
    assert (last["verdict"] == Verdict.UNANSWERED).all()


def test_a_redis_cli_that_hangs_at_the_end_is_lost(
    server: RedisServer, start: Start, tmp_path: Path
) -> None:
    client = start("redis-cli")
    os.kill(server.process.pid, signal.SIGSTOP)
    time.sleep(FREEZE_SECONDS)  # whatever was under way is read by now
    summary = client.stop()
    (lost,) = summary.lost
    assert "no answer for" in lost.reason
    assert records(tmp_path, "redis-cli")[-1]["verdict"] == Verdict.UNANSWERED


def test_a_server_that_is_not_there_is_a_lost_connection(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for kind in ("checker", "download"):
        arguments = [*CLIENTS[kind], "--host", "127.0.0.1", "--port", str(port), "--name", "x"]
        with LoadProcess(subprocess.Popen, arguments, log=tmp_path / "log") as client:
            summary = client.stop()
        assert len({lost.connection for lost in summary.lost}) == summary.connections
        assert "Errno 111" in summary.lost[0].reason  # connection refused


def test_a_client_ends_by_signal_and_by_its_bound(server: RedisServer, start: Start) -> None:
    by_signal = start("checker")
    by_signal.process.send_signal(signal.SIGTERM)
    assert by_signal.process.wait(20) == 0
    assert by_signal.stop().stopped_by == "SIGTERM"
    by_bound = start("checker", "--seconds", "1")
    assert by_bound.process.wait(20) == 0
    assert by_bound.stop().stopped_by == "--seconds"


def test_a_client_ends_with_its_parent(server: RedisServer, start: Start) -> None:
    client = start("redis-cli")
    children = Path(f"/proc/{client.pid}/task/{client.pid}/children").read_text().split()
    assert client.process.stdin is not None
    client.process.stdin.close()  # what the end of the parent does
    client.process.wait(20)
    assert children
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_a_client_that_cannot_start_says_why(server: RedisServer, tmp_path: Path) -> None:
    arguments = ["checker", "--host", server.host]
    with (
        LoadProcess(subprocess.Popen, arguments, log=tmp_path / "log") as client,
        pytest.raises(MycoError, match="--name"),
    ):
        client.wait_ready()


def test_all_preloaded_keys_can_be_verified(server: RedisServer) -> None:
    assert preload(server.host, server.port, KEYS, seconds=20).ok
    right = verify(server.host, server.port, KEYS, seconds=20)
    assert (right.ok, right.requests) == (True, KEYS.keys)
    server.ask(b"SET", key_name(7), b"short")
    server.ask(b"DEL", key_name(8))
    wrong = verify(server.host, server.port, KEYS, seconds=20)
    assert not wrong.ok
    assert [line.split(":")[1] for line in wrong.wrong] == ["7", "8"]


def test_redis_benchmark_runs_until_it_is_stopped(server: RedisServer, tmp_path: Path) -> None:
    where = ["--host", server.host, "--port", str(server.port)]
    arguments = ["benchmark", *where, "--name", "b", "--connections", "2"]
    with LoadProcess(subprocess.Popen, arguments, log=tmp_path / "log") as client:
        client.wait_ready()
        summary = client.stop()
    assert summary.ok, summary
    assert summary.details["last_line"]
