"""Anchor: a node that goes on receiving a connection's packets when the workload has left it.

Some clients cannot be told of a new address: they are outside of the cluster, and what they dialled
leads to this node. (Or the workload dialled them, and they know it by this node's address.) So the
node stays on the path. It passes what it receives on to the workload's new place under an address
of its own (source NAT), for the answers to come back through it. In the workload's namespace the
addresses are translated (``translate``), so that its socket goes on speaking with the client.

The NAT is a conntrack entry like any other, made by ``rebind``; no rule leads to it. But the
kernel looks at entries' NAT only in namespaces that have a chain of type nat at the hook
(net/netfilter/nf_nat_core.c, nf_nat_register_fn), and at connections at all only where a rule asks
for their state (nf_ct_netns_get). ``Anchors.install`` makes empty ones, and such a rule, which no
packet comes to.
"""

import socket

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from mycoproxy.netfilter.compiled import ANY_TABLE
from mycoproxy.netfilter.nft import Nft

TABLE = "mycoproxy-anchor"

_RULESET = f"""\
table inet {ANY_TABLE} {{
    chain tracking {{ ct state new return; }}
    chain prerouting {{ type nat hook prerouting priority dstnat; }}
    chain input {{ type nat hook input priority 100; }}
    chain output {{ type nat hook output priority -100; }}
    chain postrouting {{ type nat hook postrouting priority srcnat; }}
}}
"""


class Anchors:
    """What anchoring needs in one namespace. Used on the thread that made ``nft``."""

    def __init__(self, nft: Nft) -> None:
        self._nft = nft
        self._installed = False
        self._toward: dict[str, str | None] = {}

    def install(self) -> None:
        """Have the kernel look at entries' NAT. May be called again. Raises ``NftError``."""
        if not self._installed and not self._nft.has_table(TABLE):
            self._nft.install(TABLE, _RULESET)
        self._installed = True

    def address_toward(self, destination: str) -> str | None:
        """The address that this namespace speaks from to ``destination``; None: has no route."""
        if destination not in self._toward:
            self._toward[destination] = address_toward(destination)
        return self._toward[destination]


def address_toward(destination: str) -> str | None:
    """The address that the calling thread's namespace speaks from to ``destination``; None: it has
    no route."""
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    try:
        with IPRoute() as route:
            found = route.route("get", family=family, dst=destination)
    except NetlinkError:
        return None
    source = found[0].get_attr("RTA_PREFSRC") if found else None
    return str(source) if source is not None else None
