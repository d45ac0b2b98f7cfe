"""The capabilities of this process, as /proc/self/status gives them."""

from pathlib import Path

# linux/capability.h
CAP_NET_ADMIN = 12
CAP_NET_RAW = 13
CAP_SYS_PTRACE = 19
CAP_SYS_ADMIN = 21
CAP_SYS_RESOURCE = 24
CAP_CHECKPOINT_RESTORE = 40  # Linux 5.9

_STATUS = Path("/proc/self/status")


def effective_capabilities(status: str) -> int:
    """The bit mask in the ``CapEff`` line of a task's /proc/PID/status (capabilities(7))."""
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    raise ValueError("no CapEff line in the task's status")


def own_capabilities() -> int:
    """The mask of this process's effective capabilities."""
    return effective_capabilities(_STATUS.read_text(encoding="ascii"))


def has_capability(number: int) -> bool:
    """Whether this process has the capability in its effective set."""
    return bool(own_capabilities() >> number & 1)
