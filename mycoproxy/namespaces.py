"""A thread that lives in one network namespace.

A network namespace belongs to a thread, and a socket stays in the namespace it was made in. So
there is one worker thread for each namespace; it enters it once and everything that has to happen
there is called on it. The main thread never moves.

A child process started on a worker (``worker.call(subprocess.Popen, ...)``) starts in the
worker's namespace.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from mycoproxy.errors import RefusedError
from mycoproxy.kernel import CLONE_NEWNET, setns

P = ParamSpec("P")
T = TypeVar("T")


class NamespaceWorker:
    """Runs functions, one at a time, on a thread inside the network namespace at ``path``.

    ``path`` is anything setns(2) takes: ``/run/netns/NAME``, ``/proc/PID/ns/net``.
    Raises ``RefusedError`` if there is no such namespace.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            handle = path.open("rb")
        except FileNotFoundError:
            raise RefusedError(f"no network namespace at {path}") from None
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"ns:{path.name}")
        with handle:
            try:
                self.call(setns, handle.fileno(), CLONE_NEWNET)
            except OSError as error:
                self._executor.shutdown()
                raise RefusedError(f"cannot enter network namespace {path}: {error}") from error

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``function`` in the namespace and wait for its result."""
        return self._executor.submit(function, *args, **kwargs).result()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``function`` in the namespace without blocking the event loop."""
        return await asyncio.wrap_future(self._executor.submit(function, *args, **kwargs))

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Begin to run ``function`` in the namespace. Calls are done in the order they are made."""
        return self._executor.submit(function, *args, **kwargs)

    def close(self) -> None:
        """End the thread, once what it was asked to do is done."""
        self._executor.shutdown(wait=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
