"""A move that fails before its commit: the source goes on, and no client notices."""

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from e2e_lab import Moving, assert_unharmed
from pyroute2 import IPRoute

from migrate.machine.machine import Action
from migrate.machine.mover import MoveError
from migrate.machine.plan import Deadlines
from migrate.runtime.cgroup import Cgroup
from mycoproxy.handover import HandoverError, LocalTarget
from netlab.capture import Capture, Servers, find, read_pcap

# CRIU's own fault injection (criu/include/fault-injection.h), which every build of it has.
FI_DUMP_EARLY = 1  # CRIU is killed as the dump begins
FI_DUMP_PAGES = 3  # CRIU is killed with its parasite in the tasks
FI_POST_RESTORE = 6  # CRIU fails with everything restored, just before it asks us


class Watched:
    """Clients and captures around a move that is to fail."""

    def __init__(self, moving: Moving) -> None:
        self.moving = moving
        self.captures = [
            Capture(
                functools.partial(moving.lab.popen, node),
                "eth0",
                moving.directory / f"{node}.pcap",
            )
            for node in ("client", "neighbour")
        ]
        self.clients = moving.checkers()

    def assert_nobody_noticed(self) -> None:
        """Every client goes on working on the source, and the wire saw no reset."""
        moving = self.moving
        assert moving.lab.pod("redis").node == "alpha"
        assert not Cgroup(moving.lab.pod("redis").init_pid).frozen()
        assert list(moving.lab.images.iterdir()) == []
        before = [moving.requests(client) for client in self.clients]
        moving.wait_until(
            lambda: all(
                moving.requests(client) > seen + 20
                for client, seen in zip(self.clients, before, strict=True)
            ),
            "the clients go on",
        )
        assert_unharmed(*(client.stop() for client in self.clients))
        servers = Servers(
            paths={
                "service": frozenset({moving.service}),
                "direct": frozenset(moving.pod.addresses),
            },
            ports=frozenset({6379}),
        )
        for capture in self.captures:
            capture.stop()
            assert find(read_pcap(capture.path, capture.clock), servers).resets == ()


@pytest.fixture
def watched(moving: Moving) -> Iterator[Watched]:
    made = Watched(moving)
    yield made
    for capture in made.captures:
        capture.kill()


@pytest.mark.parametrize(
    ("fault", "step"),
    [
        pytest.param(FI_DUMP_EARLY, "dump", id="dump-dies-early"),
        pytest.param(FI_DUMP_PAGES, "dump", id="dump-dies-with-its-parasite-in-the-tasks"),
        pytest.param(FI_POST_RESTORE, "restore", id="restore-fails-at-its-end"),
    ],
)
def test_when_criu_fails_the_source_goes_on(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, fault: int, step: str
) -> None:
    monkeypatch.setenv("CRIU_FAULT", str(fault))
    with pytest.raises(MoveError, match=f"{step} failed") as failure:
        watched.moving.move("beta")
    assert "rolled back, the source goes on" in str(failure.value)
    assert_log_is_where_the_error_says(str(failure.value))
    watched.assert_nobody_noticed()
    # And nothing of the failed attempt is in the way of the next one.
    monkeypatch.delenv("CRIU_FAULT")
    assert watched.moving.move("beta").target == "beta"


def images(moving: Moving) -> Path:
    (directory,) = moving.lab.images.glob("*-target")
    return directory


def damage_an_image(moving: Moving) -> None:
    (images(moving) / "core-1.img").write_bytes(b"no image at all")


def stop_the_copy(moving: Moving) -> None:
    """CRIU hangs, as it does on some damaged images."""
    for pid in copy_pids(moving):
        os.kill(pid, signal.SIGSTOP)


def copy_pids(moving: Moving) -> list[int]:
    """CRIU and the copy's tasks: what is in the target's cgroup."""
    name = f"netlab/{moving.lab.name}/beta/redis/cgroup.procs"
    for mount in (Path("/sys/fs/cgroup/freezer"), Path("/sys/fs/cgroup")):
        if (mount / name).exists():
            return list(map(int, (mount / name).read_text().split()))
    return []


def kill_the_copy(moving: Moving) -> None:
    """What a target node's death does to the copy and to CRIU."""
    pids = copy_pids(moving)
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def cut_the_link(moving: Moving) -> None:
    def down() -> None:
        with IPRoute() as route:
            (index,) = route.link_lookup(ifname="beta")
            route.link("set", index=index, state="down")

    moving.lab.node("router").worker.call(down)


@pytest.mark.parametrize(
    ("action", "happens"),
    [
        pytest.param(Action.DUMP, cut_the_link, id="link-during-the-dump"),
        pytest.param(Action.SEND, cut_the_link, id="link-during-the-sending"),
        pytest.param(Action.RESTORE, damage_an_image, id="damaged-image"),
        pytest.param(Action.RESTORE, stop_the_copy, id="criu-hangs"),
        pytest.param(Action.RESTORE, kill_the_copy, id="copy-before-the-restore"),
        pytest.param(Action.HAND_OVER, kill_the_copy, id="copy-before-the-handover"),
        pytest.param(Action.RESUME, kill_the_copy, id="copy-after-the-commit"),
    ],
)
def test_when_the_target_dies_the_source_goes_on(
    watched: Watched, action: Action, happens: Callable[[Moving], None]
) -> None:
    def progress(step: str) -> None:
        if step == action.value:
            happens(watched.moving)

    with pytest.raises(MoveError, match="rolled back, the source goes on") as failure:
        watched.moving.move("beta", progress, Deadlines(send=2, restore=2, resume=2, remove=4))
    assert str(watched.moving.logs) in str(failure.value)
    watched.assert_nobody_noticed()


def test_when_a_connection_cannot_be_established_all_are_given_back(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails with all but one connection established: the deepest rollback there is."""
    establish = LocalTarget._establish

    def fail_at_the_end(self: LocalTarget, *arguments: object) -> None:
        establish(self, *arguments)  # type: ignore[arg-type]
        raise HandoverError("injected after the last connection was established")

    monkeypatch.setattr(LocalTarget, "_establish", fail_at_the_end)
    with pytest.raises(MoveError, match="injected after the last"):
        watched.moving.move("beta")
    watched.assert_nobody_noticed()
    monkeypatch.undo()
    assert watched.moving.move("beta").target == "beta"


def test_the_command_says_one_line_and_ends_with_status_1(
    moving: Moving,
) -> None:
    command = [str(Path(sys.executable).with_name("netlab")), "move", moving.lab.name]
    result = subprocess.run(
        [*command, "redis", "beta"],
        env={**os.environ, "CRIU_FAULT": str(FI_DUMP_EARLY)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("netlab: dump failed:")
    assert "Traceback" not in result.stderr
    result = subprocess.run(
        [*command, "redis", "beta", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(result.stdout)["target"] == "beta"


def assert_log_is_where_the_error_says(message: str) -> None:
    (path,) = {word.strip(";,") for word in message.split() if word.strip(";,").endswith(".log")}
    assert Path(path).is_file(), path
