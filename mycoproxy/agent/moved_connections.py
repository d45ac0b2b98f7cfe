"""The part that knows which connections are re-homed here: it reads the translations that stand.

They outlive the agent, so they are read from the kernel each time. A namespace is entered by a
thread that ends with the question: a thread that stayed would keep a pod's namespace alive.
"""

from __future__ import annotations

import asyncio
import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from mycoproxy.agent.config import Config, NamespacesSection
from mycoproxy.agent.part import Agent, Part
from mycoproxy.agent.questions import Row, Rows
from mycoproxy.errors import MycoError
from mycoproxy.namespaces import NamespaceWorker


class MovedConnections(Part):
    """Answers ``connections`` with what is translated in the node's and its pods' namespaces."""

    name: ClassVar[str] = "namespaces"

    async def start(self, agent: Agent) -> None:
        """Nothing is opened yet."""
        self._namespaces = agent.config.namespaces
        self._asking = asyncio.Lock()
        agent.questions.connections.append(self.rows)

    async def reload(self, config: Config) -> None:
        """Other pods."""
        self._namespaces = config.namespaces

    def ready(self) -> Sequence[str]:
        """The node's own namespace must be there; pods come and go."""
        node = self._namespaces.node
        return () if node.exists() else (f"namespaces.node: there is no {node}",)

    async def rows(self) -> Rows:
        """One row for each translated connection. One question at a time."""
        async with self._asking:
            return await asyncio.to_thread(_translated, self._namespaces)


def _translated(namespaces: NamespacesSection) -> Rows:
    found = Rows()
    for path in _distinct(namespaces):
        try:
            with NamespaceWorker(path) as worker:
                found.rows.extend(worker.call(_rows_here, str(path)))
        except (MycoError, OSError) as error:
            # A pod that ended meanwhile is no problem.
            if path.exists():
                found.problems.append(f"{path}: {error}")
    return found


def _distinct(namespaces: NamespacesSection) -> Iterator[Path]:
    """Each namespace once, though it may have several names."""
    seen = set()
    paths = [str(namespaces.node)]
    for pattern in namespaces.pods:
        paths += sorted(glob.glob(pattern))  # noqa: PTH207 - Path.glob takes no absolute one
    for path in map(Path, paths):
        try:
            stat = path.stat()
        except OSError:
            continue
        if (stat.st_dev, stat.st_ino) not in seen:
            seen.add((stat.st_dev, stat.st_ino))
            yield path


def _rows_here(namespace: str) -> Sequence[Row]:
    # These load libnftables, which not every question needs.
    from mycoproxy.netfilter.nft import Nft  # noqa: PLC0415
    from mycoproxy.netfilter.translate import Translate  # noqa: PLC0415

    with Nft() as nft:
        translations = Translate(nft).list()
    return [
        {
            "namespace": namespace,
            "strategy": "translate",
            "client": str(dialled.remote),
            "dialled": str(dialled.local),
            "now": str(now),
        }
        for dialled, now in translations.items()
    ]
