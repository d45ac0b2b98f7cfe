"""The preflight checks that need no container: what a dump would refuse, room, connections."""

import ctypes
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Link, Network

from migrate.machine import preflight
from mycoproxy.check.report import Probe, UnmetError
from mycoproxy.errors import RefusedError
from mycoproxy.sockets import Task

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

DEADLINE = 10.0

# System call numbers (asm/unistd_64.h; asm-generic/unistd.h). io_uring's is the same everywhere.
IO_URING_SETUP = 425
USERFAULTFD = {"x86_64": 323, "aarch64": 282}.get(platform.machine())
LANDLOCK_CREATE_RULESET = 444

#: Makes a descriptor by a system call, says how that went, and keeps it until its input ends.
HOLDING = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
number, size = int(sys.argv[1]), int(sys.argv[3])
buffer = ctypes.create_string_buffer(max(size, 1))
if size:  # landlock: one right is handled
    buffer[0] = 1
argument = ctypes.byref(buffer) if sys.argv[2] == "buffer" else ctypes.c_long(int(sys.argv[2]))
more = [ctypes.c_long(size), ctypes.c_long(0)] if size else [ctypes.byref(buffer)]
if number == 425:  # io_uring_setup(entries, struct io_uring_params *)
    more = [ctypes.byref(ctypes.create_string_buffer(120))]
fd = libc.syscall(ctypes.c_long(number), argument, *more)
print(fd if fd >= 0 else -ctypes.get_errno(), flush=True)
sys.stdin.read()
"""


@contextmanager
def task(*command: str) -> Iterator[tuple[Task, subprocess.Popen[str]]]:
    """A child process, as the preflight sees a container's task."""
    process = subprocess.Popen(
        [sys.executable, "-ISE", "-c", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Task(process.pid, 7), process
    finally:
        process.kill()
        process.communicate(timeout=DEADLINE)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE:g} s: {what}"
        time.sleep(0.002)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def held(number: int, argument: str, size: int, what: str) -> str:
    """The refusal of a task that holds the descriptor which this system call makes."""
    with task(HOLDING, str(number), argument, str(size)) as (seen, process):
        assert process.stdout is not None
        outcome = int(process.stdout.readline())
        if outcome < 0:
            pytest.skip(f"this kernel gives us no {what}: {os.strerror(-outcome)}")
        with pytest.raises(RefusedError) as refused:
            preflight._check_task(seen)
    return str(refused.value)


def test_a_task_that_runs_or_sleeps_is_fine() -> None:
    with task("import sys; print(1, flush=True); sys.stdin.read()") as (seen, process):
        assert process.stdout is not None
        process.stdout.readline()
        preflight._check_task(seen)


def test_a_stopped_task_is_refused_by_its_pid_in_the_container() -> None:
    with task("import sys; sys.stdin.read()") as (seen, process):
        process.send_signal(signal.SIGSTOP)
        until(lambda: state_of(process.pid) == "T", "the task is stopped")
        with pytest.raises(RefusedError, match="task 7 of the container is stopped") as refused:
            preflight._check_task(seen)
    assert refused.value.exit_status == 3


def test_a_task_with_an_io_uring_is_refused() -> None:
    assert "holds an io_uring" in held(IO_URING_SETUP, "4", 0, "io_uring")


def test_a_task_with_a_userfaultfd_is_refused() -> None:
    if USERFAULTFD is None:
        pytest.skip(f"no number for userfaultfd(2) on {platform.machine()} in this test")
    assert "holds a userfaultfd" in held(USERFAULTFD, "1", 0, "userfaultfd")


def test_a_task_with_a_landlock_ruleset_is_refused() -> None:
    refusal = held(LANDLOCK_CREATE_RULESET, "buffer", 8, "landlock")
    assert "holds a landlock ruleset" in refusal


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    """A directory on a tmpfs of this machine."""
    for root in (Path("/dev/shm"), Path("/run"), Path("/tmp")):  # noqa: S108
        if root.is_dir() and preflight._filesystem(root) == 0x01021994:
            directory = root / f"mycoproxy-test-preflight-{os.getpid()}"
            directory.mkdir()
            try:
                yield directory
            finally:
                shutil.rmtree(directory)
            return
    pytest.skip("no tmpfs at /dev/shm, /run or /tmp")


def test_a_tmpfs_with_room_is_fine(tmpfs: Path) -> None:
    preflight.check_space({tmpfs: 0})


def test_too_little_room_is_refused_with_both_numbers(tmpfs: Path) -> None:
    memory = shutil.disk_usage(tmpfs).total
    with pytest.raises(RefusedError, match=r"has \d+ MiB free; the images need \d+ MiB"):
        preflight.check_space({tmpfs: memory})


def test_directories_on_one_file_system_share_its_room(tmpfs: Path) -> None:
    one, other = tmpfs / "one", tmpfs / "other"
    one.mkdir()
    other.mkdir()
    try:
        most = shutil.disk_usage(tmpfs).free // 10 * 6
        preflight.check_space({one: most})
        with pytest.raises(RefusedError, match="MiB free"):
            preflight.check_space({one: most, other: most})
    finally:
        one.rmdir()
        other.rmdir()


def test_a_directory_on_no_tmpfs_is_refused() -> None:
    with pytest.raises(RefusedError, match="/proc is not on a tmpfs"):
        preflight.check_space({Path("/proc"): 0})


def test_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"no directory .*/nowhere"):
        preflight.check_space({tmp_path / "nowhere": 0})


def test_a_file_system_s_kind_is_the_one_that_the_kernel_tells() -> None:
    assert preflight._filesystem(Path("/proc")) == 0x9FA0  # PROC_SUPER_MAGIC
    with pytest.raises(OSError, match="statfs"):
        preflight._filesystem(Path("/proc/nowhere"))
    assert ctypes.sizeof(ctypes.c_long) == 8, "struct statfs begins with a long"


def test_connections_and_listeners_are_fine(network: Network) -> None:
    """Those of the workload with itself too."""
    node = network.node("pod")
    with (
        node.call(socket.create_server, ("127.0.0.1", 0)) as server,
        node.call(socket.create_connection, server.getsockname()),
        server.accept()[0],
    ):
        preflight.check_sockets([Task(os.getpid(), os.getpid())], node.worker)


def test_a_multipath_connection_is_refused_by_name(network: Network) -> None:
    node = network.node("pod")
    with (
        node.call(socket.socket, socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP) as sock,
        pytest.raises(RefusedError, match=f"{sock.fileno()}.* is a MPTCP socket"),
    ):
        preflight.check_sockets([Task(os.getpid(), os.getpid())], node.worker)


def test_addresses_are_those_that_others_can_reach(netns_pair: Link) -> None:
    assert netns_pair.right.call(preflight._addresses) == {
        netns_pair.right_v4,
        netns_pair.right_v6,
    }


def test_a_machine_that_lacks_something_is_refused_with_what_to_do_about_it() -> None:
    def lacking() -> str:
        raise UnmetError("runc 1.0", "install runc 1.1")

    probes = [
        Probe("kernel", "Linux 5.15", fix="upgrade", ask=lambda: "Linux 6.18"),
        Probe("runc", "runc 1.1", fix="install runc 1.1", ask=lacking),
    ]
    with pytest.raises(RefusedError, match=r"lacks runc: runc 1\.1 is needed, found runc 1\.0"):
        preflight.check_machine(probes)
