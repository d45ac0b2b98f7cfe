"""A node's part in the UDP flows of one move: of the node that is left as of any other one.

Apart from the ``PeerPart``: that one ends with the agreement, at the moment when the workload
begins to run in its new place, and then the flows that began meanwhile are still to be led. It has
threads of its own, too: to look through conntrack's tables takes long, and a handover of
connections, perhaps of another move, must not wait for it.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mycoproxy.addresses import FourTuple, wire_address
from mycoproxy.errors import MycoError, RefusedError
from mycoproxy.handover.datagram_peer import LocalDatagramPeer, has_flows
from mycoproxy.handover.datagram_routes import FlowOffer, FlowTask
from mycoproxy.moves.namespaces import NodeNamespaces
from mycoproxy.namespaces import NamespaceWorker
from mycoproxy.netfilter.paths import Network


class NodeDatagrams:
    """See ``DatagramPeer``. Opens what it needs when asked; ``close`` when the move has ended.

    ``workload``: the workload's own namespace on this node, which is none of a client.
    """

    def __init__(
        self,
        name: str,
        namespaces: NodeNamespaces,
        *,
        behind: Sequence[Network] | None,
        workload: Path | None = None,
    ) -> None:
        self.name = name
        self._namespaces = namespaces
        self._behind = behind
        self._workload = workload
        self._addresses: dict[str, str] = {}
        self._opened: LocalDatagramPeer | None = None
        self._workers: dict[Path, NamespaceWorker] = {}
        self._lock = asyncio.Lock()
        self._closed = False

    @property
    def paths(self) -> list[Path]:
        """The namespaces in which something may be led."""
        return [*self._workers]

    async def survey(
        self, addresses: Mapping[str, str], ports: Sequence[int], *, home: bool
    ) -> Sequence[FlowOffer]:
        """See ``DatagramPeer``."""
        async with self._lock:
            here = await self._open()
            self._addresses |= addresses
            await self._add(here, await asyncio.to_thread(self._concerned, addresses, ports))
            return await here.survey(addresses, ports, home=home)

    async def ask(
        self, flows: Sequence[FourTuple], addresses: Mapping[str, str], *, home: bool
    ) -> Sequence[FlowOffer]:
        """See ``DatagramPeer``."""
        async with self._lock:
            here = await self._open()
            self._addresses |= addresses
            remote = {wire_address(flow.remote.address) for flow in flows}
            await self._add(here, await self._namespaces.with_addresses(remote))
            return await here.ask(flows, addresses, home=home)

    async def lead(self, tasks: Sequence[FlowTask]) -> None:
        """See ``DatagramPeer``. ``RefusedError`` for flows that are not the workload's."""
        new = {*self._addresses.values()}
        for task in tasks:
            if (
                task.flow.local.address not in self._addresses
                or task.after.local.address not in new
            ):
                raise RefusedError(f"UDP {task.flow}: the workload of this move has no such flow")
        async with self._lock:
            here = await self._open()
            await here.lead(tasks)

    async def close(self) -> None:
        """Close what was opened. What is led stays led. May be called again."""
        async with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._opened is not None:
                await self._opened.close()
            for worker in self._workers.values():
                await asyncio.to_thread(worker.close)

    async def _open(self) -> LocalDatagramPeer:
        if self._closed:
            raise MycoError("the move has ended")
        if self._opened is None:
            path = self._namespaces.host_path
            worker = await asyncio.to_thread(NamespaceWorker, path)
            self._workers[path] = worker
            opened = LocalDatagramPeer(self.name, worker, behind=self._behind)
            opened.known_behind = await self._namespaces.addresses()
            self._opened = opened  # to be closed, also if this is given up
            await opened.prepare()
        return self._opened

    async def _add(self, here: LocalDatagramPeer, pods: Sequence[Path]) -> None:
        for path in pods:
            if path in self._workers or self._is_workload(path):
                continue
            with suppress(RefusedError, OSError):  # it is gone
                worker = await asyncio.to_thread(NamespaceWorker, path)
                self._workers[path] = worker
                await here.add(worker)

    def _concerned(self, addresses: Mapping[str, str], ports: Sequence[int]) -> list[Path]:
        """The pods that speak with the workload. Of one at a time a thread is there."""
        _, *pods = self._namespaces.paths()
        return [path for path in pods if self._is_concerned(path, addresses, ports)]

    def _is_concerned(self, path: Path, addresses: Mapping[str, str], ports: Sequence[int]) -> bool:
        if path in self._workers or self._is_workload(path):
            return False
        with suppress(MycoError, OSError), NamespaceWorker(path) as worker:
            return worker.call(has_flows, addresses, ports)
        return False

    def _is_workload(self, path: Path) -> bool:
        with suppress(OSError):
            return self._workload is not None and path.samefile(self._workload)
        return False


Make = Callable[[Path | None], NodeDatagrams]
"""Makes this node's part, given the workload's own namespace on it."""
