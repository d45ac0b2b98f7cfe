"""What must hold between the fields of a topology.

Pure: a topology in, a list of problems out, each with the path of the field that has to change.
All are found at once, so that a person mends a file in one go.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from netlab.topology import Address, Interface, Network, Topology

POD_BRIDGE = "pods"

Path = tuple[str | int, ...]


class Problem(NamedTuple):
    """A rule that does not hold, and the field that breaks it."""

    path: Path
    text: str


class _Placed(NamedTuple):
    path: Path
    address: Address
    where: str


def problems(topology: Topology) -> list[Problem]:
    """Everything in ``topology`` that does not fit together; empty if it is valid."""
    return [
        *_names(topology),
        *_taken(topology),
        *_links(topology),
        *_subnets(topology),
        *_next_hops(topology),
        *_pods(topology),
        *_services(topology),
        *_cluster(topology),
    ]


def _names(topology: Topology) -> Iterator[Problem]:
    kinds = {
        "nodes": [node.name for node in topology.nodes],
        "pods": [pod.name for pod in topology.pods],
        "services": [service.name for service in topology.services],
    }
    for kind, names in kinds.items():
        for index, name in enumerate(names):
            if name in names[:index]:
                yield Problem((kind, index, "name"), f"name taken: {name}")
    nodes = {node.name for node in topology.nodes}
    for index, pod in enumerate(topology.pods):
        if pod.name in nodes:
            yield Problem(("pods", index, "name"), f"name taken: {pod.name} is a node")


def _addresses(topology: Topology) -> Iterator[_Placed]:
    for i, node in enumerate(topology.nodes):
        for k, bridge in enumerate(node.pod_bridge):
            yield _Placed(
                ("nodes", i, "pod_bridge", k), bridge.ip, f"the pod bridge of {node.name}"
            )
    for i, link in enumerate(topology.links):
        for e, end in enumerate(link.ends):
            for k, interface in enumerate(end.addresses):
                path = ("links", i, "ends", e, "addresses", k)
                yield _Placed(path, interface.ip, f"{end.node}:{end.device}")
    for i, pod in enumerate(topology.pods):
        for k, address in enumerate(pod.addresses):
            yield _Placed(("pods", i, "addresses", k), address, f"pod {pod.name}")
    for i, service in enumerate(topology.services):
        for k, address in enumerate(service.addresses):
            yield _Placed(("services", i, "addresses", k), address, f"service {service.name}")
        for k, address in enumerate(service.external_addresses):
            field: Path = ("services", i, "external_addresses", k)
            yield _Placed(field, address, f"service {service.name}")


def _taken(topology: Topology) -> Iterator[Problem]:
    owners: dict[Address, str] = {}
    for placed in _addresses(topology):
        if placed.address in owners:
            yield Problem(
                placed.path,
                f"address taken: {placed.address} belongs to {owners[placed.address]}",
            )
        owners.setdefault(placed.address, placed.where)
        if (
            placed.address.is_unspecified
            or placed.address.is_multicast
            or placed.address.is_loopback
        ):
            yield Problem(placed.path, f"a unicast address is wanted, found {placed.address}")


def _links(topology: Topology) -> Iterator[Problem]:
    nodes = {node.name for node in topology.nodes}
    devices: set[tuple[str, str]] = set()
    for i, link in enumerate(topology.links):
        for e, end in enumerate(link.ends):
            path: Path = ("links", i, "ends", e)
            if end.node not in nodes:
                yield Problem((*path, "node"), f"no such node: {end.node}")
            if end.device in ("lo", POD_BRIDGE):
                yield Problem((*path, "device"), f"{end.device} is netlab's own device name")
            if (end.node, end.device) in devices:
                yield Problem((*path, "device"), f"device taken: {end.node} has {end.device}")
            devices.add((end.node, end.device))
            others = {interface.network for interface in link.ends[1 - e].addresses}
            for k, interface in enumerate(end.addresses):
                if interface.network not in others:
                    yield Problem(
                        (*path, "addresses", k),
                        f"the other end has no address in {interface.network}",
                    )


def _subnets(topology: Topology) -> Iterator[Problem]:
    """Every link and every pod bridge has a subnet of its own, or routing is a matter of luck."""
    placed: list[tuple[Path, Network]] = []
    for i, node in enumerate(topology.nodes):
        placed += [
            (("nodes", i, "pod_bridge", k), b.network) for k, b in enumerate(node.pod_bridge)
        ]
        yield from _one_of_each_version(
            ("nodes", i, "pod_bridge"), (b.version for b in node.pod_bridge)
        )
    for i, link in enumerate(topology.links):
        placed += [
            (("links", i, "ends", 0, "addresses", k), interface.network)
            for k, interface in enumerate(link.ends[0].addresses)
        ]
    for position, (path, network) in enumerate(placed):
        for _, other in placed[:position]:
            if network.version == other.version and network.overlaps(other):
                yield Problem(path, f"subnet {network} overlaps with {other}")


def _one_of_each_version(path: Path, versions: Iterable[int]) -> Iterator[Problem]:
    for version, count in Counter(versions).items():
        if count > 1:
            yield Problem(path, f"at most one IPv{version} address is wanted, found {count}")


def _interfaces_of(topology: Topology, node: str) -> list[Interface]:
    bridges = [each.pod_bridge for each in topology.nodes if each.name == node]
    return [*topology.link_addresses(node), *(each for bridge in bridges for each in bridge)]


def _next_hops(topology: Topology) -> Iterator[Problem]:
    for i, node in enumerate(topology.nodes):
        own = _interfaces_of(topology, node.name)
        hops: list[tuple[Path, Address]] = [
            (("nodes", i, "gateways", k), gateway) for k, gateway in enumerate(node.gateways)
        ]
        for k, route in enumerate(node.routes):
            hops.append((("nodes", i, "routes", k, "via"), route.via))
            if route.to != "default" and route.to.version != route.via.version:
                yield Problem(
                    ("nodes", i, "routes", k), f"{route.via} cannot be the next hop to {route.to}"
                )
        for path, hop in hops:
            if any(hop == interface.ip for interface in own):
                yield Problem(path, f"{hop} is {node.name}'s own address")
            elif not any(hop in interface.network for interface in own):
                yield Problem(path, f"{hop} is on no subnet of {node.name}")
        defaults = [*node.gateways, *(r.via for r in node.routes if r.to == "default")]
        yield from _one_of_each_version(("nodes", i, "gateways"), (hop.version for hop in defaults))


def _pods(topology: Topology) -> Iterator[Problem]:
    nodes = {node.name: node for node in topology.nodes}
    for i, pod in enumerate(topology.pods):
        node = nodes.get(pod.node)
        if node is None:
            yield Problem(("pods", i, "node"), f"no such node: {pod.node}")
            continue
        if not node.pod_bridge:
            yield Problem(("pods", i, "node"), f"{pod.node} has no pod_bridge")
            continue
        subnets = [bridge.network for bridge in node.pod_bridge]
        yield from _one_of_each_version(
            ("pods", i, "addresses"), (address.version for address in pod.addresses)
        )
        for k, address in enumerate(pod.addresses):
            if not any(usable(address, subnet) for subnet in subnets):
                wanted = " or ".join(str(subnet) for subnet in subnets)
                yield Problem(
                    ("pods", i, "addresses", k), f"a host address of {wanted} is wanted: {address}"
                )
        if pod.image is None:
            for field in ("args", "env", "user", "data_mb"):
                if getattr(pod, field):
                    yield Problem(("pods", i, field), "without an image there is no container")


def usable(address: Address, subnet: Network) -> bool:
    """Whether a host of ``subnet`` may have ``address`` (not its first, nor IPv4's last)."""
    if address not in subnet or address == subnet.network_address:
        return False
    return subnet.version == 6 or address != subnet.broadcast_address


def _services(topology: Topology) -> Iterator[Problem]:
    nodes = {node.name for node in topology.nodes}
    pods = {pod.name: pod for pod in topology.pods}
    for i, service in enumerate(topology.services):
        for k, name in enumerate(service.nodes):
            if name not in nodes:
                yield Problem(("services", i, "nodes", k), f"no such node: {name}")
        yield from _one_of_each_version(
            ("services", i, "addresses"), (address.version for address in service.addresses)
        )
        pod = pods.get(service.pod)
        if pod is None:
            yield Problem(("services", i, "pod"), f"no such pod: {service.pod}")
            continue
        if pod.image is None and pod.port is None:
            yield Problem(
                ("services", i, "pod"), f"pod {pod.name} has no image, and so needs a port"
            )
        versions = {address.version for address in pod.addresses}
        for k, address in enumerate(service.addresses):
            if address.version not in versions:
                yield Problem(
                    ("services", i, "addresses", k),
                    f"pod {pod.name} has no IPv{address.version} address for {address} to lead to",
                )


def _cluster(topology: Topology) -> Iterator[Problem]:
    yield from _from_outside(topology)
    cluster = topology.cluster
    if cluster is None:
        return
    networks = cluster.pod_networks
    yield from _one_of_each_version(
        ("cluster", "pod_networks"), (each.version for each in networks)
    )
    for i, node in enumerate(topology.nodes):
        for k, bridge in enumerate(node.pod_bridge):
            if not any(_within(bridge.network, network) for network in networks):
                yield Problem(
                    ("nodes", i, "pod_bridge", k),
                    f"{bridge.network} is not of the cluster's pod networks",
                )
    for i, service in enumerate(topology.services):
        for field in ("addresses", "external_addresses"):
            for k, address in enumerate(getattr(service, field)):
                if any(address in network for network in networks):
                    yield Problem(
                        ("services", i, field, k), f"{address} is of the cluster's pod networks"
                    )


def _from_outside(topology: Topology) -> Iterator[Problem]:
    owners: dict[int, str] = {}
    for i, service in enumerate(topology.services):
        external = service.external_addresses
        yield from _one_of_each_version(
            ("services", i, "external_addresses"), (address.version for address in external)
        )
        if external and topology.cluster is None:
            yield Problem(
                ("services", i, "external_addresses"), "they are for a topology with a cluster"
            )
        if service.node_port is None:
            if service.external_traffic_policy == "Local" and not external:
                yield Problem(
                    ("services", i, "external_traffic_policy"),
                    "Local is for a node_port or external_addresses",
                )
            continue
        path: Path = ("services", i, "node_port")
        if topology.cluster is None:
            yield Problem(path, "a node port is for a topology with a cluster")
        if service.node_port in owners:
            yield Problem(
                path,
                f"node port taken: {service.node_port} belongs to {owners[service.node_port]}",
            )
        owners.setdefault(service.node_port, f"service {service.name}")


def _within(network: Network, other: Network) -> bool:
    return (
        network.version == other.version
        and network.network_address in other
        and network.prefixlen >= other.prefixlen
    )
