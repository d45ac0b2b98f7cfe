"""What freezing, dumping and restoring a container needs: capabilities, CRIU, runc and so on."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from mycoproxy.check import capabilities
from mycoproxy.check.criu import (
    cache_directory,
    find_criu,
    parse_version,
    survey_criu,
    version_text,
)
from mycoproxy.check.mounts import Mount, mount_of, read_mounts
from mycoproxy.check.report import UnmetError

RUNC_NEEDED = (1, 1, 0)
IMAGE_SPACE = 512 << 20  # bytes
IMAGE_PLACES = (Path("/dev/shm"), Path("/run"))  # noqa: S108  a tmpfs is what is looked for

_TIMEOUT = 10.0  # seconds

_ALWAYS_NEEDED = {
    "SYS_ADMIN": capabilities.CAP_SYS_ADMIN,
    "NET_ADMIN": capabilities.CAP_NET_ADMIN,
    "NET_RAW": capabilities.CAP_NET_RAW,
    "SYS_PTRACE": capabilities.CAP_SYS_PTRACE,
}


def missing_capabilities(effective: int) -> list[str]:
    """The names of the capabilities that are needed and not in the mask ``effective``.

    CAP_CHECKPOINT_RESTORE is part of CAP_SYS_ADMIN (capabilities(7)), so it is no item of its own.
    """
    return [name for name, number in _ALWAYS_NEEDED.items() if not effective >> number & 1]


def needed_capabilities() -> str:
    """The capabilities of this process."""
    missing = missing_capabilities(capabilities.own_capabilities())
    if missing:
        raise UnmetError(f"missing: {', '.join(missing)}")
    return "all"


def rlimit_capability() -> str:
    """CAP_SYS_RESOURCE, or the library that stands in for it (scripts/criu_rlimits.c)."""
    if capabilities.has_capability(capabilities.CAP_SYS_RESOURCE):
        return "there"
    if (cache_directory() / "lib" / "criu_rlimits.so").exists():
        return "missing; CRIU runs with the rlimit fallback"
    raise UnmetError("missing, and the rlimit fallback is not built")


def is_root() -> str:
    """Whether this is root."""
    if os.geteuid() != 0:
        raise UnmetError(f"user {os.geteuid()}")
    return "root"


def criu_version() -> str:
    """A CRIU that is new enough."""
    found = survey_criu()
    if isinstance(found, str):
        raise UnmetError(found)
    return f"{version_text(found.version)} ({found.path})"


def criu_check() -> str:
    """What CRIU itself says of this kernel (``criu check``)."""
    if isinstance(survey_criu(), str):
        raise UnmetError("no CRIU to ask", fix="make setup builds it")
    criu = find_criu()
    answer = subprocess.run(
        [criu.path, "check"],
        env=criu.environment(),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    if answer.returncode != 0:
        raise UnmetError(_last_line(answer.stdout + answer.stderr) or "criu check failed")
    return "criu check is content"


def runc_version() -> str:
    """A runc that is new enough."""
    path = shutil.which("runc")
    if path is None:
        raise UnmetError("no runc found")
    answer = subprocess.run(
        [path, "--version"], capture_output=True, text=True, timeout=_TIMEOUT, check=True
    )
    version = parse_version(answer.stdout)
    if version is None:
        raise UnmetError(f"{path} does not tell its version")
    if version < RUNC_NEEDED:
        raise UnmetError(f"{version_text(version)} ({path})")
    return f"{version_text(version)} ({path})"


def freezer_mount(mounts: list[Mount]) -> tuple[int, Path]:
    """The cgroup version (1 or 2) and the mount point of the freezer that container runtimes use.

    Where both are mounted (systemd's hybrid layout) the controllers are version 1's.
    Raises ``UnmetError`` if there is none.
    """
    for mount in mounts:
        if mount.kind == "cgroup" and "freezer" in mount.options:
            return 1, mount.point
    for mount in mounts:
        if mount.kind == "cgroup2":
            return 2, mount.point
    raise UnmetError("no cgroup file system with a freezer is mounted")


def freezer() -> str:
    """Make an empty cgroup, freeze it, thaw it, remove it."""
    version, point = freezer_mount(read_mounts())
    cgroup = point / f"mycoproxy-check-{os.getpid()}"
    cgroup.mkdir()
    try:
        if version == 1:
            state = cgroup / "freezer.state"
            _switch(state, "FROZEN", lambda: state.read_text().strip() == "FROZEN")
            _switch(state, "THAWED", lambda: state.read_text().strip() == "THAWED")
        else:
            switch, events = cgroup / "cgroup.freeze", cgroup / "cgroup.events"
            _switch(switch, "1", lambda: "frozen 1" in events.read_text())
            _switch(switch, "0", lambda: "frozen 0" in events.read_text())
    finally:
        cgroup.rmdir()
    return f"cgroup v{version}, freezer works"


def _switch(file: Path, value: str, reached: Callable[[], bool]) -> None:
    file.write_text(value)
    deadline = time.monotonic() + _TIMEOUT
    while not reached():
        if time.monotonic() > deadline:
            raise UnmetError(f"{file.name} did not become {value} within {_TIMEOUT:g} s")
        time.sleep(0.001)


def image_space() -> str:
    """A tmpfs with room for the image of a container."""
    mounts = read_mounts()
    found = []
    for place in IMAGE_PLACES:
        mount = mount_of(place, mounts)
        if mount is None or mount.kind != "tmpfs":
            found.append(f"{place} is no tmpfs")
            continue
        free = shutil.disk_usage(place).free
        if free >= IMAGE_SPACE:
            return f"{place}, {free >> 20} MiB free"
        found.append(f"{place} has {free >> 20} MiB free")
    raise UnmetError("; ".join(found))


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
