"""Hold: drop the packets of named connections, both ways, so that nothing moves under a handover.

A socket in repair mode still acknowledges what arrives, and a byte that is acknowledged after the
capture is lost. So the packets stop first. To its peer a held connection is a lossy network for
some milliseconds: TCP sends again.

The table is installed ahead of the freeze; taking hold of connections and letting go of them are
set elements only. Chains stand at prerouting and output, ahead of conntrack: a held packet leaves
no trace there. Prerouting sees forwarded packets as well, so the same hold works on a node between
the two ends, with the addresses that the packets have *there*, before any NAT. What we play to the
namespace's own sockets ourselves (``marks.PLAYED``) passes.
"""

import ipaddress
import re
from collections.abc import Iterable

from mycoproxy.addresses import Endpoint, FourTuple, wire_address
from mycoproxy.errors import UsageError
from mycoproxy.marks import PLAYED
from mycoproxy.netfilter.abi import PRIORITY_HOLD
from mycoproxy.netfilter.compiled import ANY_TABLE
from mycoproxy.netfilter.elements import SetChange, endpoint_key, on_the_wire, pair_key, port_key
from mycoproxy.netfilter.nft import Nft

# A connection stands in a set once, as (workload's end, peer's end); two rules look it up, one for
# each direction. SYNs of new connections: inbound SYN and outbound SYN-ACK; the workload's own
# connects (outbound SYN, inbound SYN-ACK) are let through.
_RULESET = f"""\
table inet {ANY_TABLE} {{
    set flows4 {{ type ipv4_addr . inet_service . ipv4_addr . inet_service; }}
    set flows6 {{ type ipv6_addr . inet_service . ipv6_addr . inet_service; }}
    set new4 {{ type ipv4_addr . inet_service; }}
    set new6 {{ type ipv6_addr . inet_service; }}
    set newport {{ type inet_service; }}
    set at4 {{ type ipv4_addr . inet_service; }}
    set at6 {{ type ipv6_addr . inet_service; }}
    set atport {{ type inet_service; }}
    chain flows {{
        ip saddr . tcp sport . ip daddr . tcp dport @flows4 drop
        ip daddr . tcp dport . ip saddr . tcp sport @flows4 drop
        ip6 saddr . tcp sport . ip6 daddr . tcp dport @flows6 drop
        ip6 daddr . tcp dport . ip6 saddr . tcp sport @flows6 drop
    }}
    chain syn {{
        tcp dport @newport drop
        ip daddr . tcp dport @new4 drop
        ip6 daddr . tcp dport @new6 drop
    }}
    chain synack {{
        tcp sport @newport drop
        ip saddr . tcp sport @new4 drop
        ip6 saddr . tcp sport @new6 drop
    }}
    chain prerouting {{
        type filter hook prerouting priority {PRIORITY_HOLD}; policy accept;
        meta mark {PLAYED} accept
        tcp dport @atport drop
        ip daddr . tcp dport @at4 drop
        ip6 daddr . tcp dport @at6 drop
        meta l4proto tcp jump flows
        tcp flags & (fin | syn | rst | ack) == syn jump syn
    }}
    chain output {{
        type filter hook output priority {PRIORITY_HOLD}; policy accept;
        meta mark {PLAYED} accept
        tcp sport @atport drop
        ip saddr . tcp sport @at4 drop
        ip6 saddr . tcp sport @at6 drop
        meta l4proto tcp jump flows
        tcp flags & (fin | syn | rst | ack) == syn | ack jump synack
    }}
}}
"""


def table_name(kind: str, name: str) -> str:
    """``mycoproxy-KIND-NAME``, if that can be an nftables name.

    Raises ``UsageError``.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", name):
        raise UsageError(
            f"{name!r} cannot name a {kind}: letters, digits, '_', '.' and '-' are allowed"
        )
    return f"mycoproxy-{kind}-{name}"


class Hold:
    """One hold of one network namespace, in a table of its own.

    Used on the thread that made ``nft``. ``name`` tells holds of one namespace apart.
    """

    def __init__(self, nft: Nft, name: str) -> None:
        self.table = table_name("hold", name)
        self._nft = nft
        self._held: set[tuple[str, bytes]] = set()

    def install(self) -> None:
        """Make the table, empty: nothing is dropped yet. What an earlier one held is let go.

        Raises ``NftError``.
        """
        self._nft.install(self.table, _RULESET, replace=True)
        self._held.clear()

    def hold(
        self, flows: Iterable[FourTuple], *, listeners: Iterable[Endpoint] = ()
    ) -> list[FourTuple]:
        """Drop the packets of these connections from now on, both directions, all at once.

        ``local`` and ``remote`` are as the packets have them in this namespace; either may be
        either. Of ``listeners``, which are local endpoints here, every packet is dropped, whoever
        is at the other end: for what is not known by name (connections that nobody has accepted,
        handshakes), and because it is quicker than naming thousands. Returns the flows that were
        not held before. Raises ``NetfilterError`` (ENOENT: not installed).
        """
        wanted = {flow_element(flow): flow for flow in flows}
        new = {element: flow for element, flow in wanted.items() if element not in self._held}
        self._nft.change(
            self.table, [*_changes(new, delete=False), *_listener_changes("at", listeners)]
        )
        self._held |= new.keys()
        return list(new.values())

    def let_go(self, flows: Iterable[FourTuple]) -> None:
        """Let the packets of these connections pass again; others stay held."""
        wanted = {flow_element(flow) for flow in flows} & self._held
        self._nft.change(self.table, _changes(wanted, delete=True))
        self._held -= wanted

    def hold_new(self, ports: Iterable[Endpoint]) -> None:
        """Drop SYNs to these local endpoints.

        An unspecified address (``0.0.0.0``, ``::``) stands for every address of its port, as it
        does for a listener. The client's kernel sends its SYN again after one second.
        """
        self._nft.change(self.table, _listener_changes("new", ports))

    def release_new(self) -> None:
        """Let SYNs in again. May be called again, and without ``install``."""
        if self._nft.has_table(self.table):
            self._nft.change(
                self.table,
                [SetChange(name, delete=True) for name in ("new4", "new6", "newport")],
            )

    def let_go_listeners(self) -> None:
        """Let the packets of all listeners pass again, SYNs too; what is held by name stays so."""
        names = ("at4", "at6", "atport", "new4", "new6", "newport")
        self._nft.change(self.table, [SetChange(name, delete=True) for name in names])

    def release(self) -> None:
        """Let everything go, and remove the table. May be called again, also after a crash."""
        self._nft.delete_table(self.table)
        self._held.clear()


def left_holds(nft: Nft, known: Iterable[str]) -> list[str]:
    """The tables of holds here whose name does not begin with that of a ``known`` move: of a
    process that has ended. Raises ``NftError``."""
    prefixes = tuple(table_name("hold", name) for name in known)
    tables = [line.split()[-1] for line in nft.run("list tables inet").splitlines() if line]
    return [
        table
        for table in tables
        if table.startswith("mycoproxy-hold-") and not table.startswith(prefixes)
    ]


def flow_element(flow: FourTuple) -> tuple[str, bytes]:
    """The set and the key that a connection has in a hold."""
    local, remote = on_the_wire(flow.local), on_the_wire(flow.remote)
    return "flows6" if ":" in local.address else "flows4", pair_key(local, remote)


def listener_element(kind: str, endpoint: Endpoint) -> tuple[str, bytes]:
    """The set and the key that a listener has in a hold; ``kind`` is ``new`` or ``at``."""
    if is_unspecified(endpoint):
        return f"{kind}port", port_key(endpoint.port)
    local = on_the_wire(endpoint)
    return f"{kind}{local.version}", endpoint_key(local)


def is_unspecified(endpoint: Endpoint) -> bool:
    """Does the endpoint stand for every address of its port?"""
    return ipaddress.ip_address(wire_address(endpoint.address)).is_unspecified


def _listener_changes(kind: str, listeners: Iterable[Endpoint]) -> list[SetChange]:
    return _changes((listener_element(kind, endpoint) for endpoint in listeners), delete=False)


def _changes(elements: Iterable[tuple[str, bytes]], *, delete: bool) -> list[SetChange]:
    by_set: dict[str, list[bytes]] = {}
    for set_name, key in dict.fromkeys(elements):
        by_set.setdefault(set_name, []).append(key)
    return [SetChange(set_name, keys, delete=delete) for set_name, keys in by_set.items()]
