"""The ground a move stands on: what the preflight found, opened for use. Changes nothing."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from migrate.machine import preflight
from migrate.machine.by_agents import AgentDatagrams, AgentMove, AgentSource, AgentTarget, MoveOf
from migrate.machine.plan import MovePlan, PeerNode
from migrate.runtime.cgroup import Cgroup
from migrate.runtime.channel import connect
from mycoproxy.check.criu import CriuBinary
from mycoproxy.handover import LocalNode, LocalPeer, LocalSource, LocalTarget, Nodes
from mycoproxy.handover.datagram_ends import LocalDatagramSource, LocalDatagramTarget
from mycoproxy.handover.datagram_peer import LocalDatagramPeer
from mycoproxy.handover.datagrams_here import LocalDatagrams
from mycoproxy.namespaces import NamespaceWorker

# The pages of a dump, by the memory that was resident before it; the tasks go on meanwhile.
_RESERVE_FACTOR = 1.1


class Preparable(Protocol):
    """What has to be prepared while the workload runs, and closed in the end."""

    async def prepare(self) -> None:
        """Make ready. Raises ``MycoError``."""

    async def close(self) -> None:
        """Close what is open."""


@dataclass(frozen=True, slots=True)
class Ground:
    """Both sides and the peers, ready to be prepared.

    ``cgroup`` is the source's; ``one_cgroup``: none of its tasks is in a cgroup below it.
    ``channel`` is the checkpoint's way, (source's end, target's end).
    """

    criu: CriuBinary
    cgroup: Cgroup
    one_cgroup: bool
    memory_bytes: int
    source: LocalSource | AgentSource
    target: LocalTarget | AgentTarget
    peers: tuple[LocalNode, ...]
    agents: AgentMove | None
    datagrams: LocalDatagrams | AgentDatagrams
    channel: tuple[socket.socket, socket.socket]

    @property
    def parts(self) -> tuple[Preparable, ...]:
        """All that has to be prepared, and closed in the end."""
        return *self.peers, self.source, self.target, self.datagrams

    @property
    def reserve_bytes(self) -> int:
        """The room that the target sets aside for memory pages."""
        return reserve(self.memory_bytes)


def reserve(memory_bytes: int) -> int:
    """The room for the pages of so much resident memory."""
    return int(memory_bytes * _RESERVE_FACTOR)


async def inspect(plan: MovePlan, stack: AsyncExitStack) -> Ground:
    """Run the preflight. What is opened is closed by ``stack``. Raises ``RefusedError``."""

    def worker(netns: Path) -> NamespaceWorker:
        return stack.enter_context(NamespaceWorker(netns))

    criu = await asyncio.to_thread(preflight.check_machine)
    container, tasks, memory = await asyncio.to_thread(preflight.check_source, plan)
    source_pod, target_pod = worker(plan.source.pod_netns), worker(plan.target.pod_netns)
    source_node, target_node = worker(plan.source.node_netns), worker(plan.target.node_netns)
    await asyncio.to_thread(preflight.check_target, plan, source_pod, target_pod)
    await asyncio.to_thread(preflight.check_sockets, tasks, source_pod)
    preflight.check_space({plan.source.images: memory, plan.target.images: reserve(memory)})
    cgroup = Cgroup(container.pid)
    # Last, because it takes longest when it fails: can the target be reached at all?
    channel = await asyncio.to_thread(connect, source_node, target_node, str(plan.transfer_address))
    for end in channel:
        stack.callback(end.close)
    agents = _agents(plan, container.pid)
    return Ground(
        criu=criu,
        cgroup=cgroup,
        one_cgroup={Cgroup(task.pid).directory for task in tasks} == {cgroup.directory},
        memory_bytes=memory,
        source=(
            LocalSource(source_pod, container.pid, plan.move_id)
            if agents is None
            else AgentSource(agents)
        ),
        target=LocalTarget(target_pod, plan.move_id) if agents is None else AgentTarget(agents),
        peers=tuple(
            _peer(peer, plan.move_id, worker) for peer in (plan.peers if agents is None else ())
        ),
        agents=agents,
        datagrams=(
            LocalDatagrams(
                LocalDatagramSource(source_pod, container.pid),
                LocalDatagramTarget(target_pod),
                [_datagram_peer(peer, worker) for peer in plan.peers],
                addresses=plan.address_map(),
                nodes=Nodes(plan.source.node, plan.target.node),
            )
            if agents is None
            else AgentDatagrams(agents)
        ),
        channel=channel,
    )


def _agents(plan: MovePlan, init_pid: int) -> AgentMove | None:
    if plan.agents is None:
        return None
    what = MoveOf(
        move=plan.move_id,
        source=plan.source.node,
        target=plan.target.node,
        source_netns=plan.source.pod_netns,
        target_netns=plan.target.pod_netns,
        init_pid=init_pid,
        addresses=plan.address_map(),
        follow=plan.deadlines.follow,
    )
    return AgentMove(what, plan.agents.source, plan.agents.target)


def _peer(node: PeerNode, move_id: str, worker: Callable[[Path], NamespaceWorker]) -> LocalNode:
    host = LocalPeer(node.name, worker(node.netns), move_id, behind=node.behind)
    pods = [LocalPeer(node.name, worker(netns), move_id) for netns in node.pods]
    return LocalNode(host, pods)


def _datagram_peer(node: PeerNode, worker: Callable[[Path], NamespaceWorker]) -> LocalDatagramPeer:
    pods = [worker(netns) for netns in node.pods]
    return LocalDatagramPeer(node.name, worker(node.netns), pods, behind=node.behind)
