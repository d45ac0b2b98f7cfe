"""What must be true before a move is begun. Nothing is changed here.

Every check raises ``RefusedError`` with one line: what was wanted, what was found, what to do.
"""

import ctypes
import ipaddress
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute

from migrate.machine.plan import MovePlan
from migrate.runtime.runc import Container, Runc
from mycoproxy.addresses import wire_address
from mycoproxy.check.criu import CriuBinary, find_criu
from mycoproxy.errors import RefusedError
from mycoproxy.namespaces import NamespaceWorker
from mycoproxy.sockets import Task, addresses_in_use, tasks_of

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TMPFS_MAGIC = 0x01021994  # include/uapi/linux/magic.h
_ESTABLISHED = 1  # include/net/tcp_states.h
_IMAGE_ROOM = 64 << 20  # bytes, for everything that is not memory

# What CRIU refuses to dump, by what /proc/PID/fd calls it.
_UNDUMPABLE = {
    "anon_inode:[io_uring]": "an io_uring",
    "anon_inode:[userfaultfd]": "a userfaultfd",
    "anon_inode:[landlock-ruleset]": "a landlock ruleset",
    "anon_inode:[perf_event]": "a perf event",
}


@dataclass(frozen=True, slots=True)
class Checked:
    """What the preflight learnt."""

    criu: CriuBinary
    container: Container
    tasks: tuple[Task, ...]
    memory_bytes: int


def check_machine() -> CriuBinary:
    """Root, runc and CRIU. Raises ``RefusedError``."""
    if os.geteuid() != 0:
        raise RefusedError("moving a container needs root; run this as root")
    if shutil.which("runc") is None:
        raise RefusedError("no runc on PATH; runc 1.1 or later is needed (make setup installs it)")
    return find_criu()


def check_source(plan: MovePlan) -> tuple[Container, tuple[Task, ...], int]:
    """The container runs, and holds nothing that a dump would refuse. Raises ``RefusedError``.

    Returns it, its tasks, and the bytes of memory they have resident.
    """
    side = plan.source
    container = Runc(side.runc_root).state(side.container_id)
    if container.status != "running":
        raise RefusedError(
            f"container {side.container_id} on {side.node} is {container.status}; "
            "only a running container can be moved"
        )
    tasks = tasks_of(container.pid)
    for task in tasks:
        _check_task(task)
    return container, tasks, sum(_resident(task.pid) for task in tasks)


def check_connections(source_pod: NamespaceWorker) -> None:
    """No connection has both its ends inside the workload. Raises ``RefusedError``."""
    own = source_pod.call(_addresses)
    for used in source_pod.call(addresses_in_use):
        if used.remote is None or used.state != _ESTABLISHED:
            continue
        remote = wire_address(used.remote.address)
        if remote in own or ipaddress.ip_address(remote).is_loopback:
            raise RefusedError(
                f"connection {used.local} -> {used.remote} has both ends inside the workload; "
                "such pairs cannot be moved yet"
            )


def check_target(plan: MovePlan, source_pod: NamespaceWorker, target_pod: NamespaceWorker) -> None:
    """The sandbox is there with the new addresses, and empty. Raises ``RefusedError``."""
    side = plan.target
    if not (side.bundle / "config.json").is_file():
        raise RefusedError(f"no OCI bundle for {side.container_id} at {side.bundle} on {side.node}")
    if _exists(side.runc_root, side.container_id):
        raise RefusedError(f"container {side.container_id} exists already on {side.node}")
    if source_pod.call(_own_namespace) == target_pod.call(_own_namespace):
        raise RefusedError("source and target have the same network namespace: nowhere to move to")
    moved = plan.address_map()
    here, there = source_pod.call(_addresses), target_pod.call(_addresses)
    for old, new in moved.items():
        if old not in here:
            raise RefusedError(f"{old} is not an address of {plan.source.container_id}'s namespace")
        if new not in there:
            raise RefusedError(
                f"{new} is not an address of the target's namespace {side.pod_netns}"
            )
    kept = sorted(here - moved.keys() - there)
    if kept:
        raise RefusedError(f"the target has neither {kept[0]} nor a new address in its place")
    used = target_pod.call(addresses_in_use)
    if used:
        raise RefusedError(
            f"address taken: {used[0].local} is in use already in the target's namespace "
            f"{side.pod_netns}, which has to be empty"
        )


def check_space(directory: Path, memory_bytes: int) -> None:
    """``directory`` is on a tmpfs with room for the images. Raises ``RefusedError``."""
    if not directory.is_dir():
        raise RefusedError(f"no directory {directory} for the images")
    if _filesystem(directory) != _TMPFS_MAGIC:
        raise RefusedError(f"{directory} is not on a tmpfs; images on a disk make the freeze long")
    needed = memory_bytes + _IMAGE_ROOM
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise RefusedError(
            f"{directory} has {free >> 20} MiB free; the images need {needed >> 20} MiB"
        )


def _check_task(task: Task) -> None:
    status = Path(f"/proc/{task.pid}/stat").read_text().rpartition(")")[2].split()[0]
    if status in ("T", "t"):
        raise RefusedError(
            f"task {task.inner_pid} of the container is stopped or traced; a dump would hang"
        )
    for name in _descriptors(task.pid):
        if name in _UNDUMPABLE:
            raise RefusedError(
                f"task {task.inner_pid} of the container holds {_UNDUMPABLE[name]}, "
                "which CRIU cannot dump"
            )


def _descriptors(pid: int) -> Sequence[str]:
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(link.readlink()))
        except FileNotFoundError:
            continue
    return found


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


def _exists(root: Path, container_id: str) -> bool:
    try:
        Runc(root).state(container_id)
    except RefusedError:
        return False
    return True


def _own_namespace() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino  # noqa: PTH116


def _addresses() -> set[str]:
    """The calling namespace's addresses, without loopback and link-local ones."""
    with IPRoute() as route:
        return {
            wire_address(str(attributes.get("IFA_LOCAL") or attributes["IFA_ADDRESS"]))
            for message in route.get_addr()
            if message["scope"] == 0  # RT_SCOPE_UNIVERSE
            for attributes in [dict(message["attrs"])]
        }


def _filesystem(path: Path) -> int:
    """``f_type`` of statfs(2), which ``os.statvfs`` does not tell."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = (ctypes.c_long * 32)()
    if libc.statfs(str(path).encode(), ctypes.byref(buffer)) != 0:
        raise OSError(ctypes.get_errno(), f"statfs {path}")
    return int(buffer[0])
