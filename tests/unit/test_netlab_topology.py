"""Topology files: what is accepted, and how mistakes are told."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pydantic
import pytest

from mycoproxy.errors import UsageError
from netlab import topology
from netlab.topology import Topology, delayed, load, parse

DEMO = (Path(topology.__file__).parent / "topologies" / "demo.yaml").read_text()

KUBE_SERVICE = (Path(topology.__file__).parent / "topologies" / "kube-service.yaml").read_text()


def replaced(old: str, new: str) -> str:
    assert old in DEMO
    return DEMO.replace(old, new)


def test_shipped_demo_is_valid_and_found_by_its_bare_name() -> None:
    demo = load(Path("demo"))
    assert demo.name == "demo"
    assert {node.name for node in demo.nodes} == {"alpha", "beta", "router", "client", "neighbour"}
    assert demo.node("router").forwards
    assert not demo.node("client").forwards


def test_shipped_peers_has_a_client_on_each_peer_and_a_service_on_every_worker() -> None:
    peers = load(Path("peers"))
    workers = [node.name for node in peers.nodes if node.pod_bridge]
    assert workers == ["alpha", "beta", "p1", "p2", "p3", "p4", "p5"]
    assert all(peers.pod(f"client-{name}").node == name for name in workers[2:])
    assert peers.pod("workload").node == "alpha"
    assert list(peers.service("workload").nodes) == workers


def test_demo_pod_hosts_have_different_pod_subnets_for_both_ip_versions() -> None:
    demo = load(Path("demo"))
    alpha, beta = demo.node("alpha"), demo.node("beta")
    assert [bridge.version for bridge in alpha.pod_bridge] == [4, 6]
    assert not {b.network for b in alpha.pod_bridge} & {b.network for b in beta.pod_bridge}


def test_a_delay_is_given_to_all_links_or_to_those_of_some_nodes() -> None:
    peers = load(Path("peers"))
    assert peers.delayed_links() == ()
    everywhere = delayed(peers, 20)
    assert [link.delay_ms for link in everywhere.links] == [20.0] * 7
    mixed = delayed(everywhere, 0.5, nodes=["p2", "beta"])
    assert [link.delay_ms for link in mixed.links] == [20, 0.5, 20, 0.5, 20, 20, 20]
    assert Topology.model_validate_json(mixed.model_dump_json()) == mixed
    assert delayed(mixed, None) == peers


@pytest.mark.parametrize("delay", [0, -1, 1001, math.nan, math.inf])
def test_a_delay_out_of_range_is_refused(delay: float) -> None:
    with pytest.raises(UsageError, match="delay_ms: more than 0 and at most 1000"):
        delayed(load(Path("peers")), delay)


def test_a_delay_of_a_node_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="no node 'p9'"):
        delayed(load(Path("peers")), 20, nodes=["p9"])


def test_a_link_of_a_file_has_a_delay() -> None:
    text = DEMO.replace("  - ends:", "  - delay_ms: 2.5\n    ends:", 1)
    assert parse(text, origin="x.yaml").links[0].delay_ms == 2.5
    with pytest.raises(UsageError, match=r"^x\.yaml:\d+: links\[0\]\.delay_ms: .* greater than 0"):
        parse(text.replace("2.5", "0"), origin="x.yaml")


def test_topology_survives_json() -> None:
    demo = parse(DEMO, origin="demo")
    assert Topology.model_validate_json(demo.model_dump_json()) == demo


def test_topology_cannot_be_changed() -> None:
    demo = parse(DEMO, origin="demo")
    with pytest.raises(pydantic.ValidationError):
        demo.nodes[0].name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        pytest.param(
            replaced("192.0.2.18/28", "192.0.2.2/28"),
            r"^x\.yaml:\d+: links\[1\]\.ends\[1\]\.addresses\[0\]: "
            r"address taken: 192\.0\.2\.2 belongs to alpha:eth0$",
            id="address twice",
        ),
        pytest.param(
            replaced("    port: 6379\n\nservices", "    prt: 6379\n\nservices"),
            r"^x\.yaml:\d+: pods\[0\]\.prt: no such field$",
            id="unknown field",
        ),
        pytest.param(
            replaced("port: 6379\n    pod", "port: 70000\n    pod"),
            r"services\[0\]\.port: .*less than or equal to 65535",
            id="port out of range",
        ),
        pytest.param(
            replaced("10.244.1.2,", "10.244.9.2,"),
            r"pods\[0\]\.addresses\[0\]: a host address of 10\.244\.1\.0/24 .* is wanted",
            id="pod outside its subnet",
        ),
        pytest.param(
            replaced("10.244.1.2,", "10.244.1.1,"),
            r"address taken: 10\.244\.1\.1 belongs to the pod bridge of alpha",
            id="pod with its gateway's address",
        ),
        pytest.param(
            replaced("node: alpha\n    image", "node: client\n    image"),
            r"pods\[0\]\.node: client has no pod_bridge",
            id="pod on a node without a bridge",
        ),
        pytest.param(
            replaced("gateways: [192.0.2.17,", "gateways: [192.0.2.99,"),
            r"nodes\[1\]\.gateways\[0\]: 192\.0\.2\.99 is on no subnet of beta",
            id="gateway out of reach",
        ),
        pytest.param(
            replaced("gateways: [192.0.2.17, 2001", "gateways: [192.0.2.17, 192.0.2.19, 2001"),
            r"nodes\[1\]\.gateways: at most one IPv4 address is wanted, found 2",
            id="two default gateways",
        ),
        pytest.param(
            replaced("via: 192.0.2.18}", "via: 2001:db8:0:2::2}"),
            r"nodes\[2\]\.routes\[2\]: 2001:db8:0:2::2 cannot be the next hop to 10\.244\.2\.0/24",
            id="next hop of the other IP version",
        ),
        pytest.param(
            replaced("pod: redis", "pod: postgres"),
            r"services\[0\]\.pod: no such pod: postgres",
            id="service without a pod",
        ),
        pytest.param(
            replaced("nodes: [router]", "nodes: [ruter]"),
            r"services\[0\]\.nodes\[0\]: no such node: ruter",
            id="service on no node",
        ),
        pytest.param(
            replaced("[10.244.1.2, 2001:db8:244:1::2]", "[10.244.1.2]"),
            r"services\[0\]\.addresses\[1\]: pod redis has no IPv6 address",
            id="service of a version that the pod lacks",
        ),
        pytest.param(
            replaced("device: eth0, addresses: [192.0.2.18", "device: lo, addresses: [192.0.2.18"),
            r"links\[1\]\.ends\[1\]\.device: lo is netlab's own device name",
            id="reserved device",
        ),
        pytest.param(
            replaced("{node: router, device: beta", "{node: router, device: alpha"),
            r"links\[1\]\.ends\[0\]\.device: device taken: router has alpha",
            id="device twice",
        ),
        pytest.param(
            replaced("device: neighbour", "device: neighbour-is-too-long"),
            r"links\[3\]\.ends\[0\]\.device: 'neighbour-is-too-long' does not match",
            id="device name too long",
        ),
        pytest.param(
            replaced("pod_bridge: [10.244.2.1/24", "pod_bridge: [10.244.1.77/24"),
            r"nodes\[1\]\.pod_bridge\[0\]: subnet 10\.244\.1\.0/24 overlaps with 10\.244\.1\.0/24",
            id="subnet twice",
        ),
        pytest.param(
            replaced("- name: neighbour", "- name: client"),
            r"nodes\[4\]\.name: name taken: client",
            id="name twice",
        ),
        pytest.param(
            replaced("192.0.2.2/28", "192.0.2.2"),
            r"links\[0\]\.ends\[1\]\.addresses\[0\]: an address with its prefix length",
            id="no prefix length",
        ),
        pytest.param(
            replaced("name: demo", "name: my-demo"),
            r"x\.yaml:11: name: 'my-demo' does not match",
            id="hyphen in lab name",
        ),
        pytest.param("nodes: [", r"^x\.yaml: not YAML: ", id="not YAML"),
        pytest.param("- a\n- b\n", r"a mapping with 'name' and 'nodes' is wanted", id="a list"),
        pytest.param("", r"a mapping .* is wanted, found NoneType", id="empty"),
    ],
)
def test_mistake_is_told_with_file_field_and_what_is_wanted(text: str, wanted: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text, origin="x.yaml")
    assert re.search(wanted, str(caught.value), re.MULTILINE)


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        pytest.param(
            "10.244.0.0/16, 2001",
            "10.0.0.0/16, 2001",
            r"nodes\[0\]\.pod_bridge\[0\]: 10\.244\.1\.0/24 is not of the cluster's pod networks",
            id="pods outside the pod networks",
        ),
        pytest.param(
            "10.96.0.10",
            "10.244.9.10",
            r"services\[0\]\.addresses\[0\]: 10\.244\.9\.10 is of the cluster's pod networks",
            id="virtual address among the pods'",
        ),
        pytest.param(
            "node_port: 30081",
            "node_port: 30080",
            r"services\[1\]\.node_port: node port taken: 30080 belongs to service workload$",
            id="node port twice",
        ),
        pytest.param(
            "external_addresses: [192.0.2.65, ",
            "external_addresses: [192.0.2.2, ",
            r"external_addresses\[0\]: address taken: 192\.0\.2\.2 belongs to alpha:eth0",
            id="external address taken",
        ),
        pytest.param(
            "external_addresses: [192.0.2.65, 2001",
            "external_addresses: [192.0.2.65, 192.0.2.66] # [2001",
            r"external_addresses: at most one IPv4 address is wanted, found 2",
            id="two external addresses",
        ),
        pytest.param(
            "    node_port: 30081\n",
            "",
            r"services\[1\]\.external_traffic_policy: Local is for a node_port or external_",
            id="local without a node port",
        ),
        pytest.param(
            "node: gamma, port: 7000",
            "node: gamma",
            r"services\[2\]\.pod: pod backend has no image, and so needs a port",
            id="service of a sandbox without a port",
        ),
        pytest.param(
            "{name: client-alpha, ",
            "{name: client-alpha, args: [x], ",
            r"pods\[1\]\.args: without an image there is no container",
            id="arguments of a sandbox",
        ),
        pytest.param(
            "egress: outside-and-nodes",
            "egress: nowhere",
            r"cluster\.egress: input should be 'none', 'outside' or 'outside-and-nodes'",
            id="unknown egress",
        ),
    ],
)
def test_mistake_in_a_cluster_is_told(old: str, new: str, wanted: str) -> None:
    assert old in KUBE_SERVICE
    with pytest.raises(UsageError) as caught:
        parse(KUBE_SERVICE.replace(old, new), origin="x.yaml")
    assert re.search(wanted, str(caught.value), re.MULTILINE)


def test_node_port_without_a_cluster_is_refused() -> None:
    text = replaced("nodes: [router]", "nodes: [router]\n    node_port: 30080")
    with pytest.raises(UsageError, match="a node port is for a topology with a cluster"):
        parse(text, origin="x.yaml")


def test_error_names_the_line_of_the_field() -> None:
    text = replaced("192.0.2.18/28", "192.0.2.2/28")
    line = next(i for i, each in enumerate(text.splitlines(), 1) if "node: beta, device" in each)
    with pytest.raises(UsageError, match=rf"x\.yaml:{line}: links\[1\]\.ends\[1\]"):
        parse(text, origin="x.yaml")


def test_all_mistakes_are_told_at_once() -> None:
    text = replaced("pod: redis", "pod: a").replace("nodes: [router]", "nodes: [b]")
    with pytest.raises(UsageError) as caught:
        parse(text, origin="x.yaml")
    assert len(str(caught.value).splitlines()) == 2


def test_missing_file_names_the_topologies_that_come_with_netlab() -> None:
    with pytest.raises(UsageError, match="one of: demo"):
        load(Path("nonesuch"))


@pytest.mark.parametrize("lookup", [Topology.node, Topology.pod, Topology.service])
def test_unknown_name_lists_the_known_ones(lookup: Callable[[Topology, str], object]) -> None:
    with pytest.raises(UsageError, match="there are: "):
        lookup(load(Path("demo")), "nonesuch")


def test_schema_describes_every_field_as_text_or_number() -> None:
    described = json.loads(topology.schema())
    assert described["properties"]["nodes"]["minItems"] == 1
    models = {"Cluster", "Link", "LinkEnd", "Node", "PodSpec", "Route", "Service"}
    assert set(described["$defs"]) == models
    bridge = described["$defs"]["Node"]["properties"]["pod_bridge"]["items"]
    assert bridge["type"] == "string"
    assert described["$defs"]["Node"]["additionalProperties"] is False
