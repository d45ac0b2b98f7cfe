"""A topology as text that a person reads, or as a graph for Graphviz' ``dot``."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from netlab.topology import Node, Service, Topology
from netlab.topology_rules import POD_BRIDGE


@dataclass(frozen=True, slots=True)
class Place:
    """A pod as it is drawn: on which node, with which addresses."""

    pod: str
    node: str
    addresses: tuple[str, ...]


def planned(topology: Topology) -> list[Place]:
    """The pods where the topology has them."""
    return [Place(pod.name, pod.node, tuple(map(str, pod.addresses))) for pod in topology.pods]


def text(topology: Topology, places: Sequence[Place]) -> str:
    """One paragraph for each node, then the Services."""
    paragraphs = ["\n".join(_node(topology, node, places)) for node in topology.nodes]
    paragraphs += [_service(service) for service in topology.services]
    cluster = topology.cluster
    if cluster is not None:
        dropped = ", invalid packets are dropped" if cluster.drop_invalid else ""
        paragraphs.append(
            f"cluster  pods {_joined(cluster.pod_networks)}  "
            f"(masqueraded by their nodes: {cluster.egress}{dropped})"
        )
    return "\n\n".join(paragraphs)


def _service(service: Service) -> str:
    port = f"port {service.port}"
    if service.node_port is not None:
        port += f", node port {service.node_port}"
    if service.node_port is not None or service.external_addresses:
        port += f" ({service.external_traffic_policy})"
    addresses = _joined((*service.addresses, *service.external_addresses))
    return (
        f"service {service.name}  {addresses}  {port}"
        f"  -> pod {service.pod}  (DNAT on {', '.join(service.nodes)})"
    )


def _node(topology: Topology, node: Node, places: Sequence[Place]) -> list[str]:
    lines = [f"{node.name}  (forwards)" if node.forwards else node.name]
    for link in topology.links:
        for end, other in (link.ends, link.ends[::-1]):
            if end.node == node.name:
                delay = "" if link.delay_ms is None else f"  ({link.delay_ms:g} ms)"
                lines.append(
                    f"  {end.device}  {_joined(end.addresses)}"
                    f"  -- {other.node}:{other.device}{delay}"
                )
    lines += [f"  to default via {gateway}" for gateway in node.gateways]
    lines += [f"  to {route.to} via {route.via}" for route in node.routes]
    if node.pod_bridge:
        lines.append(f"  {POD_BRIDGE}  {_joined(node.pod_bridge)}")
    lines += [
        f"    pod {place.pod}  {_joined(place.addresses)}"
        for place in places
        if place.node == node.name
    ]
    return lines


def dot(topology: Topology, places: Sequence[Place]) -> str:
    """The same in Graphviz' language."""
    lines = [f"graph {_quoted(topology.name)} {{", "  node [shape=box];"]
    for node in topology.nodes:
        style = "" if node.forwards else " [shape=ellipse]"
        lines.append(f"  {_quoted(node.name)}{style};")
    for link in topology.links:
        near, far = link.ends
        delay = "" if link.delay_ms is None else f", label={_quoted(f'{link.delay_ms:g} ms')}"
        lines.append(
            f"  {_quoted(near.node)} -- {_quoted(far.node)} "
            f"[taillabel={_quoted(near.device)}, headlabel={_quoted(far.device)}{delay}];"
        )
    for number, place in enumerate(places):
        label = _quoted("\\n".join((f"pod {place.pod}", *place.addresses)))
        lines.append(f"  pod{number} [shape=component, label={label}];")
        lines.append(f"  {_quoted(place.node)} -- pod{number} [style=dotted];")
    for number, service in enumerate(topology.services):
        lines_of_label = [f"service {service.name}", *map(str, service.addresses)]
        lines_of_label += map(str, service.external_addresses)
        if service.node_port is not None:
            lines_of_label.append(f"node port {service.node_port}")
        label = _quoted("\\n".join(lines_of_label))
        lines.append(f"  service{number} [shape=cds, label={label}];")
        lines += [f"  {_quoted(name)} -- service{number} [style=dashed];" for name in service.nodes]
    return "\n".join([*lines, "}"])


def _quoted(word: str) -> str:
    return '"' + word.replace('"', '\\"') + '"'


def _joined(items: Iterable[object]) -> str:
    return " ".join(map(str, items))
