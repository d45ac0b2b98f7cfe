"""Move a pod of a lab to another node: sandbox, plan, move, Service."""

import secrets
from collections.abc import Callable, Collection
from ipaddress import ip_address, ip_network
from pathlib import Path

from migrate.machine.mover import Mover
from migrate.machine.plan import Agents, Deadlines, MovePlan, PeerNode, Side
from migrate.machine.report import MoveReport
from mycoproxy.errors import UsageError
from mycoproxy.handover import until_finished
from mycoproxy.namespaces import NamespaceWorker
from netlab.agents import LabAgents
from netlab.lab import Lab, LabNode
from netlab.pods import Pod


def plan_move(
    lab: Lab,
    source: Pod,
    target: Pod,
    *,
    logs: Path | None = None,
    deadlines: Deadlines = Deadlines(),  # noqa: B008 - frozen
    agents: LabAgents | None = None,
) -> MovePlan:
    """The plan that moves a pod from one sandbox of a lab into another one.

    Every node of the lab is a peer, with the pods on it: any of them may host clients, or NAT them.
    In a cluster only its own nodes are: no agent runs on a router or a client outside.
    """
    return MovePlan(
        move_id=f"{lab.name}-{source.name}-{secrets.token_hex(3)}",
        source=_side(lab, source),
        target=_side(lab, target),
        transfer_address=ip_address(_node_address(lab, target.node)),
        addresses={
            ip_address(old): ip_address(new)
            for old, new in zip(source.addresses, target.addresses, strict=True)
        },
        peers=tuple(
            _peer(lab, node, {source.netns, target.netns})
            for node in lab.nodes
            if lab.topology.cluster is None or node.spec.pod_bridge
        ),
        agents=None
        if agents is None
        else Agents(source=agents.socket(source.node), target=agents.socket(target.node)),
        deadlines=deadlines,
        logs=logs or lab.logs,
    )


async def move_pod(
    lab: Lab,
    name: str,
    node: str,
    *,
    logs: Path | None = None,
    deadlines: Deadlines = Deadlines(),  # noqa: B008 - frozen
    progress: Callable[[str], None] = lambda _: None,
    agents: LabAgents | None = None,
) -> MoveReport:
    """Move pod ``name`` to ``node``, as a person who drains a node would have it.

    Afterwards the Services lead new connections to it, and its old sandbox is gone. If it fails
    the new sandbox is gone instead. Raises what ``Mover.run`` raises, and ``UsageError``.
    """
    source = lab.pod(name)
    if source.node == node:
        raise UsageError(f"pod {name} is on {node} already")
    target = lab.make_sandbox(name, node)
    plan = plan_move(lab, source, target, logs=logs, deadlines=deadlines, agents=agents)
    mover = Mover(plan, progress=progress, switch=lambda: _settle(lab, target))
    try:
        return await mover.run()
    finally:
        # By what became of the workload, not by how ``run`` ended: it may have been interrupted
        # when all was done. If nobody knows (``stuck``) both places stay as they are.
        if mover.moved:
            _settle(lab, target)
            try:
                await _finish(source, mover.report, deadlines.linger)
            finally:
                lab.remove_pod(source)
        elif not mover.stuck:
            lab.remove_pod(target)


def _settle(lab: Lab, target: Pod) -> None:
    lab.record_pod(target)
    for service in lab.topology.services:
        if service.pod == target.name:
            lab.service(service.name).point_to(target.addresses)


async def _finish(source: Pod, report: MoveReport, timeout: float) -> None:
    """The old sandbox stands until what the workload had closed is delivered."""
    with NamespaceWorker(source.netns) as worker:
        left = await until_finished(worker, timeout=timeout)
    if left:
        report.warnings.append(
            f"{len(left)} connections that {source.name} had closed did not take all that was on "
            f"its way to them within {timeout:g} s: {left[0]}"
        )


def _side(lab: Lab, pod: Pod) -> Side:
    return Side(
        node=pod.node,
        node_netns=lab.node(pod.node).netns,
        pod_netns=pod.netns,
        runc_root=pod.runc_root,
        container_id=pod.container_id,
        bundle=pod.bundle,
        images=lab.images,
    )


def _peer(lab: Lab, node: LabNode, moving: Collection[Path]) -> PeerNode:
    """A node that hosts pods sees its own traffic and theirs; any other one is a router."""
    subnets = tuple(bridge.network for bridge in node.spec.pod_bridge)
    return PeerNode(
        name=node.name,
        netns=node.netns,
        pods=tuple(
            pod.netns
            for pod in lab.sandboxes()
            if pod.node == node.name and pod.netns not in moving
        ),
        behind=(*subnets, *map(ip_network, _addresses(lab, node.name))) if subnets else None,
    )


def _node_address(lab: Lab, node: str) -> str:
    addresses = _addresses(lab, node)
    if not addresses:
        raise UsageError(f"node {node} has no link that a checkpoint could come by")
    return addresses[0]


def _addresses(lab: Lab, node: str) -> list[str]:
    return [
        str(interface.ip)
        for link in lab.topology.links
        for end in link.ends
        if end.node == node
        for interface in end.addresses
    ]
