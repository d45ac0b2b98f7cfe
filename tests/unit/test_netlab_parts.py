"""The decisions in netlab that need no kernel: names, addresses, rules, formats."""

import ipaddress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mycoproxy.errors import MycoError, UsageError
from netlab import (
    allocation,
    bundle,
    graph,
    icmp,
    images,
    layout,
    listing,
    mounts,
    services,
    topology,
)
from netlab.layout import Layout
from netlab.topology import Address, Topology, load
from netlab.topology_rules import usable

BRIDGE = ipaddress.ip_interface("10.1.1.1/29")


def address(text: str) -> Address:
    return ipaddress.ip_address(text)


def test_next_address_follows_the_last_one_given_out() -> None:
    assert allocation.next_free(BRIDGE, set(), address("10.1.1.3")) == address("10.1.1.4")


def test_first_address_skips_network_and_gateway() -> None:
    assert allocation.next_free(BRIDGE, set(), None) == address("10.1.1.2")


def test_allocation_wraps_round_past_broadcast_network_and_gateway() -> None:
    assert allocation.next_free(BRIDGE, set(), address("10.1.1.6")) == address("10.1.1.2")


def test_full_subnet_is_an_error() -> None:
    used = {address(f"10.1.1.{last}") for last in range(2, 7)}
    with pytest.raises(MycoError, match=r"no free address in 10\.1\.1\.0/29"):
        allocation.next_free(BRIDGE, used, None)


@settings(deadline=None, database=None)
@given(
    prefix=st.integers(24, 30),
    used=st.sets(st.integers(0, 255)),
    last=st.none() | st.integers(0, 255),
)
def test_an_address_is_found_if_and_only_if_there_is_one(
    prefix: int, used: set[int], last: int | None
) -> None:
    bridge = ipaddress.ip_interface(f"10.0.0.1/{prefix}")
    taken = {address(f"10.0.0.{each}") for each in used}
    free = {each for each in bridge.network if usable(each, bridge.network)} - taken - {bridge.ip}
    after = None if last is None else address(f"10.0.0.{last}")
    if free:
        assert allocation.next_free(bridge, taken, after) in free
    else:
        with pytest.raises(MycoError):
            allocation.next_free(bridge, taken, after)


def test_allocation_in_an_ipv6_subnet_does_not_walk_through_it() -> None:
    bridge = ipaddress.ip_interface("2001:db8::1/64")
    last = address("2001:db8::ffff:ffff:ffff:ffff")
    assert allocation.next_free(bridge, set(), last) == address("2001:db8::2")


def test_names_of_different_labs_nodes_and_pods_differ() -> None:
    paths = {
        Layout("a").netns("b"),
        Layout("a").netns("b-c"),
        Layout("a").netns("b", "c"),
        Layout("a_b").netns("c"),
        Layout("ab").netns("c"),
    }
    assert len(paths) == 5


@pytest.mark.parametrize("name", ["demo", "a_b", "x1"])
def test_lab_is_recognised_by_a_namespace_name(name: str) -> None:
    assert layout.lab_of_namespace(Layout(name).netns("node-1", "pod-2").name) == name


@pytest.mark.parametrize("name", ["alpha", "nl-", "nl-demo", "nl-Demo-alpha", "xnl-demo-alpha"])
def test_foreign_namespace_belongs_to_no_lab(name: str) -> None:
    assert layout.lab_of_namespace(name) is None


@pytest.mark.parametrize("name", ["", "a-b", "../x", "A", "1a", "a" * 21, "a/b"])
def test_impossible_lab_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a lab's name"):
        Layout(name)


def test_ldd_output_gives_libraries_and_loader_but_not_the_vdso() -> None:
    output = (
        "\tlinux-vdso.so.1 (0x00007ffd)\n"
        "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n"
        "\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n"
    )
    assert images.parse_ldd(output) == [
        "/lib/x86_64-linux-gnu/libc.so.6",
        "/lib64/ld-linux-x86-64.so.2",
    ]


def test_ldd_of_a_static_program_gives_nothing() -> None:
    assert images.parse_ldd("\tstatically linked\n") == []


def test_missing_library_is_named() -> None:
    with pytest.raises(MycoError, match=r"liblua5\.1\.so\.0 is not found"):
        images.parse_ldd("\tliblua5.1.so.0 => not found\n")


def test_unknown_image_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="there are: redis"):
        images.image("nonesuch")


def test_mountinfo_with_optional_fields_and_escapes_is_read() -> None:
    line = r"36 35 98:0 /root\040x /mnt/a\040b rw master:1 shared:2 - cgroup none rw,freezer" + "\n"
    (mount,) = mounts.parse(line)
    assert mount.target == Path("/mnt/a b")
    assert (mount.root, mount.kind) == ("/root x", "cgroup")
    assert mount.options == {"rw", "freezer"}


def oci_config(user: int) -> dict[str, object]:
    return bundle.config(
        bundle.Process(argv=("/bin/server",), env={"A": "1"}, user=user, data_mb=8),
        hostname="pod",
        rootfs=Path("/rootfs"),
        netns=Path("/run/netns/x"),
        cgroup="/netlab/lab/node/pod",
    )


def test_container_joins_the_sandbox_and_has_its_other_namespaces_itself() -> None:
    config = oci_config(user=999)
    assert isinstance(config["linux"], dict)
    assert config["linux"]["namespaces"] == [
        {"type": "pid"},
        {"type": "mount"},
        {"type": "uts"},
        {"type": "ipc"},
        {"type": "network", "path": "/run/netns/x"},
    ]
    assert config["linux"]["cgroupsPath"] == "/netlab/lab/node/pod"
    assert config["root"] == {"path": "/rootfs", "readonly": True}


def test_only_root_has_capabilities() -> None:
    for user, expected in ((0, True), (999, False)):
        process = oci_config(user)["process"]
        assert isinstance(process, dict)
        assert bool(process["capabilities"]["effective"]) is expected
        assert process["terminal"] is False


def rules_of(topology: Topology, node: str, service: str, targets: list[str]) -> list[str]:
    spec = topology.service(service)
    text = services.target_rules("t", topology, node, spec, addresses=targets, port=80)
    return text.splitlines()


def test_service_rules_are_one_transaction_for_both_ip_versions() -> None:
    assert rules_of(load(Path("demo")), "router", "redis", ["10.1.1.2", "2001:db8::2"]) == [
        "flush chain inet t service-redis",
        "add rule inet t service-redis ip daddr 10.96.0.10 tcp dport 6379 dnat ip to 10.1.1.2:80",
        "add rule inet t service-redis ip6 daddr 2001:db8:96::10 tcp dport 6379 "
        "dnat ip6 to [2001:db8::2]:80",
    ]


def test_service_with_two_targets_of_one_version_is_refused() -> None:
    with pytest.raises(UsageError, match="one IPv4 target is wanted"):
        rules_of(load(Path("demo")), "router", "redis", ["10.1.1.2", "10.1.1.3"])


@pytest.mark.parametrize("node", ["alpha", "beta", "gamma"])
def test_local_node_port_leads_to_the_pod_only_on_the_pods_own_node(node: str) -> None:
    rules = rules_of(load(Path("kube-service")), node, "workload-local", ["10.244.2.9"])
    end = "dnat ip to 10.244.2.9:80" if node == "beta" else "tcp dport 30081 drop"
    assert rules[-1].endswith(end)
    assert not any("192.0.2.65" in rule for rule in rules)
    assert sum(rule.endswith("drop") for rule in rules) == (node != "beta")


def test_connections_to_a_virtual_address_are_masqueraded_unless_a_pod_opened_them() -> None:
    rules = rules_of(load(Path("kube-service")), "alpha", "backend", ["10.244.3.3"])
    assert [rule.partition("dport 80 ")[2] for rule in rules[1:]] == [
        "ip saddr 10.244.3.3 meta mark set meta mark | 0x4000",
        "ip saddr != 10.244.0.0/16 meta mark set meta mark | 0x4000",
        "dnat ip to 10.244.3.3:80",
    ]


def test_external_address_is_treated_as_the_node_port() -> None:
    rules = rules_of(load(Path("kube-service")), "gamma", "workload", ["10.244.1.2"])
    match = "ip daddr 192.0.2.65 tcp dport 80 "
    assert [rule.partition(match)[2] for rule in rules if match in rule] == [
        "meta mark set meta mark | 0x4000",
        "dnat ip to 10.244.1.2:80",
    ]


@pytest.mark.parametrize(
    ("egress", "spared"),
    [
        ("outside-and-nodes", "10.244.0.0/16, 224.0.0.0/4 "),
        ("outside", "10.244.0.0/16, 224.0.0.0/4, 192.0.2.2, 192.0.2.18, 192.0.2.34 "),
        ("none", None),
    ],
)
def test_what_pods_send_is_masqueraded_as_the_topology_says(
    egress: str, spared: str | None
) -> None:
    text = (Path(topology.__file__).parent / "topologies" / "kube-service.yaml").read_text()
    text = text.replace("egress: outside-and-nodes", f"egress: {egress}")
    parsed = topology.parse(text, origin="kube-service")
    targets = {service.name: ((), 80) for service in parsed.services}
    rules = services.ruleset("t", parsed, "alpha", targets)
    assert ("ip saddr 10.244.0.0/16 ip daddr !=" in rules) is (spared is not None)
    if spared is not None:
        assert f"ip daddr != {{ {spared}}} masquerade" in rules
    assert services.ruleset("t", parsed, "router", targets) == ""


def test_graph_shows_node_ports_and_what_the_cluster_does() -> None:
    kube = load(Path("kube-service"))
    drawn = graph.text(kube, graph.planned(kube))
    assert "node port 30081 (Local)" in drawn
    assert "192.0.2.65 2001:db8:0:4::1  port 80, node port 30080 (Cluster)" in drawn
    assert "masqueraded by their nodes: outside-and-nodes" in drawn
    assert "node port 30080" in graph.dot(kube, [])


def test_checksum_of_a_message_with_its_checksum_is_zero() -> None:
    assert icmp.internet_checksum(icmp.echo_request(4, 77, 1)) == 0


def test_only_the_answer_to_this_request_counts() -> None:
    header = bytes([0x45]) + bytes(19)
    reply = bytes([0, 0, 0, 0, 0, 77, 0, 1])
    assert icmp.is_reply(4, header + reply, 77, 1)
    assert not icmp.is_reply(4, header + reply, 77, 2)
    assert not icmp.is_reply(4, header + icmp.echo_request(4, 77, 1), 77, 1)
    assert not icmp.is_reply(4, b"", 77, 1)
    assert icmp.is_reply(6, bytes([129]) + reply[1:], 77, 1)


def test_graph_shows_pods_where_they_are_and_not_where_they_were_planned() -> None:
    demo = load(Path("demo"))
    moved = [graph.Place("redis", "beta", ("10.244.2.2",))]
    paragraphs = graph.text(demo, moved).split("\n\n")
    assert "pod redis  10.244.2.2" in next(p for p in paragraphs if p.startswith("beta"))
    assert "pod redis" not in next(p for p in paragraphs if p.startswith("alpha"))
    assert '"beta" -- pod0' in graph.dot(demo, moved)


def test_graph_shows_delays() -> None:
    peers = topology.delayed(load(Path("peers")), 20, nodes=["p1"])
    assert graph.text(peers, []).count("-- router:p1  (20 ms)") == 1
    assert graph.text(peers, []).count("ms)") == 2  # at both ends
    assert 'headlabel="eth0", label="20 ms"]' in graph.dot(peers, [])


def test_table_of_labs_aligns_its_columns() -> None:
    entry = listing.LabEntry(
        name="a_long_name",
        state="up",
        wire={"pid": 77, "links": 3, "dropped": 0},
        nodes=[{"name": "alpha", "netns": "/n"}],
        pods=[
            {
                "name": "redis",
                "node": "alpha",
                "addresses": ["10.1.1.2"],
                "port": 1,
                "pid": None,
                "netns": "/p",
            }
        ],
    )
    head, _, wire, _, pod = listing.as_text([entry]).splitlines()
    assert head.index("PID") == wire.index("77")
    assert wire.endswith("3 delayed links")
    assert head.index("POD") == pod.index("redis")
    assert head.index("PID") == pod.index("-")
