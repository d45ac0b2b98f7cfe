"""Real redis pods in real labs, and what is left when things go wrong."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from mycoproxy.errors import MycoError, RefusedError, UsageError
from netlab import images, inventory, syscalls
from netlab.check import check
from netlab.lab import Lab
from netlab.topology import Topology, load

pytestmark = [pytest.mark.root, pytest.mark.timeout(90)]

_numbers = count()

DEMO = load(Path("demo"))
NETLAB = [sys.executable, "-c", "from netlab.cli import main; main()"]


@pytest.fixture
def name() -> Iterator[str]:
    """A lab's name of this test's own; nothing of that lab is there afterwards."""
    lab = f"p{os.getpid()}_{next(_numbers)}"
    yield lab
    inventory.remove(lab)
    assert inventory.leftovers(lab) == []


def netlab(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*NETLAB, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def ping(lab: Lab, node: str, address: str) -> bytes:
    connection = lab.node(node).worker.call(socket.create_connection, (address, 6379), timeout=5)
    with connection:
        connection.sendall(b"PING\r\n")
        return bytes(connection.recv(100))


def wait_until(condition: Callable[[], bool], *, timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "not reached within the deadline"
        time.sleep(0.002)


def with_pod(**changes: object) -> Topology:
    return DEMO.model_copy(update={"pods": (DEMO.pods[0].model_copy(update=changes),)})


def test_redis_answers_through_the_service_and_directly_over_both_ip_versions(name: str) -> None:
    lab = Lab.up(DEMO, name)
    pod = lab.start_pod("redis")
    for address in ("10.96.0.10", "2001:db8:96::10"):
        assert ping(lab, "client", address) == b"+PONG\r\n"
    for address in pod.addresses:
        assert ping(lab, "neighbour", address) == b"+PONG\r\n"
    assert [item for item in check(lab) if not item.ok] == []
    assert lab.pod("redis") == pod
    lab.down()


def test_redis_runs_in_namespaces_of_its_own_as_nobody_special_with_nothing_inherited(
    name: str,
) -> None:
    lab = Lab.up(DEMO, name)
    pod = lab.start_pod("redis")
    proc = Path(f"/proc/{pod.init_pid}")
    for kind in ("pid", "mnt", "uts", "ipc", "net"):
        assert (proc / "ns" / kind).readlink() != Path(f"/proc/self/ns/{kind}").readlink()
    assert (proc / "ns/net").stat().st_ino == pod.netns.stat().st_ino
    status = (proc / "status").read_text()
    assert "\nUid:\t999\t999\t999\t999\n" in status
    assert "\nCapEff:\t0000000000000000\n" in status
    outside = Path("/dev/null").stat().st_dev
    for number in ("0", "1", "2"):
        descriptor = proc / "fd" / number
        assert descriptor.readlink() == Path("/dev/null")
        assert descriptor.stat().st_dev != outside
    kinds = {str(each.readlink()).split(":")[0] for each in (proc / "fd").iterdir()}
    assert kinds == {"/dev/null", "pipe", "anon_inode", "socket"}
    log = pod.data / "redis.log"
    wait_until(lambda: "Ready to accept connections" in log.read_text())
    lab.down()


def test_user_data_size_and_arguments_come_from_the_topology(name: str) -> None:
    lab = Lab.up(with_pod(user=0, data_mb=8, args=("--maxmemory", "1234567")), name)
    pod = lab.start_pod("redis")
    assert "\nUid:\t0\t0\t0\t0\n" in Path(f"/proc/{pod.init_pid}/status").read_text()
    space = os.statvfs(pod.data)
    assert space.f_blocks * space.f_frsize == 8 << 20
    command = Path(f"/proc/{pod.init_pid}/root/proc/1/cmdline")
    assert b"redis-server" in command.read_bytes()
    lab.down()


def test_pod_that_ends_at_once_is_told_and_leaves_nothing_after_down(name: str) -> None:
    lab = Lab.up(with_pod(args=("--no-such-option", "x")), name)
    with pytest.raises(MycoError, match="pod redis ended as soon as it was started"):
        lab.start_pod("redis")
    lab.down()


def test_image_without_its_name_is_refused_before_anything_is_made(name: str) -> None:
    with pytest.raises(UsageError, match="no image 'nonesuch'"):
        Lab.up(with_pod(image="nonesuch"), name)
    assert inventory.leftovers(name) == []


def test_moved_pod_is_where_it_was_recorded_and_its_old_place_can_go(name: str) -> None:
    lab = Lab.up(DEMO, name)
    source = lab.start_pod("redis")
    target = lab.make_sandbox("redis", "beta")
    assert lab.pod("redis") == source
    lab.record_pod(target)
    lab.remove_pod(source)
    assert not source.running
    assert not source.netns.exists()
    with pytest.raises(RefusedError, match="has no container on alpha"):
        _ = source.init_pid
    with Lab.attach(name) as again:
        assert again.pod("redis") == target
    lab.down()


def test_frozen_pod_is_removed_too(name: str) -> None:
    lab = Lab.up(DEMO, name)
    pod = lab.start_pod("redis")
    subprocess.run(
        ["runc", "--root", str(pod.runc_root), "pause", pod.container_id], check=True, timeout=20
    )
    assert pod.running
    handle = os.pidfd_open(pod.init_pid)
    lab.down()
    # A pidfd is readable once its process has ended.
    assert select.select([handle], [], [], 0)[0] == [handle]
    os.close(handle)


def test_everything_of_a_killed_lab_process_is_found_and_removed(name: str) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\n"
        "from netlab.lab import Lab\nfrom netlab.topology import load\n"
        "lab = Lab.up(load(Path('demo')), sys.argv[1])\n"
        "lab.start_pod('redis')\nlab.make_sandbox('redis', 'beta')\n"
        "lab.popen('client', ['sleep', '1000'], stdout=-3)\n"
        "print('ready', flush=True)\ntime.sleep(1000)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, name], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    child.kill()
    child.communicate(timeout=10)
    Path(f"/run/netlab/{name}/state.json").write_text("half a rec")
    yard = Path(f"/run/netlab/{name}/images/.criu.cgyard.XyZ123")
    yard.mkdir()
    syscalls.mount("none", yard, "tmpfs")
    left = inventory.leftovers(name)
    for wanted in (f"namespace nl-{name}-alpha", f"namespace nl-{name}-beta.redis"):
        assert wanted in left
    assert f"mount {yard}" in left
    assert f"directory /run/netlab/{name}" in left
    assert any(each.startswith("process") and each.endswith("redis-server") for each in left)
    assert any(each.startswith("process") and each.endswith("sleep") for each in left)
    assert any(each.startswith("cgroup") and each.endswith("/alpha/redis") for each in left)
    assert netlab("down", name).returncode == 0
    assert inventory.leftovers(name) == []
    assert netlab("down", name).stdout == f"nothing of a lab {name} was there\n"


@pytest.mark.parametrize("stage", ["alpha", "neighbour", "alpha.redis"])
def test_lab_killed_while_it_comes_up_is_removed(name: str, stage: str) -> None:
    child = subprocess.Popen([*NETLAB, "up", "--name", name])
    wait_until(Path(f"/run/netns/nl-{name}-{stage}").exists)
    child.kill()
    child.wait(timeout=10)
    assert netlab("down", name).returncode == 0
    assert inventory.leftovers(name) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["alpha", "alpha.redis"])
def test_interrupted_up_removes_what_it_made(name: str, stage: str, number: int) -> None:
    child = subprocess.Popen([*NETLAB, "up", "--name", name], stdout=subprocess.DEVNULL)
    wait_until(Path(f"/run/netns/nl-{name}-{stage}").exists)
    child.send_signal(number)
    assert child.wait(timeout=30) == 128 + number
    assert inventory.leftovers(name) == []


def test_commands_tell_of_the_lab_and_run_in_it(name: str) -> None:
    assert netlab("up", "demo", "--name", name).returncode == 0
    entry = next(each for each in json.loads(netlab("ps", "--json").stdout) if each["name"] == name)
    assert entry["state"] == "up"
    (pod,) = entry["pods"]
    assert (pod["name"], pod["node"]) == ("redis", "alpha")
    assert Path(f"/proc/{pod['pid']}/ns/net").exists()
    checked = netlab("check", name, "--json")
    assert checked.returncode == 0
    assert json.loads(checked.stdout)["ok"] is True
    addresses = netlab("exec", name, "client", "--", "ip", "-o", "addr").stdout
    assert "198.51.100.2/24" in addresses
    assert "10.244.1.2/24" in netlab("exec", name, "redis", "ip", "-o", "addr").stdout
    assert "pod redis" in netlab("graph", name).stdout
    again = netlab("up", "demo", "--name", name)
    assert again.returncode == 2
    assert again.stderr.startswith(f"netlab: lab '{name}' is up already")
    assert len(again.stderr.splitlines()) == 1
    assert netlab("exec", name, "nowhere", "true").returncode == 2
    assert netlab("exec", name, "client", "no-such-command").returncode == 2
    assert netlab("exec", name, "client", "sh", "-c", "exit 7").returncode == 7
    assert name in json.loads(netlab("down", name, "--json").stdout)
    assert netlab("check", name).returncode == 3


def test_mount_of_run_netns_goes_with_the_last_lab_if_netlab_made_it(name: str) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom netlab import mounts, syscalls\n"
        "from netlab.lab import Lab\nfrom netlab.topology import load\n"
        "mounts.detach(Path('/run/netns'))\n"
        "syscalls.mount('tmpfs', Path('/run'), 'tmpfs')\n"
        "before = mounts.mounted()\n"
        "lab = Lab.up(load(Path('demo')), sys.argv[1])\n"
        "assert any(each.target == Path('/run/netns') for each in mounts.mounted())\n"
        "lab.down()\n"
        "assert [each for each in mounts.mounted() if each not in before] == []\n"
    )
    subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", program, name], check=True, timeout=60
    )


def test_root_file_system_is_built_once_by_whoever_is_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MYCOPROXY_CACHE", str(tmp_path))
    found: list[Path] = []

    def build() -> None:
        found.append(images.root_filesystem(images.image("redis")))

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(found) == 4
    assert list((tmp_path / "rootfs").iterdir()) == [found[0]]
    assert (found[0] / "usr/bin/redis-server").stat().st_mode & 0o777 == 0o755


def test_missing_server_names_the_package() -> None:
    binary = images.Binary("usr/bin/nosuchd", ("/usr/bin/nosuchd",), "nosuch-server", "v")
    image = images.Image("nosuch", (binary,), (), 1, 0, 1)
    with pytest.raises(RefusedError, match="install the Debian package nosuch-server"):
        images.root_filesystem(image)
