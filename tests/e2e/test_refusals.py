"""Bad input: one clear line, exit status 2 or 3, and nothing was changed."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from e2e_lab import Moving
from pyroute2 import IPRoute

from migrate.machine.preflight import check_machine
from migrate.machine.report import MoveReport
from mycoproxy.check.report import Probe, UnmetError
from mycoproxy.errors import RefusedError
from mycoproxy.namespaces import NamespaceWorker
from mycoproxy.netfilter.nft import Nft
from netlab.moving import plan_move
from netlab.pods import Pod

BIN = Path(sys.executable).parent

Plan = dict[str, dict[str, object]]


class Planned:
    """A plan for a move to beta, with the sandbox that it needs."""

    def __init__(self, moving: Moving) -> None:
        self.moving = moving
        self.source = moving.lab.pod("redis")
        self.target: Pod = moving.lab.make_sandbox("redis", "beta")
        self.plan: Plan = plan_move(moving.lab, self.source, self.target).model_dump(mode="json")

    def move(self, **environment: str) -> tuple[int, str]:
        """The command's exit status and what it said on standard error."""
        path = self.moving.directory / "plan.yaml"
        path.write_text(yaml.safe_dump(self.plan))
        result = subprocess.run(
            [str(BIN / "mycomigrate"), "move", str(path), "--quiet"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return result.returncode, result.stderr

    def assert_nothing_changed(self) -> None:
        assert self.source.running
        assert list(self.moving.lab.images.iterdir()) == []
        namespaces = [self.source.netns, self.target.netns]
        namespaces += [node.netns for node in self.moving.lab.nodes]
        for netns in namespaces:
            with NamespaceWorker(netns) as worker:
                assert "mycoproxy" not in worker.call(_ruleset)


def _ruleset() -> str:
    with Nft() as nft:
        return nft.run("list ruleset")


@pytest.fixture
def planned(moving: Moving) -> Planned:
    return Planned(moving)


def assert_refused(
    planned: Planned, outcome: tuple[int, str], *words: str, status: int = 3
) -> None:
    code, said = outcome
    assert code == status, said
    lines = said.splitlines()
    assert len(lines) == 1, said
    assert lines[0].startswith("mycomigrate: ")
    for word in words:
        assert word in lines[0]
    planned.assert_nothing_changed()


def test_a_container_that_is_not_there(planned: Planned) -> None:
    planned.plan["source"]["container_id"] = "nobody"
    assert_refused(planned, planned.move(), "no container 'nobody'")


def test_a_target_that_cannot_be_reached(planned: Planned) -> None:
    def down() -> None:
        with IPRoute() as route:
            (index,) = route.link_lookup(ifname="beta")
            route.link("set", index=index, state="down")

    planned.moving.lab.node("router").worker.call(down)
    assert_refused(planned, planned.move(), "target node unreachable", "192.0.2.18")


def test_an_address_that_is_taken(planned: Planned) -> None:
    with NamespaceWorker(planned.target.netns) as worker:
        address = (planned.target.addresses[0], 6379)
        with worker.call(socket.create_server, address):
            assert_refused(planned, planned.move(), "address taken", f"{address[0]}:6379")


def test_an_address_that_the_target_does_not_have(planned: Planned) -> None:
    old = planned.source.addresses[0]
    planned.plan["addresses"][old] = "10.244.2.99"
    assert_refused(planned, planned.move(), "10.244.2.99 is not an address of the target")


def test_a_network_namespace_that_is_not_there(planned: Planned) -> None:
    planned.plan["target"]["pod_netns"] = "/run/netns/no-such"
    assert_refused(planned, planned.move(), "no network namespace at /run/netns/no-such")


def test_a_criu_that_is_too_old(planned: Planned, tmp_path: Path) -> None:
    old = tmp_path / "criu"
    old.write_text("#!/bin/sh\necho Version: 3.17\n")
    old.chmod(0o755)
    outcome = planned.move(MYCOPROXY_CRIU=str(old))
    assert_refused(planned, outcome, "CRIU 3.17", "4.2 or later is needed", "make setup")


def test_a_frozen_container(planned: Planned) -> None:
    root, name = str(planned.source.runc_root), planned.source.container_id
    subprocess.run(["runc", "--root", root, "pause", name], check=True)
    assert_refused(planned, planned.move(), "is paused", "only a running container")


def test_a_plan_with_a_field_that_does_not_exist(planned: Planned) -> None:
    planned.plan["source"]["colour"] = "green"
    assert_refused(planned, planned.move(), "plan.yaml", "source.colour", status=2)


def test_a_user_who_is_not_root(planned: Planned) -> None:
    """In a child: a user that is not root may not even look into this test's directories."""
    status, said = _as_nobody()
    assert status == RefusedError.exit_status
    assert said == "moving a container needs root; run this as root"
    planned.assert_nothing_changed()


def _as_nobody() -> tuple[int, str]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgid(65534)
        os.setuid(65534)
        try:
            check_machine()
        except RefusedError as error:
            os.write(writing, str(error).encode())
            os._exit(error.exit_status)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def test_a_kernel_without_a_feature_is_refused_by_name() -> None:
    def ask() -> str:
        raise UnmetError("the kernel says ENOPROTOOPT")

    probe = Probe("TCP_REPAIR", "repair a live connection", "use another kernel", ask)
    with pytest.raises(RefusedError, match="lacks TCP_REPAIR: repair a live connection is needed"):
        check_machine([probe])


def test_a_refused_plan_can_be_moved_once_it_is_right(planned: Planned) -> None:
    right = planned.plan["source"]["container_id"]
    planned.plan["source"]["container_id"] = "nobody"
    assert planned.move()[0] == 3
    planned.plan["source"]["container_id"] = right
    status, said = planned.move()
    assert status == 0, said
    assert planned.target.running


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["move", "nolab", "redis", "beta"], 3),
        (["run", "noscenario"], 2),
        (["up", "notopology"], 2),
        (["run", "demo", "--count", "0"], 2),
    ],
)
def test_names_that_do_not_exist(arguments: list[str], status: int) -> None:
    result = subprocess.run(
        [str(BIN / "netlab"), *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert result.returncode == status, result.stderr
    assert result.stderr.startswith("netlab: ")
    assert "Traceback" not in result.stderr


def test_a_pod_that_is_there_already(moving: Moving) -> None:
    report: MoveReport = moving.move("beta")
    assert report.target == "beta"
    result = subprocess.run(
        [str(BIN / "netlab"), "move", moving.lab.name, "redis", "beta"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr == "netlab: pod redis is on beta already\n"
