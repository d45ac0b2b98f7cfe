"""A workload in one of two places, and a client: real tasks in PID namespaces, no work of CRIU's.

The copy is another process with the same pid and the same descriptors, closed and shut down as CRIU
restores them. Nothing else is pretended.
"""

import functools
import os
import signal
import socket
import subprocess
import sys
from typing import Any

from tcp_lab import DEADLINE, wait_until

from mycoproxy.kernel import pidfd_getfd

WORKLOAD = """
import os, socket, struct, sys
kept = []
def place(sock, fd):
    os.dup2(sock.fileno(), fd)
    sock.close()
def closed_as_criu_does(fd, family):
    sock = socket.socket(family)
    sock.bind(("", 0))
    sock.listen()
    sock.shutdown(socket.SHUT_RDWR)
    place(sock, fd)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


class Workload:
    """Pid 1 of a PID namespace, which does what it is told, line by line."""

    def __init__(self, node: Any) -> None:
        self.outer = node.call(
            subprocess.Popen,
            ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", WORKLOAD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.do("pass")
        with open(f"/proc/{self.outer.pid}/task/{self.outer.pid}/children") as file:  # noqa: PTH123
            self.init = int(file.read())

    def do(self, *lines: str) -> None:
        for line in lines:
            self.outer.stdin.write(line + "\n")
            self.outer.stdin.flush()
            assert self.outer.stdout.readline() == "done\n", line

    def listen(self, fd: int, address: str, port: int) -> None:
        family = "AF_INET6" if ":" in address else "AF_INET"
        self.do(
            f"place(socket.create_server(({address!r}, {port}), family=socket.{family}, "
            f"dualstack_ipv6={address == '::'}), {fd})"
        )

    def accept(self, listener: int, fd: int) -> None:
        self.do(f"place(socket.socket(fileno=os.dup({listener})).accept()[0], {fd})")

    def socket(self, fd: int) -> socket.socket:
        """A duplicate of one of its sockets."""
        pidfd = os.pidfd_open(self.init)
        try:
            return socket.socket(fileno=pidfd_getfd(pidfd, fd))
        finally:
            os.close(pidfd)

    def stop(self) -> None:
        os.kill(self.init, signal.SIGSTOP)
        wait_until(lambda: self._status() == "T", "stopped")

    def go_on(self) -> None:
        os.kill(self.init, signal.SIGCONT)

    def _status(self) -> str:
        with open(f"/proc/{self.init}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0]

    def close(self) -> None:
        """Kill it. May be called again."""
        self.outer.kill()
        self.outer.wait()
        self.outer.stdin.close()
        self.outer.stdout.close()


class Lab:
    """A client, and two places for the workload. Every address of the workload changes."""

    def __init__(self, network: Any, version: int) -> None:
        self.version = version
        self.c, self.a, self.b = (network.node(name) for name in "cab")
        self.to_a, self.to_b = network.link(self.c, self.a), network.link(self.c, self.b)
        for link in (self.to_a, self.to_b):
            link.right.set_route("default", gateway=link.left_v4)
            link.right.set_route("::/0", gateway=link.left_v6)
        # The client is where the workload's packets come from, by whichever link.
        self.address = {
            "a": self.to_a.address("right", version),
            "b": self.to_b.address("right", version),
            "c": self.to_a.address("left", version),
        }
        self.source, self.copy = Workload(self.a), Workload(self.b)
        self.open: list[Any] = []

    def keep(self, thing: Any) -> Any:
        self.open.append(thing)
        return thing

    def dial(self, address: str, port: int) -> socket.socket:
        sock: socket.socket = self.c.call(
            functools.partial(socket.create_connection, (address, port), timeout=DEADLINE)
        )
        return self.keep(sock)  # type: ignore[no-any-return]

    @property
    def addresses(self) -> dict[str, str]:
        return {self.to_a.right_v4: self.to_b.right_v4, self.to_a.right_v6: self.to_b.right_v6}

    def close(self) -> None:
        for one in self.open:
            one.close()
        self.source.close()
        self.copy.close()


def family(lab: Lab) -> str:
    """As the workload's program writes it."""
    return "socket.AF_INET" if lab.version == 4 else "socket.AF_INET6"
