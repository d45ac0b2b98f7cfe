"""Rebind: point a connection that is NATed on this node to the workload's new address.

A client that came through a Service has a conntrack entry here: client -> virtual IP, answered by
the old workload address. It is replaced by one that is answered by the new address. To everyone
the connection then looks as if it had been opened to the new workload in the first place, and
nothing stays behind when it ends.

The NAT is decided by a connection's first packet. If a packet comes between the deletion and the
insertion, the kernel makes an entry by itself and asks the Service's rules, which know nothing of
the move. So the connection is held meanwhile, ahead of conntrack.

A firewall that only tracks (no NAT) is treated by ``admit``: it would see a connection to the new
address begin in the middle, and drop it where its rules want to see a SYN.
"""

import errno
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.errors import MycoError
from mycoproxy.netfilter import abi
from mycoproxy.netfilter.conntrack import Conntrack
from mycoproxy.netfilter.elements import on_the_wire
from mycoproxy.netfilter.entry import ConntrackEntry, Direction, TcpTracking
from mycoproxy.netfilter.hold import Hold
from mycoproxy.netfilter.nfnetlink import NetfilterError

# The entry must outlive the move even if it was about to expire.
_LEAST_TIMEOUT_SECONDS = 120

# How often an entry that a packet put in between is replaced. The hold leaves a gap only for
# packets that had passed it already when it took effect, at most one for each processor.
_ATTEMPTS = 8

# Sequence numbers and windows do not pass through ctnetlink, so the new entry begins without: the
# kernel takes them from the first packet of either side (tcp_in_window, td_maxwin == 0). Packets
# that were sent before and arrive now would look out of window; liberal tracking lets them pass.
# Flags that speak of the lost numbers (MAXACK_SET, DATA_UNACKNOWLEDGED) must not be carried over.
_KEPT_FLAGS = (
    abi.IP_CT_TCP_FLAG_WINDOW_SCALE | abi.IP_CT_TCP_FLAG_SACK_PERM | abi.IP_CT_TCP_FLAG_CLOSE_INIT
)


@dataclass(frozen=True)
class Rebound:
    """One connection's entry before and after: all that undoing it takes. Plain data.

    ``old`` is ``None`` if nothing was replaced, only ``new`` added (``admit``).
    """

    old: ConntrackEntry | None
    new: ConntrackEntry


def rebound_entry(entry: ConntrackEntry, new_local: Endpoint) -> ConntrackEntry:
    """The entry that answers from ``new_local``: same original tuple, source NAT, mark, labels."""
    reply = Direction(on_the_wire(new_local), entry.reply.destination)
    return _lasting(entry, entry.orig, reply)


def admitted_entry(entry: ConntrackEntry, new_local: Mapping[Endpoint, Endpoint]) -> ConntrackEntry:
    """What a node that only tracks would know, had the workload had its new address before.

    The workload may be either end: a connection that it opened itself has it as source.
    """
    if entry.orig.source in new_local and entry.reply.source not in new_local:
        orig = Direction(on_the_wire(new_local[entry.orig.source]), entry.orig.destination)
    else:
        orig = Direction(entry.orig.source, _new_address(entry, new_local))
    return _lasting(entry, orig, orig.reversed())


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


def _restored(entry: ConntrackEntry) -> ConntrackEntry:
    """An entry that was there before, in a form that can be inserted again."""
    return _lasting(entry, entry.orig, entry.reply)


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


def rebind(
    conntrack: Conntrack,
    hold: Hold,
    entries: Iterable[ConntrackEntry],
    new_local: Mapping[Endpoint, Endpoint],
) -> tuple[Rebound, ...]:
    """Replace each entry by one that is answered by ``new_local[entry.reply.source]``.

    All or none: if one cannot be replaced, the others are put back. ``hold`` must be installed; it
    holds the connections for the time of the change only, and those that it held already stay
    held. Called on the namespace's thread.

    Raises ``MycoError`` (a new address is missing, or the kernel refused: EBUSY for an entry that
    is offloaded to a flow table).
    """
    addresses = {on_the_wire(old): new for old, new in new_local.items()}
    rebound = tuple(
        Rebound(entry, rebound_entry(entry, _new_address(entry, addresses))) for entry in entries
    )
    _replace(conntrack, hold, [(one.old, one.new) for one in rebound if one.old is not None])
    return rebound


def admit(
    conntrack: Conntrack,
    entries: Iterable[ConntrackEntry],
    new_local: Mapping[Endpoint, Endpoint],
) -> tuple[Rebound, ...]:
    """Make this node's stateful firewall know the moved connections; the old entries stay.

    Raises ``MycoError``; then none was added.
    """
    addresses = {on_the_wire(old): new for old, new in new_local.items()}
    rebound = tuple(Rebound(None, admitted_entry(entry, addresses)) for entry in entries)
    entered = [one.new for one in rebound]
    refused = {}
    # What is there already under that name is a leftover, or a packet was faster.
    for entry, number in zip(entered, conntrack.insert(entered), strict=True):
        if number == errno.EEXIST:
            number = conntrack.replace([(entry, entry)])[0]  # noqa: PLW2901
        if number:
            refused[entry] = number
    if refused:
        conntrack.delete([entry for entry in entered if entry not in refused])
        entry, number = next(iter(refused.items()))
        raise NetfilterError(f"cannot make conntrack know {entry.orig}", number)
    return rebound


def undo(conntrack: Conntrack, hold: Hold, rebound: Sequence[Rebound]) -> None:
    """Put the connections back on the path they had before.

    Raises ``MycoError``.
    """
    _replace(
        conntrack, hold, [(one.new, _restored(one.old)) for one in rebound if one.old is not None]
    )
    conntrack.delete([one.new for one in rebound if one.old is None])


def _new_address(entry: ConntrackEntry, addresses: Mapping[Endpoint, Endpoint]) -> Endpoint:
    try:
        return on_the_wire(addresses[entry.reply.source])
    except KeyError:
        raise MycoError(
            f"no new address was given for {entry.reply.source}, which answers {entry.orig}"
        ) from None


def _replace(
    conntrack: Conntrack, hold: Hold, pairs: Sequence[tuple[ConntrackEntry, ConntrackEntry]]
) -> None:
    taken = hold.hold(flow for old, new in pairs for flow in (*_flows(old), _flows(new)[1]))
    try:
        refused = _replaced(conntrack, pairs)
        if refused:
            back = [
                (new, _restored(old))
                for number, (old, new) in enumerate(pairs)
                if number not in refused
            ]
            _replaced(conntrack, back)
            first = min(refused)
            raise NetfilterError(
                f"cannot rebind {pairs[first][0].orig} from {pairs[first][0].reply.source} "
                f"to {pairs[first][1].reply.source}",
                refused[first],
            )
    finally:
        hold.let_go(taken)


def _replaced(
    conntrack: Conntrack, pairs: Sequence[tuple[ConntrackEntry, ConntrackEntry]]
) -> dict[int, int]:
    """The errno of each pair that could not be replaced, by its index."""
    left = list(range(len(pairs)))
    refused: dict[int, int] = {}
    for _ in range(_ATTEMPTS):
        errnos = conntrack.replace([pairs[index] for index in left])
        refused = {index: number for index, number in zip(left, errnos, strict=True) if number}
        left = [index for index, number in refused.items() if number == errno.EEXIST]
        if len(left) < len(refused) or not left:
            break
    return refused


def _flows(entry: ConntrackEntry) -> tuple[FourTuple, FourTuple]:
    """The names under which this entry's packets arrive here: before NAT, one for each side."""
    return (
        FourTuple(local=entry.orig.destination, remote=entry.orig.source),
        FourTuple(local=entry.reply.source, remote=entry.reply.destination),
    )
