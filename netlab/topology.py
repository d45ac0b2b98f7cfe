"""What a lab is to look like: nodes, links, pods and Services, read from a YAML file.

The models here say which fields there are; what must hold *between* fields (an address is taken
once, a gateway can be reached, ...) is in ``topology_rules``. A ``Topology`` that exists is valid,
so whoever brings a lab up does not check again. All models are frozen.
"""

import ipaddress
import json
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import pydantic
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from mycoproxy.errors import UsageError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_SHIPPED = Path(__file__).parent / "topologies"


def _address(value: object) -> Address:
    if isinstance(value, Address):
        return value
    try:
        return ipaddress.ip_address(str(value))
    except ValueError:
        raise ValueError(f"an IPv4 or IPv6 address is wanted, found {value!r}") from None


def _interface(value: object) -> Interface:
    if isinstance(value, Interface):
        return value
    try:
        if "/" in str(value):
            return ipaddress.ip_interface(str(value))
    except ValueError:
        pass
    raise ValueError(f"an address with its prefix length (192.0.2.1/24) is wanted, found {value!r}")


def _destination(value: object) -> Network | Literal["default"]:
    if value == "default" or isinstance(value, Network):
        return value
    try:
        return ipaddress.ip_network(str(value))
    except ValueError as error:
        raise ValueError(f"a network (192.0.2.0/24) or 'default' is wanted: {error}") from None


def _network(value: object) -> Network:
    if isinstance(value, Network):
        return value
    try:
        return ipaddress.ip_network(str(value))
    except ValueError as error:
        raise ValueError(f"a network (192.0.2.0/24) is wanted: {error}") from None


def _text(validator: Any, example: str) -> tuple[Any, ...]:  # noqa: ANN401
    """A field that is text in YAML and JSON and an ``ipaddress`` object in the model."""
    return (
        BeforeValidator(validator, json_schema_input_type=str),
        PlainSerializer(str),
        Field(examples=[example]),
    )


AddressText = Annotated[Address, *_text(_address, "192.0.2.1")]
InterfaceText = Annotated[Interface, *_text(_interface, "192.0.2.1/24")]
NetworkText = Annotated[Network, *_text(_network, "10.244.0.0/16")]
DestinationText = Annotated[Network | Literal["default"], *_text(_destination, "192.0.2.0/24")]

# A lab's name has no hyphen: it ends at the first one in a namespace's name (nl-LAB-NODE).
LabName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,19}$", examples=["demo"])]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,19}$", examples=["alpha"])]
Device = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.-]{0,14}$", examples=["eth0"])]
Port = Annotated[int, Field(ge=1, le=65535)]
DelayMs = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False, examples=[20])]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Route(_Model):
    """One route of a node."""

    to: DestinationText = Field(description="destination network, or 'default'")
    via: AddressText = Field(description="next hop; must be on one of the node's own subnets")


class Node(_Model):
    """A machine of the lab: one network namespace."""

    name: Name
    forwards: bool = Field(default=False, description="forwards packets (router, pod host)")
    gateways: tuple[AddressText, ...] = Field(
        default=(), description="default gateways, at most one for IPv4 and one for IPv6"
    )
    routes: tuple[Route, ...] = ()
    pod_bridge: tuple[InterfaceText, ...] = Field(
        default=(),
        description="addresses of the bridge that this node's pods hang on: the pods' gateways, "
        "their subnets the node's pod subnets; at most one for IPv4 and one for IPv6",
    )


class LinkEnd(_Model):
    """Where a link enters a node."""

    node: Name
    device: Device = Field(description="name of the network device in the node")
    addresses: tuple[InterfaceText, ...] = Field(min_length=1)


class Link(_Model):
    """A wire between two nodes: a veth pair or, with a delay, two TAP devices and a process."""

    ends: tuple[LinkEnd, LinkEnd]
    delay_ms: DelayMs | None = Field(
        default=None,
        description="how long a frame takes, one way, in milliseconds; the round trip is twice "
        "that. Nothing is lost or reordered. Default: no delay",
    )


class PodSpec(_Model):
    """A runc container with a network namespace of its own, on the pod bridge of its node."""

    name: Name
    node: Name
    image: str | None = Field(
        default=None,
        description="one of netlab's images; none: a sandbox without a container, in which "
        "whoever uses the lab starts programs",
        examples=["redis"],
    )
    addresses: tuple[AddressText, ...] = Field(
        min_length=1, max_length=2, description="one for IPv4, IPv6 or both, of the pod subnets"
    )
    port: Port | None = Field(default=None, description="what it listens on; default: the image's")
    args: tuple[str, ...] = Field(default=(), description="appended to the image's command line")
    env: dict[str, str] = Field(default_factory=dict)
    user: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="user and group id it runs as; default: the image's"
    )
    data_mb: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="size limit of the tmpfs on /data, MiB; default: the image's"
    )


class Service(_Model):
    """Virtual addresses that lead to a pod by DNAT, as kube-proxy does it."""

    name: Name
    addresses: tuple[AddressText, ...] = Field(min_length=1, max_length=2)
    port: Port
    pod: Name
    nodes: tuple[Name, ...] = Field(min_length=1, description="the nodes that do the DNAT")
    node_port: Port | None = Field(
        default=None, description="a port of every one of these nodes that leads to it, too"
    )
    external_addresses: tuple[AddressText, ...] = Field(
        default=(),
        max_length=2,
        description="a load balancer's, whose packets come to a node unchanged (as MetalLB's do): "
        "that node treats them as it treats those to its node port",
    )
    external_traffic_policy: Literal["Cluster", "Local"] = Field(
        default="Cluster",
        description="of the node port and the external addresses. Cluster: every node leads to "
        "the pod, and masquerades. Local: only the pod's own node does, and the pod sees the "
        "client's address",
    )


class Cluster(_Model):
    """What kube-proxy and the network plugin do on the nodes with pods, beyond plain DNAT.

    kube-proxy's: masquerading of what comes to a Service from no pod, by a node port, or back to
    the pod that sent it; and dropping what conntrack calls invalid. The plugin's: ``egress``.
    """

    pod_networks: tuple[NetworkText, ...] = Field(
        min_length=1, description="of all nodes' pods together; at most one for each IP version"
    )
    egress: Literal["none", "outside", "outside-and-nodes"] = Field(
        default="outside-and-nodes",
        description="which connections of a pod its node masquerades: those to the outside, as "
        "Cilium and ip-masq-agent do, or those to other nodes too, as flannel, kindnet and Calico",
    )
    drop_invalid: bool = Field(
        default=True,
        description="drop forwarded packets that belong to no connection conntrack knows, as "
        "kube-proxy does unless told that conntrack is liberal",
    )


class Topology(_Model):
    """A lab. See ``netlab/topologies/``: ``demo``; with a cluster ``kube-service``, ``peers``."""

    name: LabName = Field(description="the lab's name, unless `netlab up --name` gives another")
    nodes: tuple[Node, ...] = Field(min_length=1)
    cluster: Cluster | None = Field(
        default=None, description="none: Services do DNAT and nothing else"
    )
    links: tuple[Link, ...] = ()
    pods: tuple[PodSpec, ...] = ()
    services: tuple[Service, ...] = ()

    @model_validator(mode="after")
    def _hold_together(self) -> Self:
        # Imported here because the rules need the models.
        from netlab.topology_rules import problems  # noqa: PLC0415

        found = problems(self)
        if found:
            raise TopologyProblemsError([(problem.path, problem.text) for problem in found])
        return self

    def node(self, name: str) -> Node:
        """The node of that name. Raises ``UsageError``."""
        return _named(self.nodes, name, "node")

    def pod(self, name: str) -> PodSpec:
        """The pod of that name. Raises ``UsageError``."""
        return _named(self.pods, name, "pod")

    def service(self, name: str) -> Service:
        """The Service of that name. Raises ``UsageError``."""
        return _named(self.services, name, "service")

    def link_addresses(self, node: str) -> tuple[Interface, ...]:
        """The node's addresses on its links, the first link's first."""
        ends = (end for link in self.links for end in link.ends if end.node == node)
        return tuple(interface for end in ends for interface in end.addresses)

    def delayed_links(self) -> tuple[Link, ...]:
        """The links that have a delay."""
        return tuple(link for link in self.links if link.delay_ms is not None)

    def pod_host(self, address: Address) -> str | None:
        """The node that ``address`` is a pod's on, if it is one of a pod subnet."""
        for node in self.nodes:
            if any(address in bridge.network for bridge in node.pod_bridge):
                return node.name
        return None


def delayed(
    topology: Topology, delay_ms: float | None, *, nodes: Collection[str] | None = None
) -> Topology:
    """The same topology with this one-way delay on its links; ``None`` takes their delay away.

    ``nodes``: on links of these nodes only, the others stay as they are. Raises ``UsageError`` for
    a node that is not there, or a delay out of range.
    """
    for name in nodes or ():
        topology.node(name)
    chosen = {node.name for node in topology.nodes} if nodes is None else set(nodes)
    try:
        links = [
            Link(ends=link.ends, delay_ms=delay_ms)
            if any(end.node in chosen for end in link.ends)
            else link
            for link in topology.links
        ]
    except pydantic.ValidationError as error:
        raise UsageError(
            f"delay_ms: more than 0 and at most 1000 milliseconds are wanted, found {delay_ms}"
        ) from error
    return topology.model_copy(update={"links": tuple(links)})


class TopologyProblemsError(ValueError):
    """Rules between fields that do not hold: (field path, what is wrong) each."""

    def __init__(self, problems: list[tuple[tuple[str | int, ...], str]]) -> None:
        super().__init__("; ".join(f"{field_path(path)}: {text}" for path, text in problems))
        self.problems = problems


N = TypeVar("N", Node, PodSpec, Service)


def _named(items: tuple[N, ...], name: str, kind: str) -> N:
    for item in items:
        if item.name == name:
            return item
    known = ", ".join(item.name for item in items) or "none"
    raise UsageError(f"no {kind} {name!r} in this topology (there are: {known})")


def field_path(path: tuple[str | int, ...]) -> str:
    """``("links", 0, "ends")`` as a person writes it: ``links[0].ends``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def load(path: Path) -> Topology:
    """Read and check a topology file; a bare name means one that comes with netlab.

    Raises ``UsageError`` with one line for each problem: file, line, field, what is wanted.
    """
    file = path
    if not file.exists() and file.name == str(path) and not file.suffix:
        file = _SHIPPED / f"{path}.yaml"
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        shipped = ", ".join(sorted(each.stem for each in _SHIPPED.glob("*.yaml")))
        raise UsageError(
            f"cannot read topology {path}: {error} (a YAML file is wanted, or one of: {shipped})"
        ) from error
    return parse(text, origin=str(file))


def parse(text: str, *, origin: str) -> Topology:
    """The topology in ``text``; ``origin`` is what errors call it. Raises ``UsageError``."""
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{origin}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise UsageError(
            f"{origin}: a mapping with 'name' and 'nodes' is wanted, found {type(data).__name__}"
        )
    try:
        return Topology.model_validate(data)
    except pydantic.ValidationError as error:
        lines = [
            f"{origin}:{_line_of(tree, path)}: {field_path(path) or 'topology'}: {text}"
            for path, text in _flatten(error)
        ]
        raise UsageError("\n".join(lines)) from error


def schema() -> str:
    """The JSON Schema of a topology file, as text."""
    return json.dumps(Topology.model_json_schema(), indent=2)


def _flatten(error: pydantic.ValidationError) -> list[tuple[tuple[str | int, ...], str]]:
    flat: list[tuple[tuple[str | int, ...], str]] = []
    for item in error.errors(include_url=False):
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, TopologyProblemsError):
            flat += cause.problems
        elif item["type"] == "extra_forbidden":
            flat.append((item["loc"], "no such field"))
        elif item["type"] == "string_pattern_mismatch":
            pattern = item["ctx"]["pattern"]
            flat.append((item["loc"], f"{item['input']!r} does not match {pattern}"))
        else:
            message = item["msg"].removeprefix("Value error, ")
            flat.append((item["loc"], message[:1].lower() + message[1:]))
    return flat


def _line_of(tree: yaml.Node | None, path: tuple[str | int, ...]) -> int:
    """The line (from 1) of the field, or of the nearest thing around it that is there."""
    line = tree.start_mark.line + 1 if tree else 1
    for part in path:
        child = None
        if isinstance(tree, yaml.MappingNode):
            for key, value in tree.value:
                if key.value == part:
                    child, line = value, key.start_mark.line + 1
        elif isinstance(tree, yaml.SequenceNode) and part in range(len(tree.value)):
            child = tree.value[int(part)]
            line = child.start_mark.line + 1
        if child is None:
            break
        tree = child
    return line
