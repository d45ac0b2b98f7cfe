"""What must be true before a move is begun. Nothing is changed here.

Every check raises ``RefusedError`` with one line: what was wanted, what was found, what to do.
"""

import ctypes
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pyroute2 import IPRoute

from migrate.machine.plan import MovePlan
from migrate.runtime.runc import Container, Runc
from mycoproxy.addresses import wire_address
from mycoproxy.check import PROBES, Probe, examine
from mycoproxy.check.criu import CriuBinary, find_criu
from mycoproxy.errors import RefusedError
from mycoproxy.namespaces import NamespaceWorker
from mycoproxy.sockets import Task, take, tasks_of
from mycoproxy.socktable import addresses_in_use
from mycoproxy.tcp import refusal

_TMPFS_MAGIC = 0x01021994  # include/uapi/linux/magic.h
_IMAGE_ROOM = 64 << 20  # bytes, for what is not memory

# What CRIU refuses to dump, by what /proc/PID/fd calls it.
_UNDUMPABLE = {
    "anon_inode:[io_uring]": "an io_uring",
    "anon_inode:[userfaultfd]": "a userfaultfd",
    "anon_inode:[landlock-ruleset]": "a landlock ruleset",
    "anon_inode:[perf_event]": "a perf event",
}


def check_machine(probes: Iterable[Probe] = PROBES) -> CriuBinary:
    """What ``mycoproxy check`` asks for is there. Raises ``RefusedError`` naming what is not."""
    if os.geteuid() != 0:
        raise RefusedError("moving a container needs root; run this as root")
    criu = find_criu()
    missing = examine(probes, is_root=True).missing
    if missing:
        first = missing[0]
        more = f" (and {len(missing) - 1} more: mycoproxy check)" if len(missing) > 1 else ""
        raise RefusedError(
            f"this machine lacks {first.name}: {first.needed} is needed, "
            f"found {first.found}; {first.fix}{more}"
        )
    return criu


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
    memory = 0
    for task in tasks:
        try:
            _check_task(task)
            memory += _resident(task.pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
    return container, tasks, memory


def check_sockets(tasks: Iterable[Task], source_pod: NamespaceWorker) -> None:
    """Every TCP socket of the tasks can be moved. Raises ``RefusedError``, which names the first
    that cannot."""
    source_pod.call(_check_sockets, tasks)


def _check_sockets(tasks: Iterable[Task]) -> None:
    with take(tasks) as sockets:
        named = [
            *((one.sock, one.names, one.local) for one in sockets.listeners),
            *(
                (one.sock, one.names, one.connection)
                for one in (*sockets.connections, *sockets.closed)
            ),
        ]
        for sock, names, what in named:
            reason = refusal(sock)
            if reason is not None:
                raise RefusedError(f"{names[0]} ({what or 'not connected'}): {reason}")


def check_target(plan: MovePlan, source_pod: NamespaceWorker, target_pod: NamespaceWorker) -> None:
    """The sandbox is there with the new addresses, and empty. Raises ``RefusedError``."""
    side = plan.target
    if not (side.bundle / "config.json").is_file():
        raise RefusedError(f"no OCI bundle for {side.container_id} at {side.bundle} on {side.node}")
    if Runc(side.runc_root).knows(side.container_id):
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


def check_space(needed: Mapping[Path, int]) -> None:
    """Each directory is on a tmpfs with room for so many bytes of memory, and the rest.

    Directories on one file system share its room. Raises ``RefusedError``.
    """
    wanted: dict[int, int] = {}
    for directory, memory_bytes in needed.items():
        if not directory.is_dir():
            raise RefusedError(f"no directory {directory} for the images")
        if _filesystem(directory) != _TMPFS_MAGIC:
            raise RefusedError(
                f"{directory} is not on a tmpfs; images on a disk make the freeze long"
            )
        device = directory.stat().st_dev
        wanted[device] = wanted.get(device, 0) + memory_bytes + _IMAGE_ROOM
        free = shutil.disk_usage(directory).free
        if free < wanted[device]:
            raise RefusedError(
                f"{directory} has {free >> 20} MiB free; the images need {wanted[device] >> 20} MiB"
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
    """The task's memory in bytes, shared pages by its share of them (smaps_rollup, ``Pss``)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    return 0


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
