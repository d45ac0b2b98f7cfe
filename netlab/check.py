"""Is a lab what its topology says? Tried out from every node, not read off the configuration."""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from mycoproxy.errors import RefusedError
from netlab import icmp, links, listening
from netlab.lab import Lab, LabNode
from netlab.topology import Service
from netlab.topology_rules import POD_BRIDGE
from netlab.wire import delayed

_TIMEOUT = 1.0  # seconds for an answer; a lab's round trip is some 50 microseconds, without delays


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that was tried. ``found`` is what came of it, for people."""

    name: str
    ok: bool
    found: str


def check(lab: Lab) -> Iterator[Item]:
    """Try everything, one ``Item`` each, as it is tried."""
    if lab.topology.delayed_links():
        yield _wire(lab)
    for node in lab.nodes:
        try:
            yield from _devices(lab, node)
            yield from _neighbours(lab, node)
        except RefusedError as error:
            yield Item(f"{node.name}: namespace", ok=False, found=str(error))
    yield from _pods(lab)
    yield from _services(lab)


def _wire(lab: Lab) -> Item:
    answer = delayed.ask(lab.layout.wire)
    if answer is None:
        return Item("wire of the delayed links", ok=False, found="no process answers")
    dropped = sum(counters.dropped for counters in answer.links)
    found = f"answers (pid {answer.pid}, {dropped} frames dropped)"
    return Item("wire of the delayed links", ok=True, found=found)


def _patience(lab: Lab) -> float:
    """Seconds for an answer: neighbours may have to be found first, on every link on the way."""
    delays = sum(link.delay_ms or 0 for link in lab.topology.links)
    return _TIMEOUT + 4 * delays / 1000


def _devices(lab: Lab, node: LabNode) -> Iterator[Item]:
    states = node.worker.call(links.states)
    for link in lab.topology.links:
        for end in link.ends:
            if end.node == node.name:
                up = states.get(end.device, False)
                found = "up" if up else "down"
                if link.delay_ms is not None and end.device in states:
                    found += f", {link.delay_ms:g} ms"
                    if lost := node.worker.call(links.overflow, end.device):
                        found += f", no room for {lost} frames"
                yield Item(f"{node.name}: {end.device}", ok=up, found=found)
    if node.spec.pod_bridge:
        there = POD_BRIDGE in states
        found = "there" if there else "missing"
        yield Item(f"{node.name}: {POD_BRIDGE}", ok=there, found=found)


def _neighbours(lab: Lab, node: LabNode) -> Iterator[Item]:
    """The other end of each link, and each next hop."""
    wanted: dict[str, str] = {}
    for link in lab.topology.links:
        for end, other in (link.ends, link.ends[::-1]):
            if end.node == node.name:
                wanted.update({str(each.ip): other.node for each in other.addresses})
    for hop in (*node.spec.gateways, *(route.via for route in node.spec.routes)):
        wanted.setdefault(str(hop), "next hop")
    for address, whose in wanted.items():
        reason = node.worker.call(icmp.ping, address, timeout=_patience(lab))
        yield _tried(f"{node.name}: ping {address} ({whose})", reason)


def _pods(lab: Lab) -> Iterator[Item]:
    for pod in lab.sandboxes():
        if lab.topology.pod(pod.name).image is None:
            yield Item(f"pod {pod.name}", ok=True, found=f"a sandbox on {pod.node}, as is wanted")
            continue
        running = pod.running
        found = f"runs on {pod.node}" if running else f"only a sandbox on {pod.node}"
        at_home = lab.state.home.get(pod.name) == pod.node
        yield Item(f"pod {pod.name}", ok=running or not at_home, found=found)
        if not running:
            continue
        for node in lab.nodes:
            for address in pod.addresses:
                if _knows_a_way(lab, node, address):
                    yield _connected(lab, node, f"pod {pod.name}", address, pod.port)


def _knows_a_way(lab: Lab, node: LabNode, address: str) -> bool:
    """Whether the topology gives the node a route to ``address``."""
    wanted = ipaddress.ip_address(address)
    if any(hop.version == wanted.version for hop in node.spec.gateways):
        return True
    interfaces = [*lab.topology.link_addresses(node.name), *node.spec.pod_bridge]
    networks = [interface.network for interface in interfaces]
    for route in node.spec.routes:
        if route.to != "default":
            networks.append(route.to)
        elif route.via.version == wanted.version:
            return True
    return any(wanted in network for network in networks)


def _services(lab: Lab) -> Iterator[Item]:
    """From the hosts that the topology lets reach them; a Service of a bare sandbox is left out.

    In a cluster those are the nodes with its rules, and for a node port the hosts outside. Without
    one, the hosts that have a way out of their own subnet. Not pod hosts then: a pod there answers
    its own node directly, past the node with the DNAT.
    """
    for spec in lab.topology.services:
        if spec.pod not in lab.state.home or lab.topology.pod(spec.pod).image is None:
            continue
        for node in lab.nodes:
            if lab.topology.cluster is not None:
                asks = node.name in spec.nodes
            else:
                asks = bool(node.spec.gateways) and not node.spec.pod_bridge
            if asks:
                for address in spec.addresses:
                    yield _connected(lab, node, f"service {spec.name}", str(address), spec.port)
        if spec.node_port is not None:
            yield from _node_port(lab, spec, spec.node_port)
        for external in map(str, spec.external_addresses):
            for node in lab.nodes:
                if node.name not in spec.nodes and _knows_a_way(lab, node, external):
                    yield _connected(lab, node, f"service {spec.name}", external, spec.port)


def _node_port(lab: Lab, spec: Service, port: int) -> Iterator[Item]:
    home = lab.state.home[spec.pod]
    entries = [home] if spec.external_traffic_policy == "Local" else spec.nodes
    for node in lab.nodes:
        if node.name in spec.nodes:
            continue
        for entry in entries:
            for interface in lab.topology.link_addresses(entry):
                address = str(interface.ip)
                if _knows_a_way(lab, node, address):
                    yield _connected(lab, node, f"service {spec.name} on {entry}", address, port)


def _connected(lab: Lab, node: LabNode, what: str, address: str, port: int) -> Item:
    name = f"{node.name}: {what}, {address} port {port}"
    try:
        reason = node.worker.call(listening.refusal, address, port, timeout=_patience(lab))
    except RefusedError as error:
        reason = str(error)
    return _tried(name, reason)


def _tried(name: str, reason: str | None) -> Item:
    return Item(name, ok=reason is None, found="answers" if reason is None else reason)
