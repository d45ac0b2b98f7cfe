"""Conntrack entries under other names: what a node would know, had the workload always been where
it goes. Pure.

Sequence numbers and windows do not pass through ctnetlink, so an entry that is inserted begins
without: the kernel takes them from the first packet of either side (tcp_in_window, td_maxwin == 0).
Packets that were sent before and arrive now would look out of window; liberal tracking lets them
pass. Flags that speak of the lost numbers (MAXACK_SET, DATA_UNACKNOWLEDGED) are not carried over.
"""

from collections.abc import Mapping
from functools import lru_cache

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.errors import MycoError
from mycoproxy.netfilter import abi
from mycoproxy.netfilter.elements import on_the_wire
from mycoproxy.netfilter.entry import ConntrackEntry, Direction, TcpTracking, wire_direction

# The entry must outlive the move even if it was about to expire.
_LEAST_TIMEOUT_SECONDS = 120
_KEPT_FLAGS = (
    abi.IP_CT_TCP_FLAG_WINDOW_SCALE | abi.IP_CT_TCP_FLAG_SACK_PERM | abi.IP_CT_TCP_FLAG_CLOSE_INIT
)


def renamed_entry(entry: ConntrackEntry, old: FourTuple, new: FourTuple) -> ConntrackEntry:
    """The entry whose packets on the workload's side have the name ``new`` instead of ``old``.

    What they are called on the other side stays. Raises ``MycoError``: ``entry`` is of another
    connection.
    """
    before, after = (wire_direction(one.local, one.remote) for one in (old, new))
    if before == entry.reply:
        return _lasting(entry, entry.orig, after)
    if before == entry.orig:
        return _lasting(entry, after, entry.reply)
    raise MycoError(f"{old} is not the workload's side of {entry.orig}, answered {entry.reply}")


def moved_entry(entry: ConntrackEntry, addresses: Mapping[str, str]) -> ConntrackEntry:
    """The entry with the workload's new address wherever it has the old one."""

    def moved(direction: Direction) -> Direction:
        return Direction(*(_moved(end, addresses) for end in direction))

    return _lasting(entry, moved(entry.orig), moved(entry.reply))


def plain_entry(entry: ConntrackEntry, old: FourTuple, new: FourTuple) -> ConntrackEntry:
    """What a node without any NAT of its own knows of the connection under the name ``new``.

    ``entry`` knows who opened it. Raises ``MycoError``, as ``renamed_entry``.
    """
    before, after = (wire_direction(one.local, one.remote) for one in (old, new))
    if before == entry.orig:
        return _lasting(entry, after, after.reversed())
    if before == entry.reply:
        return _lasting(entry, after.reversed(), after)
    raise MycoError(f"{old} is not the workload's side of {entry.orig}, answered {entry.reply}")


def untracked_entry(name: FourTuple) -> ConntrackEntry:
    """An entry for a connection that conntrack does not know; as if its client had opened it."""
    direction = wire_direction(name.local, name.remote)
    return ConntrackEntry(
        orig=direction.reversed(),
        reply=direction,
        status=0,
        timeout=_ESTABLISHED_SECONDS,
        tcp=_picked_up(None),
    )


_ESTABLISHED_SECONDS = 5 * 24 * 3600  # nf_conntrack_tcp_timeout_established


def restored(entry: ConntrackEntry) -> ConntrackEntry:
    """An entry that was there before, in a form that can be inserted again."""
    return _lasting(entry, entry.orig, entry.reply)


def _lasting(entry: ConntrackEntry, orig: Direction, reply: Direction) -> ConntrackEntry:
    """``entry`` under these tuples, in a form that can be inserted and goes on."""
    return ConntrackEntry(
        orig=orig,
        reply=reply,
        status=abi.IPS_CONFIRMED | abi.IPS_SEEN_REPLY | abi.IPS_ASSURED,
        timeout=max(entry.timeout, _LEAST_TIMEOUT_SECONDS),
        tcp=_picked_up(entry.tcp),
        mark=entry.mark,
        zone=entry.zone,
        labels=entry.labels,
    )


def _moved(end: Endpoint, addresses: Mapping[str, str]) -> Endpoint:
    new = addresses.get(end.address)
    return end if new is None else on_the_wire(Endpoint(new, end.port))


@lru_cache(maxsize=1 << 10)
def _picked_up(tcp: TcpTracking | None) -> TcpTracking:
    if tcp is None:
        tcp = TcpTracking(abi.TCP_CONNTRACK_ESTABLISHED)
    live = abi.TCP_CONNTRACK_ESTABLISHED <= tcp.state < abi.TCP_CONNTRACK_CLOSE
    return TcpTracking(
        state=tcp.state if live else abi.TCP_CONNTRACK_ESTABLISHED,
        wscale=tcp.wscale,
        flags=(
            tcp.flags[0] & _KEPT_FLAGS | abi.IP_CT_TCP_FLAG_BE_LIBERAL,
            tcp.flags[1] & _KEPT_FLAGS | abi.IP_CT_TCP_FLAG_BE_LIBERAL,
        ),
    )
