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

What the new entries look like is in ``renamed``.
"""

import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mycoproxy.addresses import FourTuple
from mycoproxy.netfilter.conntrack import Conntrack
from mycoproxy.netfilter.entry import ConntrackEntry
from mycoproxy.netfilter.hold import Hold
from mycoproxy.netfilter.nfnetlink import NetfilterError
from mycoproxy.netfilter.renamed import restored

# How often an entry that a packet put in between is replaced. The hold leaves a gap only for
# packets that had passed it already when it took effect, at most one for each processor.
_ATTEMPTS = 8


@dataclass(frozen=True)
class Rebound:
    """One connection's entry before and after: all that undoing it takes. Plain data.

    ``old`` is ``None`` if nothing was replaced, only ``new`` added.
    """

    old: ConntrackEntry | None
    new: ConntrackEntry


def rebind(conntrack: Conntrack, hold: Hold, changes: Sequence[Rebound]) -> None:
    """Put each new entry in the old one's place.

    All or none: if one cannot be replaced, the others are put back. ``hold`` must be installed; it
    holds the connections for the time of the change only, and those that it held already stay
    held. Called on the namespace's thread.

    Raises ``NetfilterError`` (EBUSY for an entry that is offloaded to a flow table; EEXIST if
    another connection has the new name already).
    """
    held = hold.hold(flow for one in changes for flow in _flows_of(one))
    try:
        refused = _replaced(conntrack, [(one.old or one.new, one.new) for one in changes])
        if refused:
            _put_back(
                conntrack, [one for number, one in enumerate(changes) if number not in refused]
            )
            first = min(refused)
            raise NetfilterError(
                f"cannot make {changes[first].new.orig} lead to {changes[first].new.reply.source}",
                refused[first],
            )
    finally:
        hold.let_go(held)


def admit(conntrack: Conntrack, entries: Sequence[ConntrackEntry]) -> tuple[Rebound, ...]:
    """Make this node know moved connections; what it knew before stays.

    Raises ``NetfilterError``; then none was added.
    """
    left, refused = list(entries), {}
    for _ in range(_ATTEMPTS):
        errnos = conntrack.insert(left)
        refused = {entry: number for entry, number in zip(left, errnos, strict=True) if number}
        left = [entry for entry, number in refused.items() if number == errno.EEXIST]
        if len(left) < len(refused) or not left:
            break
        # A leftover of that name, or a packet of either end was faster: under any of both names.
        conntrack.delete([*left, *(replace(entry, orig=entry.reply) for entry in left)])
    if refused:
        conntrack.delete([entry for entry in entries if entry not in refused])
        entry, number = next(iter(refused.items()))
        raise NetfilterError(f"cannot make conntrack know {entry.orig}", number)
    return tuple(Rebound(None, entry) for entry in entries)


def undo(conntrack: Conntrack, hold: Hold, changes: Sequence[Rebound]) -> None:
    """Put the connections back on the path they had before.

    Raises ``NetfilterError``.
    """
    held = hold.hold(flow for one in changes if one.old is not None for flow in _flows_of(one))
    try:
        refused = _put_back(conntrack, changes)
    finally:
        hold.let_go(held)
    if refused:
        first = min(refused)
        replaced = [one.old for one in changes if one.old is not None]
        raise NetfilterError(
            f"cannot make {replaced[first].orig} lead back to {replaced[first].reply.source}",
            refused[first],
        )


def _put_back(conntrack: Conntrack, changes: Sequence[Rebound]) -> dict[int, int]:
    """The errno of each replaced one that could not be put back, by its index among those."""
    conntrack.delete([one.new for one in changes if one.old is None])
    return _replaced(
        conntrack, [(one.new, restored(one.old)) for one in changes if one.old is not None]
    )


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


def _flows_of(change: Rebound) -> Iterator[FourTuple]:
    """The names under which their packets arrive here: before NAT, one for each side."""
    for entry in (change.old, change.new):
        if entry is not None:
            yield FourTuple(local=entry.orig.destination, remote=entry.orig.source)
            yield FourTuple(local=entry.reply.source, remote=entry.reply.destination)
