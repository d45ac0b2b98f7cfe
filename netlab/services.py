"""Services: virtual addresses that a node maps to a pod by DNAT, in kube-proxy's way.

A connection is mapped when it is opened, by a rule; from then on its conntrack entry decides. So
pointing a Service elsewhere is one change of rules and concerns new connections only. The chains
live in the node's namespace, in one table with the lab's name.
"""

import ipaddress
from collections.abc import Mapping, Sequence

from mycoproxy.errors import UsageError
from mycoproxy.netfilter.nft import Nft
from netlab.topology import Service

# prerouting maps what the node forwards, output what it sends itself. -100 is "dstnat".
_TABLE = """\
table inet {table} {{
  chain prerouting {{ type nat hook prerouting priority -100; }}
  chain output {{ type nat hook output priority -100; }}
}}
"""


def ruleset(table: str, services: Mapping[str, tuple[Service, Sequence[str], int]]) -> str:
    """The table with all Services of one node: Service, target addresses, target port, by name."""
    text = _TABLE.format(table=table)
    for name, (service, addresses, port) in services.items():
        text += f"add chain inet {table} {_chain(name)}\n"
        text += f"add rule inet {table} prerouting jump {_chain(name)}\n"
        text += f"add rule inet {table} output jump {_chain(name)}\n"
        text += target_rules(table, service, addresses, port)
    return text


def target_rules(table: str, service: Service, addresses: Sequence[str], port: int) -> str:
    """One transaction that makes the Service lead to ``addresses`` (one for each IP version).

    A virtual address without a target of its version leads nowhere. Raises ``UsageError`` for
    a version twice.
    """
    targets: dict[int, str] = {}
    for text in addresses:
        address = ipaddress.ip_address(text)
        if address.version in targets:
            raise UsageError(f"service {service.name}: one IPv{address.version} target is wanted")
        targets[address.version] = str(address)
    lines = [f"flush chain inet {table} {_chain(service.name)}"]
    for virtual in service.addresses:
        target = targets.get(virtual.version)
        if target is None:
            continue
        family, where = ("ip", target) if virtual.version == 4 else ("ip6", f"[{target}]")
        lines.append(
            f"add rule inet {table} {_chain(service.name)} {family} daddr {virtual} "
            f"tcp dport {service.port} dnat {family} to {where}:{port}"
        )
    return "\n".join(lines) + "\n"


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
