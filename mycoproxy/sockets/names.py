"""What a socket is called inside a container: the descriptors that refer to it.

A moved task keeps its pid (inside its PID namespace) and its descriptor numbers, so these names
are the same on the source and on the target.
"""

from typing import NamedTuple


class DescriptorName(NamedTuple):
    """A descriptor of a task, by the task's pid *inside* its container."""

    pid: int
    fd: int

    def __str__(self) -> str:
        return f"pid {self.pid} fd {self.fd}"
