"""Where a connection's path can be re-homed: what one node can do for it. A pure decision.

A node knows its conntrack entries and its own addresses. It does one thing for a connection that
moves, or nothing: then another node, or nobody, has to.
"""

from collections.abc import Collection
from enum import Enum

from mycoproxy.addresses import FourTuple, wire_address
from mycoproxy.netfilter.entry import ConntrackEntry, wire_direction


class Path(Enum):
    """What a node does for a moved connection."""

    REBIND = "rebind"
    """It NATs the connection: its conntrack entry is replaced."""

    TRANSLATE = "translate"
    """The client lives here and dialled the workload's address itself: addresses are rewritten."""

    ADMIT = "admit"
    """It only forwards and tracks the connection: its firewall is told of the new address."""

    NOTHING = "nothing"
    """It is not on the path, or the address is kept, or it forwards without looking."""


def choose_path(
    connection: FourTuple,
    *,
    new_address: str,
    entry: ConntrackEntry | None,
    local_addresses: Collection[str],
) -> Path:
    """What this node does for ``connection`` when its workload's address becomes ``new_address``.

    ``entry`` is what conntrack here knows of it (``Conntrack.find``). ``local_addresses`` are this
    namespace's own, given only if a socket here really has this connection, that is if the client
    dialled the workload's address: a client of a Service on another node's NAT has its address
    here as well, but knows the workload by the virtual one, and translating it would leave rules
    behind that no packet matches.

    NAT here wins over a client here: the client's socket then has another address than the
    workload's, and only the entry knows both. An entry that only tracks a client that is here is
    left alone: ``translate`` keeps conntrack on the tuple it knows.
    """
    if wire_address(new_address) == wire_address(connection.local.address):
        return Path.NOTHING
    name = wire_direction(connection.local, connection.remote)
    tracked = entry is not None and name in (entry.reply, entry.orig)
    if entry is not None and tracked and entry.has_nat:
        # Opened by the workload through NAT here, the entry's own name would have to change.
        return Path.REBIND if name == entry.reply else Path.NOTHING
    if name.destination.address in {wire_address(address) for address in local_addresses}:
        return Path.TRANSLATE
    return Path.ADMIT if tracked else Path.NOTHING
