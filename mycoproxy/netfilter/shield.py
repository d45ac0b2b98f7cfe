"""Shield: a target namespace that nothing reaches until its connections are established.

A packet that comes to the target before its socket is established is answered by the kernel with
a reset, and so is the restored socket's first probe if its path is not re-homed yet. Neither may
happen; so all of the namespace is cut off. So is TCP over its loopback: the two ends of a
connection inside the workload are established one after the other, and what is played to a listener
(``marks.PLAYED``, which passes) must not be answered by the other end, if that is there already.

UDP datagrams come in: whether the tasks run or not, they wait in the receive queues, and nothing
answers them, for whatever goes out is dropped. On the target they are there when it goes live; on
the source, which is behind a shield once the workload has left it, they are passed on from there.

Neighbour discovery passes: it is what ARP is to IPv4 (which nftables' inet family never sees), and
without it IPv6 addresses would only begin to resolve once the shield is lifted.
"""

from collections.abc import Iterable

from mycoproxy.addresses import FourTuple
from mycoproxy.marks import PLAYED
from mycoproxy.netfilter.abi import PRIORITY_HOLD
from mycoproxy.netfilter.compiled import ANY_TABLE
from mycoproxy.netfilter.elements import SetChange, on_the_wire, pair_key
from mycoproxy.netfilter.hold import table_name
from mycoproxy.netfilter.nft import Nft

_RULESET = f"""\
table inet {ANY_TABLE} {{
    set pass4 {{ type ipv4_addr . inet_service . ipv4_addr . inet_service; }}
    set pass6 {{ type ipv6_addr . inet_service . ipv6_addr . inet_service; }}
    chain prerouting {{
        type filter hook prerouting priority {PRIORITY_HOLD}; policy drop;
        meta mark {PLAYED} accept
        iif lo meta l4proto != tcp accept
        meta l4proto udp accept
        ip daddr . tcp dport . ip saddr . tcp sport @pass4 accept
        ip6 daddr . tcp dport . ip6 saddr . tcp sport @pass6 accept
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert }} accept
    }}
    chain output {{
        type filter hook output priority {PRIORITY_HOLD}; policy drop;
        meta mark {PLAYED} accept
        oif lo meta l4proto != tcp accept
        ip saddr . tcp sport . ip daddr . tcp dport @pass4 accept
        ip6 saddr . tcp sport . ip6 daddr . tcp dport @pass6 accept
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit }} accept
    }}
}}
"""


class Shield:
    """The shield of one network namespace. Used on the thread that made ``nft``."""

    def __init__(self, nft: Nft, name: str) -> None:
        self.table = table_name("shield", name)
        self._nft = nft

    def raise_(self, passing: Iterable[FourTuple] = ()) -> None:
        """Cut the namespace off, in and out, but for the connections in ``passing``, whose
        ``local`` end is here. May be called again, for others.

        Raises ``NftError``, ``NetfilterError``.
        """
        keys: dict[str, set[bytes]] = {}
        for name in passing:
            local, remote = on_the_wire(name.local), on_the_wire(name.remote)
            keys.setdefault(f"pass{local.version}", set()).add(pair_key(local, remote))
        self._nft.install(self.table, _RULESET, replace=True)
        self._nft.change(self.table, [SetChange(one, sorted(keys[one])) for one in keys])

    def lift(self) -> None:
        """Let packets pass again, and leave nothing behind. May be called again."""
        self._nft.delete_table(self.table)
