"""The main job: moves under load lose nothing, and what they leave is what was there."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from e2e_lab import Moving, assert_unharmed

from mycoproxy.netfilter.paths import Path as Rehoming
from netlab import inventory

NETLAB = str(Path(sys.executable).with_name("netlab"))


def run(*arguments: str, out: Path) -> dict[str, object]:
    result = subprocess.run(
        [NETLAB, "run", *arguments, "--json", "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    figures: dict[str, object] = json.loads(result.stdout)
    return figures


def test_the_demo_moves_redis_there_and_back(lab_name: str, tmp_path: Path) -> None:
    figures = run("demo", "--name", lab_name, out=tmp_path)
    assert figures["ok"] is True
    assert figures["moves"] == 2
    assert figures["connections_moved"] == 100
    assert figures["rehomed"] == {"rebind": 50, "translate": 50, "admit": 50}
    for nothing in ("connections_lost", "bytes_wrong", "resets", "capture_drops", "server_fins"):
        assert figures[nothing] == 0, nothing
    assert figures["leftovers"] == []
    assert int(str(figures["bytes_checked"])) > 100_000
    phases = figures["phases_ms"]
    assert isinstance(phases, dict)
    assert list(phases) == ["freeze", "dump", "send", "restore", "handover", "resume"]
    assert (tmp_path / "moves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "report.json").read_text())["ok"] is True


def test_streams_in_flight_arrive_whole_and_an_upload_is_acknowledged_in_the_freeze(
    lab_name: str, tmp_path: Path
) -> None:
    figures = run("streams", "--name", lab_name, "--no-plot", out=tmp_path)
    assert figures["ok"] is True
    clients = figures["clients"]
    assert isinstance(clients, list)
    assert {client["name"] for client in clients} == {
        "download-service",
        "upload-service",
        "download-direct",
        "upload-direct",
    }
    assert all(client["bytes_checked"] >= 48 << 20 for client in clients)
    uploads = figures["uploads_in_freezes"]
    assert isinstance(uploads, list)
    assert len(uploads) == 4
    for upload in uploads:
        # What the client sent during the freeze was acknowledged during the freeze, all of it but
        # what was on its way when the handover began, or until the window was full. One that waits
        # for redis to answer its last value sends nothing.
        on_its_way = upload["sent"] - upload["acknowledged"]
        assert upload["window_full"] or on_its_way < 1 << 20, upload
    assert any(upload["acknowledged"] > 0 for upload in uploads), uploads


def test_five_moves_in_a_row_keep_every_connection(moving: Moving) -> None:
    clients = moving.checkers()
    for node in ("beta", "alpha", "beta", "alpha", "beta"):
        before = [moving.requests(client) for client in clients]
        report = moving.move(node)
        assert report.connections == 15
        assert report.warnings == []
        moving.wait_until(
            lambda before=before: all(  # type: ignore[misc]
                moving.requests(client) > seen for client, seen in zip(clients, before, strict=True)
            ),
            "every client gets answers from the new place",
        )
    assert moving.lab.pod("redis").node == "beta"
    assert_unharmed(*(client.stop() for client in clients))


def test_each_path_is_rehomed_by_the_node_that_can(moving: Moving) -> None:
    moving.checker("client", moving.service, 2)
    moving.checker("neighbour", moving.pod.addresses[0], 3)
    report = moving.move("beta")
    done = [(one.peer, one.path) for one in report.rehomed]
    assert done.count(("router", Rehoming.REBIND)) == 2
    assert done.count(("neighbour", Rehoming.TRANSLATE)) == 3
    assert done.count(("router", Rehoming.ADMIT)) == 3
    assert len(done) == 8


def test_a_connection_that_is_opened_after_the_move_reaches_the_new_place(moving: Moving) -> None:
    moving.move("beta")
    client = moving.checker("client", moving.service, 2)
    moving.wait_until(lambda: moving.requests(client) > 10, "answers through the Service")
    assert_unharmed(client.stop())


def run_with_a_signal(step: str, number: signal.Signals, name: str, out: Path) -> tuple[int, str]:
    """The demo, which sends itself a signal as a step of its first move begins."""
    program = (
        "import os, sys\n"
        "from migrate.machine.mover import Mover\n"
        "perform = Mover._perform\n"
        "def hit(self, action):\n"
        f"    if action.value == {step!r}: os.kill(os.getpid(), {int(number)})\n"
        "    return perform(self, action)\n"
        "Mover._perform = hit\n"
        "from netlab.cli import main\n"
        "main()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, "run", "demo", "--name", name, "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    return result.returncode, result.stderr


@pytest.mark.parametrize("step", ["dump", "hand over the connections", "clean up"])
def test_an_interrupted_run_leaves_nothing_behind(lab_name: str, tmp_path: Path, step: str) -> None:
    """SIGINT in the middle of a move: before its commit it is undone, after it finished."""
    status, said = run_with_a_signal(step, signal.SIGINT, lab_name, tmp_path)
    assert status == 1, said[-3000:]
    assert "interrupted" in said
    assert "Traceback" not in said
    assert inventory.leftovers(lab_name) == []


@pytest.mark.parametrize("step", ["dump", "let CRIU go on", "remove the source silently"])
def test_what_a_killed_run_left_is_found_and_removed(
    lab_name: str, tmp_path: Path, step: str
) -> None:
    """SIGKILL with the source frozen, runc and CRIU at their gates, sockets in repair mode."""
    status, _ = run_with_a_signal(step, signal.SIGKILL, lab_name, tmp_path)
    assert status == -signal.SIGKILL
    assert inventory.leftovers(lab_name)
    subprocess.run([NETLAB, "down", lab_name], check=True, timeout=60, capture_output=True)
    assert inventory.leftovers(lab_name) == []


def test_an_interruption_after_the_commit_does_not_cost_the_workload(moving: Moving) -> None:
    client = moving.checker("client", moving.service)

    def interrupt(step: str) -> None:
        if step == "clean up":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        moving.move("beta", interrupt)
    assert moving.lab.pod("redis").node == "beta"
    assert moving.lab.pod("redis").running
    before = moving.requests(client)
    moving.wait_until(lambda: moving.requests(client) > before + 20, "the client goes on")
    assert_unharmed(client.stop())
