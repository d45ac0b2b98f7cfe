"""Where a connection's path can be re-homed: what one network namespace can do for it. Pure.

A namespace knows its conntrack entries and its own addresses. It can do one thing for a connection
that moves, or nothing; ``handover.routes`` puts what all of them can do together.
"""

import ipaddress
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum

from mycoproxy.addresses import FourTuple, wire_address
from mycoproxy.netfilter.entry import ConntrackEntry, wire_direction

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Path(Enum):
    """What a node does for a moved connection."""

    REBIND = "rebind"
    """It NATs the connection: its conntrack entry is replaced."""

    TRANSLATE = "translate"
    """The client lives here and dialled the workload's address itself: addresses are rewritten."""

    ANCHOR = "anchor"
    """Nobody behind it can be told. It goes on receiving what is sent to the old address, and
    passes it on under an address of its own; the connection lives as long as this node does."""

    CARRY = "carry"
    """The workload opened it, through NAT on its own node: the entry goes along to the new one."""

    ADMIT = "admit"
    """It only forwards and tracks the connection: its firewall is told of the new address."""

    NOTHING = "nothing"
    """It is not on the path, or the address is kept, or it forwards without looking."""


@dataclass(frozen=True, slots=True)
class Standpoint:
    """How a namespace lies to the connections that are asked about.

    ``home``: it is the node on which the workload has run so far. ``behind``: whose packets can
    reach the workload only through here, as networks; None is everybody (a router). ``addresses``:
    some of these, one by one.
    """

    home: bool = False
    behind: tuple[Network, ...] | None = None
    addresses: frozenset[str] = frozenset()

    def has_behind(self, address: str) -> bool:
        """Do packets from and to ``address`` pass here, whatever the workload's address is?"""
        if self.behind is None or wire_address(address) in self.addresses:
            return True
        parsed = ipaddress.ip_address(wire_address(address))
        return any(parsed in network for network in self.behind)


def choose_path(
    connection: FourTuple,
    *,
    addresses: Mapping[str, str],
    entry: ConntrackEntry | None,
    local_addresses: Collection[str] = (),
    standpoint: Standpoint = Standpoint(),
) -> Path:
    """What this namespace can do for ``connection`` when its workload moves.

    ``connection`` is named as its packets are on their way from the workload, ahead of any NAT
    here. ``addresses`` maps the workload's addresses to its new ones. ``entry`` is what conntrack
    here knows of it (``Conntrack.find``). ``local_addresses`` are this namespace's own, given only
    if a socket here really has this connection, that is if the client dialled the workload's
    address: a client of a Service on another node's NAT has its address here as well, but knows
    the workload by the virtual one, and translating it would leave rules behind that no packet
    matches.

    NAT here wins over a client here: the client's socket then has another address than the
    workload's, and only the entry knows both. An entry that only tracks a client that is here is
    left alone: ``translate`` keeps conntrack on the tuple it knows.
    """
    old = wire_address(connection.local.address)
    if addresses.get(old, old) == old and not standpoint.home:
        return Path.NOTHING
    name = wire_direction(connection.local, connection.remote)
    if entry is not None and entry.has_nat:
        if name == entry.orig:
            return _opened_by_workload(entry, addresses, standpoint)
        if name == entry.reply:
            return _opened_by_client(entry, addresses, standpoint)
    if name.destination.address in {wire_address(address) for address in local_addresses}:
        return Path.TRANSLATE
    tracked = entry is not None and name in (entry.reply, entry.orig)
    passes = tracked and (not standpoint.home or standpoint.has_behind(name.destination.address))
    return Path.ADMIT if passes else Path.NOTHING


def _opened_by_workload(
    entry: ConntrackEntry, addresses: Mapping[str, str], standpoint: Standpoint
) -> Path:
    if not standpoint.home:
        return Path.REBIND  # it is anchored here
    masqueraded = entry.reply.destination.address not in addresses
    to_itself = entry.reply.source.address in addresses
    return Path.ANCHOR if masqueraded and not to_itself else Path.CARRY


def _opened_by_client(
    entry: ConntrackEntry, addresses: Mapping[str, str], standpoint: Standpoint
) -> Path:
    if entry.orig.source.address in addresses:
        return Path.CARRY if standpoint.home else Path.REBIND
    masqueraded = entry.reply.destination != entry.orig.source
    if masqueraded or standpoint.has_behind(entry.orig.source.address):
        return Path.REBIND
    return Path.ANCHOR
