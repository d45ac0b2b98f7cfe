"""An object in a child process in a network namespace: its methods are called over a socket.

The child ends when that socket does, so it never outlives whoever started it. Requests and answers
are pickled: both ends are ours. The time on both sides is that of ``time.monotonic``, one clock for
all processes of a machine.
"""

import importlib
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Final, Self

from mycoproxy.errors import MycoError, RefusedError
from mycoproxy.namespaces import NamespaceWorker

DEADLINE: Final = 60.0  # seconds that one request may take


class Child:
    """An object of class ``kind``, made in a process in the namespace of ``worker``."""

    def __init__(self, worker: NamespaceWorker, kind: type) -> None:
        self._name = kind.__name__
        ours, theirs = socket.socketpair()
        with theirs:
            self._process: subprocess.Popen[bytes] = worker.call(
                subprocess.Popen,
                [
                    *(sys.executable, "-m", "netlab.tcp_bench.child"),
                    *(str(theirs.fileno()), kind.__module__, kind.__name__),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._connection = Connection(ours.detach())
        self._under_way = False

    def start(self, method: str, *arguments: object) -> None:
        """Begin a call. One at a time; ``result`` ends it, or the next call, which waits for it."""
        if self._under_way:
            with suppress(MycoError):
                self.result()
        self._connection.send((method, arguments))
        self._under_way = True

    def result(self) -> Any:  # noqa: ANN401
        """Wait for what the call returns. Raises ``MycoError``: it failed, or took too long."""
        self._under_way = False
        if not self._connection.poll(DEADLINE):
            raise MycoError(f"{self._name} did not answer within {DEADLINE:g} s")
        try:
            done, value = self._connection.recv()
        except (EOFError, ConnectionError):
            raise MycoError(f"{self._name} has ended; see its traceback above") from None
        if not done:
            raise MycoError(value)
        return value

    def call(self, method: str, *arguments: object) -> Any:  # noqa: ANN401
        """``start`` and ``result``."""
        self.start(method, *arguments)
        return self.result()

    def close(self) -> None:
        """Let the child end, at once if it does not by itself."""
        self._connection.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@contextmanager
def descriptors(count: int) -> Iterator[None]:
    """Room for ``count`` more or less open files in this process; the old limit afterwards.

    Raises ``RefusedError`` if the hard limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise RefusedError(
            f"{count} open files are needed, the hard limit is {hard}: raise it (ulimit -Hn), "
            "or ask for fewer --connections"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _serve(descriptor: str, module: str, name: str) -> None:
    """The child's side: do what is asked of the object."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, and ends the socket
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with Connection(int(descriptor)) as connection:
        served = getattr(importlib.import_module(module), name)()
        while True:
            try:
                method, arguments = connection.recv()
            except (EOFError, ConnectionError):
                return
            try:
                answer = True, getattr(served, method)(*arguments)
            except (MycoError, OSError) as error:
                answer = False, f"{name}.{method}: {error}"
            with suppress(ConnectionError):
                connection.send(answer)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
