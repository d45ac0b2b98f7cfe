"""A peer's part in a move: what this node does for the connections of somebody else's workload."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from mycoproxy.addresses import FourTuple
from mycoproxy.handover import LocalNode, LocalPeer, Offer, Task, plain
from mycoproxy.handover.peer import Changes
from mycoproxy.moves.namespaces import NodeNamespaces
from mycoproxy.namespaces import NamespaceWorker
from mycoproxy.netfilter.paths import Network
from mycoproxy.tcp import Segment

Attach = Callable[[str, bytes], None]
"""Keep bytes under a name in the move's journal. Raises ``JournalError``."""

_PREFIX = "changes"


class PeerPart:
    """This node in one move, as the ``Peer`` of it. Also of the node that the workload leaves.

    ``behind``: see ``mycoproxy.netfilter.paths.Standpoint``.
    """

    def __init__(
        self, name: str, move: str, namespaces: NodeNamespaces, *, behind: Sequence[Network] | None
    ) -> None:
        self.name = name
        self._move = move
        self._namespaces = namespaces
        self._attach: Attach | None = None
        self._noted = 0
        self.changes: list[tuple[Path, Changes]] = []
        """What was to be done in which namespace, and was not undone."""
        self.without: set[FourTuple] = set()
        """Connections for which it was not done, since they had ended."""
        self._pods: dict[Path, LocalPeer] = {}
        self._workers: list[NamespaceWorker] = []
        self._host = LocalPeer(
            name,
            namespaces.host,
            move,
            behind=behind,
            note=lambda changes: self._note(namespaces.host_path, changes),
        )
        self._node = LocalNode(self._host, find=self._find)
        self._lock = asyncio.Lock()

    @property
    def paths(self) -> list[Path]:
        """The namespaces in which something may be translated."""
        return [self._namespaces.host_path, *self._pods]

    def attach_to(self, attach: Attach) -> None:
        """Write down ahead what is changed, from now on."""
        self._attach = attach

    async def prepare(self) -> None:
        """Open what is needed, so that the rest is quick."""
        self._host.known_behind = await self._namespaces.addresses()
        await self._node.prepare()

    async def survey(
        self, connections: Sequence[FourTuple], addresses: Mapping[str, str], *, home: bool
    ) -> Sequence[Offer]:
        """See ``Peer``."""
        async with self._lock:
            return await self._node.survey(connections, addresses, home=home)

    async def stage(self, tasks: Sequence[Task]) -> None:
        """See ``Peer``."""
        async with self._lock:
            await self._node.stage(tasks)

    async def rehome(self, tasks: Sequence[Task], without: Collection[FourTuple] = ()) -> None:
        """See ``Peer``."""
        async with self._lock:
            await self._node.rehome(tasks, without)
            self.without.update(without)

    async def lost_segments(self) -> Sequence[Segment]:
        """See ``Peer``."""
        return await self._node.lost_segments()

    async def undo(self) -> None:
        """See ``Peer``."""
        async with self._lock:
            await self._node.undo()
            self.changes.clear()

    async def finish(self) -> None:
        """See ``Peer``."""
        async with self._lock:
            await self._node.finish()

    async def recall(self, attachments: Mapping[str, bytes]) -> None:
        """Take over what another process was about to do here; after ``prepare``.

        Namespaces that are gone took with them what was to be undone in them.
        """
        noted: dict[Path, list[Changes]] = {}
        for key, data in sorted(attachments.items()):
            prefix, _, rest = key.partition("|")
            number, _, text = rest.partition("|")
            if prefix == _PREFIX:
                self._noted = max(self._noted, int(number))
                noted.setdefault(Path(text), []).append(plain.changes_from_bytes(data))
        for where, changes in noted.items():
            self.changes += [(where, one) for one in changes]
            if where == self._namespaces.host_path:
                await self._host.recall(changes)
            elif where.exists():
                pod = await self._pod(where)
                await pod.recall(changes)

    async def close(self) -> None:
        """Close what was only for the time of the move."""
        await self._node.close()
        for worker in self._workers:
            worker.close()

    async def _find(self, addresses: Collection[str]) -> list[LocalPeer]:
        found = await self._namespaces.with_addresses(addresses)
        return [await self._pod(path) for path in found if path not in self._pods]

    async def _pod(self, path: Path) -> LocalPeer:
        worker = NamespaceWorker(path)
        self._workers.append(worker)
        pod = LocalPeer(
            self.name,
            worker,
            self._move,
            note=lambda changes: self._note(path, changes),
        )
        try:
            await pod.prepare()
        except BaseException:
            await pod.close()
            raise
        self._pods[path] = pod
        self._node.add(pod)
        return pod

    def _note(self, path: Path, changes: Changes) -> None:
        self.changes.append((path, changes))
        if self._attach is not None:
            self._noted += 1
            self._attach(f"{_PREFIX}|{self._noted:06}|{path}", plain.changes_to_bytes(changes))
