"""A pod's OCI bundle: config.json (OCI runtime specification 1.0) and nothing else.

The container is made as a Kubernetes pod's is: own PID, mount, UTS and IPC namespaces, and a
network namespace that was there before it and is joined by path. What it can write to is tmpfs,
so that all of its state is in its memory and in the checkpoint. Everything in it can be dumped by
CRIU: no terminal, no outside descriptor, few mounts.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# What Docker grants and a server may need; a task that is not root gets none of it.
_ROOT_CAPABILITIES = ("CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETUID")


@dataclass(frozen=True, slots=True)
class Process:
    """What runs in a container. ``user`` is both user and group id; ``data_mb`` is in MiB."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    user: int
    data_mb: int


def config(
    process: Process, *, hostname: str, rootfs: Path, netns: Path, cgroup: str
) -> dict[str, object]:
    """The content of config.json."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "LC_ALL": "C",
        "HOME": "/data",
        "TMPDIR": "/data",
        **process.env,
    }
    capabilities = list(_ROOT_CAPABILITIES) if process.user == 0 else []
    owner = [f"uid={process.user}", f"gid={process.user}"]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": process.user, "gid": process.user},
            "args": list(process.argv),
            "env": [f"{name}={value}" for name, value in environment.items()],
            "cwd": "/data",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "noNewPrivileges": True,
        },
        "root": {"path": str(rootfs), "readonly": True},
        "hostname": hostname,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            _tmpfs("/dev", ["nosuid", "strictatime", "mode=755", "size=64k"]),
            _tmpfs("/dev/shm", ["nosuid", "noexec", "nodev", "mode=1777", "size=64m"]),  # noqa: S108
            _tmpfs(
                "/data",
                ["nosuid", "nodev", "mode=750", f"size={process.data_mb}m", *owner],
            ),
        ],
        "linux": {
            "namespaces": [
                {"type": "pid"},
                {"type": "mount"},
                {"type": "uts"},
                {"type": "ipc"},
                {"type": "network", "path": str(netns)},
            ],
            "cgroupsPath": cgroup,
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        },
    }


def _tmpfs(destination: str, options: Sequence[str]) -> dict[str, object]:
    return {
        "destination": destination,
        "type": "tmpfs",
        "source": "tmpfs",
        "options": list(options),
    }


def write(directory: Path, content: Mapping[str, object]) -> None:
    """Write the bundle into ``directory``, which is made."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(content, indent=1))
