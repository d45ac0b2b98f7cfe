"""Services: virtual addresses and node ports that a node maps to a pod, in kube-proxy's way.

A connection is mapped when it is opened, by a rule; from then on its conntrack entry decides. So
pointing a Service elsewhere is one change of rules and concerns new connections only. The chains
live in the node's namespace, in one table with the lab's name.

In a topology with a ``cluster`` the rules do what kube-proxy's do (pkg/proxy/iptables/proxier.go,
``syncProxyRules``), and what a network plugin adds: see ``Cluster``. A connection to be masqueraded
gets kube-proxy's mark on its way in, and its new source address on its way out, with a port chosen
at random.
"""

import ipaddress
from collections.abc import Mapping, Sequence

from mycoproxy.errors import UsageError
from mycoproxy.netfilter.nft import Nft
from netlab.topology import Address, Cluster, Network, Service, Topology

_MARK = "0x4000"  # kube-proxy's --iptables-masquerade-bit, 14

# prerouting maps what the node forwards, output what it sends itself. -100 is "dstnat".
_TABLE = """\
table inet {table} {{
  chain prerouting {{ type nat hook prerouting priority -100; }}
  chain output {{ type nat hook output priority -100; }}
}}
"""

# 100 is "srcnat". The mark goes, or it would be looked at again behind a tunnel.
_MASQUERADE = f"meta mark & {_MARK} == {_MARK} meta mark set meta mark ^ {_MARK}"
_TO_MASQUERADE = f"meta mark set meta mark | {_MARK}"


def ruleset(
    table: str, topology: Topology, node: str, targets: Mapping[str, tuple[Sequence[str], int]]
) -> str:
    """Everything that a node does to packets; empty if it does nothing.

    ``targets`` are the addresses that each Service leads to, and the port. Raises ``UsageError``.
    """
    here = [service for service in topology.services if node in service.nodes]
    cluster = topology.cluster if topology.node(node).pod_bridge else None
    if not here and cluster is None:
        return ""
    text = _TABLE.format(table=table)
    for service in here:
        text += f"add chain inet {table} {_chain(service.name)}\n"
        text += f"add rule inet {table} prerouting jump {_chain(service.name)}\n"
        text += f"add rule inet {table} output jump {_chain(service.name)}\n"
        addresses, port = targets[service.name]
        text += target_rules(table, topology, node, service, addresses=addresses, port=port)
    if cluster is not None:
        text += _cluster_rules(table, topology, cluster)
    return text


def target_rules(
    table: str,
    topology: Topology,
    node: str,
    service: Service,
    *,
    addresses: Sequence[str],
    port: int,
) -> str:
    """One transaction that makes the Service lead to ``addresses`` (one for each IP version).

    A virtual address without a target of its version leads nowhere. Raises ``UsageError`` for
    a version twice.
    """
    targets: dict[int, Address] = {}
    for text in addresses:
        address = ipaddress.ip_address(text)
        if address.version in targets:
            raise UsageError(f"service {service.name}: one IPv{address.version} target is wanted")
        targets[address.version] = address
    chain = f"inet {table} {_chain(service.name)}"
    lines = [f"flush chain {chain}"]
    for virtual in service.addresses:
        target = targets.get(virtual.version)
        if target is None:
            continue
        where = str(target) if target.version == 4 else f"[{target}]"
        dnat = f"dnat {_family(target)} to {where}:{port}"
        rules = _cluster_ip(topology.cluster, service, virtual, target, dnat)
        local = topology.pod_host(target) == node
        for match in _from_outside(service, target.version):
            rules += _external(topology.cluster, service, target, match, dnat, local=local)
        lines += [f"add rule {chain} {rule}" for rule in rules]
    return "\n".join(lines) + "\n"


def _cluster_ip(
    cluster: Cluster | None, service: Service, virtual: Address, target: Address, dnat: str
) -> list[str]:
    match = f"{_family(virtual)} daddr {virtual} tcp dport {service.port}"
    rules = []
    if cluster is not None:
        rules.append(f"{match} {_source(target)} {target} {_TO_MASQUERADE}")  # it dialled itself
        rules += [
            f"{match} {_source(network)} != {network} {_TO_MASQUERADE}"
            for network in cluster.pod_networks
            if network.version == virtual.version
        ]
    return [*rules, f"{match} {dnat}"]


def _from_outside(service: Service, version: int) -> list[str]:
    """What matches the packets that come by the node port or by an external address."""
    matches = [
        f"{_family(address)} daddr {address} tcp dport {service.port}"
        for address in service.external_addresses
        if address.version == version
    ]
    if service.node_port is not None:
        # Not over loopback, which would need route_localnet; nor does kube-proxy's nftables mode.
        off_loopback = "ip daddr != 127.0.0.0/8" if version == 4 else "ip6 daddr != ::1"
        matches.append(f"{off_loopback} fib daddr type local tcp dport {service.node_port}")
    return matches


def _external(
    cluster: Cluster | None,
    service: Service,
    target: Address,
    match: str,
    dnat: str,
    *,
    local: bool,
) -> list[str]:
    if service.external_traffic_policy == "Cluster":
        return [f"{match} {_TO_MASQUERADE}", f"{match} {dnat}"]
    # From inside the cluster it leads to the pod wherever that is, as the virtual address does.
    inside = [
        f"{_source(network)} {network}"
        for network in (cluster.pod_networks if cluster is not None else ())
        if network.version == target.version
    ]
    return [
        f"{match} {_source(target)} {target} {_TO_MASQUERADE}",
        f"{match} fib saddr type local {_TO_MASQUERADE}",
        *(f"{match} {source} {dnat}" for source in (*inside, "fib saddr type local")),
        f"{match} {dnat if local else 'drop'}",
    ]


def _cluster_rules(table: str, topology: Topology, cluster: Cluster) -> str:
    lines = [
        f"add chain inet {table} postrouting {{ type nat hook postrouting priority 100; }}",
        f"add rule inet {table} postrouting {_MASQUERADE} masquerade fully-random",
    ]
    for network in cluster.pod_networks if cluster.egress != "none" else ():
        # As flannel's (pkg/trafficmngr/iptables), whose second rule is for all but multicast.
        inside = [str(network), "224.0.0.0/4" if network.version == 4 else "ff00::/8"]
        if cluster.egress == "outside":
            inside += _node_addresses(topology, network.version)
        lines.append(
            f"add rule inet {table} postrouting {_source(network)} {network} "
            f"{_family(network)} daddr != {{ {', '.join(inside)} }} masquerade fully-random"
        )
    if cluster.drop_invalid:
        lines += [
            f"add chain inet {table} forward {{ type filter hook forward priority 0; }}",
            f"add rule inet {table} forward ct state invalid drop",
        ]
    return "\n".join(lines) + "\n"


def _node_addresses(topology: Topology, version: int) -> list[str]:
    return [
        str(interface.ip)
        for node in topology.nodes
        if node.pod_bridge
        for interface in topology.link_addresses(node.name)
        if interface.version == version
    ]


def _family(address: Address | Network) -> str:
    return "ip" if address.version == 4 else "ip6"


def _source(address: Address | Network) -> str:
    return f"{_family(address)} saddr"


def _chain(service: str) -> str:
    return f"service-{service}"


def apply(commands: str) -> None:
    """Run nft commands, all or none, in the calling thread's namespace."""
    with Nft() as nft:
        nft.run(commands)


def tables_of_lab(table: str) -> list[str]:
    """The nft tables (``family name``) in the calling thread's namespace that are the lab's."""
    with Nft() as nft:
        lines = nft.run("list tables").splitlines()
    tables = [line.removeprefix("table ").strip() for line in lines]
    return [
        each
        for each in tables
        if each.split()[-1] == table or each.split()[-1].startswith(f"{table}-")
    ]
