"""The network namespaces of this node: its own, and those of the pods on it."""

import asyncio
import glob
from collections.abc import Collection, Sequence
from pathlib import Path

from mycoproxy.errors import MycoError, RefusedError
from mycoproxy.namespaces import NamespaceWorker
from mycoproxy.netfilter.local_addresses import local_addresses


class NodeNamespaces:
    """Threads in the namespaces of this node. One stays in the node's own; those in pods end with
    the move that they were made for: a thread keeps a namespace alive, and another one may come
    under its path.

    ``pods`` are patterns of paths, as the runtime mounts the namespaces (``/run/netns/cni-*``).
    """

    def __init__(self, host: Path, pods: Sequence[str]) -> None:
        self._host_path = host
        self._patterns = tuple(pods)
        self._host: NamespaceWorker | None = None
        self._addresses: dict[Path, tuple[int, frozenset[str]]] = {}

    @property
    def host(self) -> NamespaceWorker:
        """The node's own."""
        if self._host is None:
            self._host = NamespaceWorker(self._host_path)
        return self._host

    @property
    def host_path(self) -> Path:
        """Where that is."""
        return self._host_path

    def workload(self, path: Path) -> NamespaceWorker:
        """A new thread in a workload's namespace, for the caller to close.

        ``RefusedError`` if it is the node's own, or this process's: a shield or a hold there would
        cut off the whole node. Raises ``OSError``.
        """
        for own in (self._host_path, Path("/proc/self/ns/net")):
            if own.stat().st_ino == path.stat().st_ino:
                raise RefusedError(
                    f"{path} is the network namespace of the node itself: only what has one of its "
                    "own can be moved"
                )
        return NamespaceWorker(path)

    def paths(self) -> list[Path]:
        """The node's own, and those of the pods that are there now."""
        pods = [Path(path) for pattern in self._patterns for path in glob.glob(pattern)]  # noqa: PTH207
        return [self._host_path, *pods]

    async def with_addresses(self, wanted: Collection[str]) -> list[Path]:
        """The pods' namespaces that have one of these addresses."""
        return await asyncio.to_thread(self._with_addresses, frozenset(wanted))

    async def addresses(self) -> frozenset[str]:
        """Of all pods on this node."""
        await asyncio.to_thread(self._refresh)
        return frozenset().union(*(addresses for _, addresses in self._addresses.values()))

    def _with_addresses(self, wanted: frozenset[str]) -> list[Path]:
        self._refresh()
        return [path for path, (_, addresses) in self._addresses.items() if addresses & wanted]

    def _refresh(self) -> None:
        _, *found = self.paths()
        for gone in self._addresses.keys() - set(found):
            self._addresses.pop(gone, None)
        for path in found:
            try:
                inode = path.stat().st_ino
                known = self._addresses.get(path)
                if known is None or known[0] != inode or not known[1]:
                    self._addresses[path] = (inode, self._read(path))
            except (OSError, MycoError):  # it is being made, or removed
                self._addresses.pop(path, None)

    @staticmethod
    def _read(path: Path) -> frozenset[str]:
        with NamespaceWorker(path) as worker:
            return worker.call(local_addresses)

    def close(self) -> None:
        """End the thread that stayed."""
        if self._host is not None:
            self._host.close()
            self._host = None
