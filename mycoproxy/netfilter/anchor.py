"""Anchor: a node that goes on receiving a connection's packets when the workload has left it.

Some clients cannot be told of a new address: they are outside of the cluster, and what they dialled
leads to this node. (Or the workload dialled them, and they know it by this node's address.) So the
node stays on the path. It passes what it receives on to the workload's new place under an address
of its own (source NAT), for the answers to come back through it. In the workload's namespace the
addresses are translated (``translate``), so that its socket goes on speaking with the client.

The NAT is a conntrack entry like any other, made by ``rebind``; no rule leads to it. But the
kernel looks at entries' NAT only in namespaces that have a chain of type nat at the hook
(net/netfilter/nf_nat_core.c, nf_nat_register_fn), and at connections at all only where a rule asks
for their state (nf_ct_netns_get). So there is a table of empty ones, and such a rule, which no
packet comes to. It has to stay as long as any anchored connection does; which these are is kept in
it, by the names of what comes from their other ends, which stay whatever becomes of the workload.
"""

import socket
from collections.abc import Iterable

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from mycoproxy.addresses import FourTuple
from mycoproxy.netfilter.compiled import ANY_TABLE
from mycoproxy.netfilter.elements import SetChange, pair_key, read_pair
from mycoproxy.netfilter.nft import Nft

TABLE = "mycoproxy-anchor"

_SETS = {4: "anchored4", 6: "anchored6"}

_RULESET = f"""\
table inet {ANY_TABLE} {{
    set anchored4 {{ type ipv4_addr . inet_service . ipv4_addr . inet_service; }}
    set anchored6 {{ type ipv6_addr . inet_service . ipv6_addr . inet_service; }}
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

    def add(self, names: Iterable[FourTuple]) -> None:
        """Have it do so as long as there are entries of these connections.

        ``remote`` is where their packets come from, and ``local`` where these are sent to, ahead of
        NAT. Ahead of the entries. Raises ``NftError``, ``NetfilterError``.
        """
        self.install()
        self._nft.change(TABLE, _changes(names, delete=False))

    def list(self) -> list[FourTuple]:
        """The names that were added, and not removed since."""
        if not self._nft.has_table(TABLE):
            return []
        pairs = (
            read_pair(key) for name in _SETS.values() for key, _ in self._nft.elements(TABLE, name)
        )
        return [FourTuple(local=to, remote=source) for source, to in pairs]

    def remove(self, names: Iterable[FourTuple]) -> None:
        """These have ended. Raises ``NetfilterError``."""
        self._nft.change(TABLE, _changes(names, delete=True))

    def clear(self) -> None:
        """Nothing is anchored any more. May be called again. Raises ``NetfilterError``."""
        self._installed = False
        self._nft.delete_table(TABLE)

    def address_toward(self, destination: str) -> str | None:
        """The address that this namespace speaks from to ``destination``; None: has no route."""
        if destination not in self._toward:
            self._toward[destination] = address_toward(destination)
        return self._toward[destination]


def _changes(names: Iterable[FourTuple], *, delete: bool) -> list[SetChange]:
    keys: dict[str, list[bytes]] = {}
    for name in names:
        of_family = keys.setdefault(_SETS[name.local.version], [])
        of_family.append(pair_key(name.remote, name.local))
    return [SetChange(name, of_family, delete=delete) for name, of_family in keys.items()]


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
