"""``mycoproxy check`` on the real machine: it answers, leaves nothing behind, and keeps out of
the way of what is there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mycoproxy.check import check_machine
from mycoproxy.check.criu import find_criu
from mycoproxy.check.mounts import parse_mounts
from mycoproxy.check.throwaway import in_throwaway_namespace

pytestmark = pytest.mark.root

# The modules are read as root: a virtual environment may lie where nobody else may look.
AS_NOBODY = """
import json
import os
from mycoproxy.check import check_machine
check_machine()
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
print(json.dumps(check_machine().as_dict()))
"""


def test_everything_that_tests_and_demo_need_is_there() -> None:
    report = check_machine()
    assert report.ok, [(item.name, item.found, item.fix) for item in report.missing]


def test_nothing_is_left_behind() -> None:
    def cgroups() -> set[Path]:
        mounts = parse_mounts(Path("/proc/self/mountinfo").read_text(encoding="latin-1"))
        points = [mount.point for mount in mounts if mount.kind.startswith("cgroup")]
        return {path for point in points for path in point.glob(f"mycoproxy-check-{os.getpid()}")}

    def own_children() -> str:
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        return children.read_text(encoding="ascii") if children.exists() else ""

    check_machine()  # what is made once stays: CRIU's run directory, imported modules
    children = own_children()  # of tests that ran before
    descriptors = sorted(Path("/proc/self/fd").iterdir())
    tasks = len(list(Path("/proc/self/task").iterdir()))
    check_machine()
    assert cgroups() == set()
    assert sorted(Path("/proc/self/fd").iterdir()) == descriptors
    assert len(list(Path("/proc/self/task").iterdir())) <= tasks
    assert own_children() == children


def test_probes_run_in_another_network_namespace_than_the_callers() -> None:
    ours = Path("/proc/self/ns/net").readlink()
    theirs = in_throwaway_namespace(lambda: Path("/proc/thread-self/ns/net").readlink())
    assert theirs != ours
    assert Path("/proc/self/ns/net").readlink() == ours


def test_command_prints_one_json_object_and_exits_0() -> None:
    command = Path(sys.executable).with_name("mycoproxy")
    result = subprocess.run(
        [command, "check", "--json"], capture_output=True, text=True, timeout=60, check=False
    )
    printed = json.loads(result.stdout)
    assert result.returncode == (0 if printed["ok"] else 1)
    assert {tuple(item) for item in printed["items"]} == {("name", "ok", "found", "needed", "fix")}


def test_without_root_what_cannot_be_tested_says_run_as_root() -> None:
    result = subprocess.run(
        [sys.executable, "-c", AS_NOBODY], capture_output=True, text=True, timeout=60, check=True
    )
    printed = json.loads(result.stdout)
    items = {item["name"]: item for item in printed["items"]}
    assert not printed["ok"]
    assert items["root"]["fix"] == "run as root"
    for name in ("TCP_REPAIR", "nftables", "conntrack", "cgroups"):
        assert (items[name]["ok"], items[name]["fix"]) == (False, "run as root")
    assert items["kernel"]["ok"]


READ_LIMITS = """
import ctypes, json, os, platform, resource, sys
number = {"x86_64": 302, "aarch64": 261}[platform.machine()]  # prlimit64
libc = ctypes.CDLL(None, use_errno=True)
pid = int(sys.argv[1])
read = []
for limit in range(16):
    pair = (ctypes.c_uint64 * 2)()
    status = libc.syscall(*map(ctypes.c_long, (number, pid, limit, 0)), ctypes.byref(pair))
    read.append([status, *pair])
denied = libc.syscall(
    *map(ctypes.c_long, (number, pid, 0)), (ctypes.c_uint64 * 2)(1, 1), ctypes.c_long(0)
)
print(json.dumps({"read": read, "set": [denied, ctypes.get_errno()]}))
"""


def test_rlimit_fallback_reads_what_the_task_itself_sees() -> None:
    library = find_criu().preload
    if library is None:
        pytest.skip("CAP_SYS_RESOURCE is there: the fallback is neither built nor used")
    own = (
        "import resource,sys; print([list(resource.getrlimit(n)) for n in range(16)], flush=True);"
        "sys.stdin.read()"
    )
    task = subprocess.Popen(
        ["/usr/bin/python3", "-c", own],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        user=65534,
        group=65534,
        extra_groups=[],
    )
    with task:
        assert task.stdout is not None
        seen = json.loads(task.stdout.readline())
        answer = subprocess.run(
            [sys.executable, "-c", READ_LIMITS, str(task.pid)],
            env={"LD_PRELOAD": str(library)},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        task.communicate(timeout=10)
    printed = json.loads(answer.stdout)
    assert printed["read"] == [[0, *(value % 2**64 for value in pair)] for pair in seen]
    assert printed["set"] == [-1, 1], "only reading is answered, setting stays refused (EPERM)"
