"""Labs on the real kernel: they come up, carry packets, and go without a trace."""

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path

import pytest

from mycoproxy.errors import RefusedError, UsageError
from mycoproxy.namespaces import NamespaceWorker
from netlab import inventory, listening
from netlab.check import check
from netlab.lab import Lab
from netlab.pods import Pod
from netlab.topology import Topology, load

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

_numbers = count()

DEMO = load(Path("demo"))
VIRTUAL = ("10.96.0.10", "2001:db8:96::10")
VERSIONS = pytest.mark.parametrize("version", [0, 1], ids=["ipv4", "ipv6"])

Up = Callable[..., Lab]


@pytest.fixture
def up() -> Iterator[Up]:
    """Brings labs up under names of this test's own, and sees to it that they go."""
    labs: list[Lab] = []

    def bring_up(topology: Topology = DEMO) -> Lab:
        labs.append(Lab.up(topology, f"t{os.getpid()}_{next(_numbers)}"))
        return labs[-1]

    yield bring_up
    for lab in labs:
        lab.down()
        assert inventory.leftovers(lab.name) == []


@contextmanager
def server(pod: Pod, answer: bytes) -> Iterator[None]:
    """Something that listens in a pod's sandbox, and greets every connection with ``answer``."""
    families = [socket.AF_INET6 if ":" in each else socket.AF_INET for each in pod.addresses]
    program = (
        "import socket, sys, threading\n"
        "def serve(listener):\n"
        "    held = []\n"
        "    while True:\n"
        "        held.append(listener.accept()[0])\n"
        "        held[-1].sendall(sys.argv[1].encode())\n"
        "for address, family in zip(sys.argv[3::2], sys.argv[4::2]):\n"
        "    listener = socket.create_server((address, int(sys.argv[2])), family=int(family))\n"
        "    threading.Thread(target=serve, args=(listener,)).start()\n"
        "print('ready', flush=True)\n"
    )
    ends = [word for each, f in zip(pod.addresses, families, strict=True) for word in (each, f)]
    with NamespaceWorker(pod.netns) as inside:
        child = inside.call(
            lambda: subprocess.Popen(
                ["python3", "-c", program, answer.decode(), str(pod.port), *map(str, ends)],
                stdout=subprocess.PIPE,
            )
        )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        yield
    finally:
        child.kill()
        child.communicate(timeout=10)


def connect(lab: Lab, node: str, address: str, port: int = 6379) -> socket.socket:
    return lab.node(node).worker.call(socket.create_connection, (address, port), timeout=5)


def greeting(lab: Lab, node: str, address: str) -> bytes:
    with closing(connect(lab, node, address)) as connection:
        return connection.recv(100)


def test_every_link_and_route_answers_and_nothing_is_left_after_down(up: Up) -> None:
    before = inventory.labs()
    lab = up()
    assert [item for item in check(lab) if not item.ok] == []
    assert inventory.leftovers(lab.name)
    removed = lab.down()
    assert f"namespace nl-{lab.name}-alpha" in removed
    assert inventory.leftovers(lab.name) == []
    assert not Path(f"/run/netns/nl-{lab.name}-alpha").exists()
    assert lab.name not in inventory.labs()
    assert set(before) <= {*inventory.labs(), *before}


def test_down_twice_and_down_of_nothing_are_fine(up: Up) -> None:
    lab = up()
    assert lab.down()
    assert lab.down() == []
    assert inventory.remove(f"t{os.getpid()}_never") == []


def test_two_labs_of_one_topology_do_not_see_each_other(up: Up) -> None:
    first, second = up(), up()
    for lab in (first, second):
        pod = lab.make_sandbox("redis", "alpha", [str(a) for a in DEMO.pod("redis").addresses])
        with server(pod, lab.name.encode()):
            assert greeting(lab, "client", VIRTUAL[0]) == lab.name.encode()
    first.down()
    assert inventory.leftovers(first.name) == []
    assert [item for item in check(second) if not item.ok] == []


def test_name_of_a_lab_that_is_up_is_refused_and_the_lab_stays(up: Up) -> None:
    lab = up()
    with pytest.raises(UsageError, match="is up already"):
        Lab.up(DEMO, lab.name)
    assert [item for item in check(lab) if not item.ok] == []


def test_attached_lab_is_the_same_lab(up: Up) -> None:
    lab = up()
    pod = lab.make_sandbox("redis", "beta")
    with Lab.attach(lab.name) as again:
        assert again.topology == lab.topology
        assert again.sandboxes() == [pod]


def test_attaching_to_no_lab_is_refused() -> None:
    with pytest.raises(RefusedError, match="no lab 'nonesuch' is up"):
        Lab.attach("nonesuch")


@VERSIONS
def test_service_leads_from_the_client_to_the_pod(up: Up, version: int) -> None:
    lab = up()
    pod = lab.make_sandbox("redis", "alpha", [str(a) for a in DEMO.pod("redis").addresses])
    with server(pod, b"alpha"), closing(connect(lab, "client", VIRTUAL[version])) as connection:
        assert connection.recv(100) == b"alpha"
        assert connection.getpeername()[0] == VIRTUAL[version]


@VERSIONS
def test_repointed_service_takes_new_connections_and_leaves_old_ones(up: Up, version: int) -> None:
    lab = up()
    old = lab.make_sandbox("redis", "alpha", [str(a) for a in DEMO.pod("redis").addresses])
    new = lab.make_sandbox("redis", "beta")
    with server(old, b"old"), server(new, b"new"):
        with closing(connect(lab, "client", VIRTUAL[version])) as connection:
            assert connection.recv(100) == b"old"
            lab.service("redis").point_to(new.addresses)
            assert greeting(lab, "client", VIRTUAL[version]) == b"new"
            connection.sendall(b"still there")
        assert lab.service("redis").targets == new.addresses


@VERSIONS
def test_service_on_the_clients_own_node_maps_its_own_connections(up: Up, version: int) -> None:
    spec = DEMO.service("redis").model_copy(update={"nodes": ("client",)})
    lab = up(DEMO.model_copy(update={"services": (spec,)}))
    pod = lab.make_sandbox("redis", "alpha", [str(a) for a in DEMO.pod("redis").addresses])
    with server(pod, b"here"):
        assert greeting(lab, "client", VIRTUAL[version]) == b"here"


def test_sandbox_on_another_node_has_another_address_and_can_be_reached(up: Up) -> None:
    lab = up()
    pod = lab.make_sandbox("redis", "beta")
    assert pod.addresses == ("10.244.2.2", "2001:db8:244:2::2")
    assert not pod.running
    with server(pod, b"beta"):
        for address in pod.addresses:
            assert greeting(lab, "neighbour", address) == b"beta"


def test_removed_sandbox_frees_its_place_but_its_address_is_not_given_out_next(up: Up) -> None:
    lab = up()
    first = lab.make_sandbox("redis", "beta")
    lab.remove_pod(first)
    lab.remove_pod(first)
    assert not first.netns.exists()
    assert not first.bundle.exists()
    second = lab.make_sandbox("redis", "beta")
    assert second.addresses == ("10.244.2.3", "2001:db8:244:2::3")


def test_second_sandbox_on_a_node_and_taken_or_foreign_address_are_refused(up: Up) -> None:
    lab = up()
    lab.make_sandbox("redis", "beta")
    with pytest.raises(UsageError, match="has a sandbox on beta already"):
        lab.make_sandbox("redis", "beta")
    with pytest.raises(UsageError, match=r"10\.244\.2\.2 is not of alpha's pod subnets"):
        lab.make_sandbox("redis", "alpha", ["10.244.2.2"])
    with pytest.raises(RefusedError, match="is not started"):
        lab.pod("redis")


def test_child_in_a_node_is_there_and_ends_with_the_lab(up: Up) -> None:
    lab = up()
    child = lab.popen("client", ["sleep", "1000"])
    assert Path(f"/proc/{child.pid}/ns/net").stat().st_ino == lab.node("client").netns.stat().st_ino
    lab.down()
    assert child.poll() is not None


def test_check_tells_what_is_down(up: Up) -> None:
    lab = up()
    subprocess.run(
        ["ip", "-n", lab.node("beta").netns.name, "link", "set", "eth0", "down"], check=True
    )
    failed = {item.name for item in check(lab) if not item.ok}
    assert "beta: eth0" in failed
    assert "router: ping 192.0.2.18 (beta)" in failed
    assert "router: ping 192.0.2.2 (alpha)" not in failed


def test_nobody_listens_in_an_empty_sandbox(up: Up) -> None:
    lab = up()
    pod = lab.make_sandbox("redis", "beta")
    worker = lab.node("client").worker
    reason = worker.call(listening.refusal, pod.addresses[0], pod.port, timeout=1.0)
    assert reason == "Connection refused"
