"""Where everything of a lab lies, and what it is called, from the lab's name alone.

Because every name begins with the lab's, ``inventory`` finds a lab's things without any record of
what was made. A lab's name has no hyphen, so ``nl-LAB-`` is a prefix of no other lab's names; a
node's name has no dot, so ``NODE.POD`` is clear too.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from mycoproxy.errors import UsageError

RUN = Path("/run/netlab")
NETNS = Path("/run/netns")
CGROUP = "netlab"

# A lock on this file is held (shared) by who makes things in directories that labs share, and
# (exclusive) by who removes such a directory because it is empty.
SHARED_LOCK = RUN / ".lock"

_LAB_NAME = re.compile(r"[a-z][a-z0-9_]{0,19}")
_NAMESPACE = re.compile(rf"nl-({_LAB_NAME.pattern})-.+")


@dataclass(frozen=True, slots=True)
class Layout:
    """The names of one lab's things. Raises ``UsageError`` for what cannot be a lab's name."""

    lab: str

    def __post_init__(self) -> None:
        if not _LAB_NAME.fullmatch(self.lab):
            raise UsageError(
                f"{self.lab!r} cannot be a lab's name: "
                "a small letter, then at most 19 of a-z, 0-9 and _ are wanted"
            )

    @property
    def run(self) -> Path:
        """The runtime directory."""
        return RUN / self.lab

    @property
    def state(self) -> Path:
        """The record of what was made."""
        return self.run / "state.json"

    @property
    def images(self) -> Path:
        """A tmpfs of the lab's own for CRIU images."""
        return self.run / "images"

    @property
    def logs(self) -> Path:
        """Logs of runc and of whoever works in the lab."""
        return self.run / "logs"

    @property
    def wire(self) -> Path:
        """The socket on which the process of the delayed links answers."""
        return self.run / "wire"

    @property
    def scratch(self) -> Path:
        """What clients and captures write in a run, until it has been read."""
        return self.run / "scratch"

    def netns(self, node: str, pod: str | None = None) -> Path:
        """The network namespace of a node, or of a pod on that node."""
        return NETNS / (f"nl-{self.lab}-{node}" + (f".{pod}" if pod else ""))

    def runc_root(self, node: str) -> Path:
        """What ``runc --root`` gets on that node."""
        return self.run / node / "runc"

    def bundle(self, node: str, pod: str) -> Path:
        """A pod's OCI bundle."""
        return self.run / node / "bundles" / pod

    def container_id(self, pod: str) -> str:
        """A pod's name for runc; the same on every node."""
        return f"{self.lab}-{pod}"

    def cgroup(self, node: str, pod: str) -> str:
        """A pod's cgroup, from the root of each hierarchy."""
        return f"/{CGROUP}/{self.lab}/{node}/{pod}"

    @property
    def nft_table(self) -> str:
        """The name of the lab's nft tables."""
        return f"netlab-{self.lab}"


def lab_of_namespace(name: str) -> str | None:
    """The lab that a network namespace in /run/netns belongs to by its name."""
    match = _NAMESPACE.fullmatch(name)
    return match[1] if match else None
