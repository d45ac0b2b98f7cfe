"""Lead flows of UDP datagrams to a workload's new address, in one network namespace.

A flow is what conntrack makes of datagrams between two endpoints: there is nothing else that it
could be. So there is one way to lead it elsewhere, for a client of a Service as for one that
dialled the workload itself: a conntrack entry whose NAT leads to the new address. It lives as long
as a flow does (30 s after the last datagram, 120 s if both ends spoke), and then is gone, with
nothing to sweep. What TCP's ``translate`` does per connection and for good would here have no end.

Entries are replaced without a hold: a datagram that comes between deletion and insertion makes an
entry of its own, goes to the old place, where it is kept (``handover.datagram_source``), and the
replacement is done again.

NAT is looked at only in namespaces that have a chain of type nat; a client's may have none, nor any
conntrack. ``DatagramFlows.lead`` makes one there. Its one rule does nothing, but conntrack is on in
a namespace only while a rule looks at it (net/netfilter/nf_conntrack_proto.c, nf_ct_netns_get).
"""

import errno
import socket
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.netfilter import abi
from mycoproxy.netfilter.conntrack import Conntrack
from mycoproxy.netfilter.elements import on_the_wire
from mycoproxy.netfilter.entry import ConntrackEntry, Direction, wire_direction
from mycoproxy.netfilter.nfnetlink import NetfilterError
from mycoproxy.netfilter.nft import Nft

TABLE = "mycoproxy-datagrams"

_RULESET = f"""\
table inet {TABLE} {{
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        ct state invalid return
    }}
    chain input {{ type nat hook input priority 100; }}
    chain output {{ type nat hook output priority -100; }}
    chain postrouting {{ type nat hook postrouting priority srcnat; }}
}}
"""

_COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")
_LEAST_TIMEOUT_SECONDS = 30  # nf_conntrack_udp_timeout
_ATTEMPTS = 8
_KEPT_STATUS = abi.IPS_SEEN_REPLY | abi.IPS_ASSURED


def flow_of(entry: ConntrackEntry, addresses: Mapping[str, str]) -> FourTuple | None:
    """The flow on the side of the workload, whose addresses are the keys; None: not its."""
    if entry.reply.source.address in addresses:
        return FourTuple(local=entry.reply.source, remote=entry.reply.destination)
    if entry.orig.source.address in addresses:
        return FourTuple(local=entry.orig.source, remote=entry.orig.destination)
    return None


def led_entry(old: ConntrackEntry | None, flow: FourTuple, after: FourTuple) -> ConntrackEntry:
    """The entry that makes ``flow`` be ``after`` on the workload's side, and nothing else.

    Without an entry the other end goes on calling the workload by ``flow.local``; who spoke first
    does not matter.
    """
    before, now = (wire_direction(one.local, one.remote) for one in (flow, after))
    if old is None:
        return _entry(before.reversed(), now)
    if before == old.reply:
        return _entry(old.orig, now, old)
    return _entry(now, old.reply, old)


def carried_entry(entry: ConntrackEntry, addresses: Mapping[str, str]) -> ConntrackEntry:
    """The entry with the workload's new address wherever it has the old one."""

    def moved(direction: Direction) -> Direction:
        return Direction(*(moved_end(end, addresses) for end in direction))

    return _entry(moved(entry.orig), moved(entry.reply), entry)


def plain_entry(entry: ConntrackEntry, flow: FourTuple, after: FourTuple) -> ConntrackEntry:
    """What a node without any NAT of its own knows of ``flow``, which is now called ``after``.

    ``entry`` knows who opened it.
    """
    before, now = (wire_direction(one.local, one.remote) for one in (flow, after))
    orig = now if before == entry.orig else now.reversed()
    return _entry(orig, orig.reversed(), entry)


def moved_end(end: Endpoint, addresses: Mapping[str, str]) -> Endpoint:
    """The endpoint after the move, as packets have it."""
    end = on_the_wire(end)
    return Endpoint(addresses.get(end.address, end.address), end.port)


def _entry(orig: Direction, reply: Direction, like: ConntrackEntry | None = None) -> ConntrackEntry:
    status = _KEPT_STATUS if like is None else like.status & _KEPT_STATUS
    return ConntrackEntry(
        orig=orig,
        reply=reply,
        status=abi.IPS_CONFIRMED | status,
        timeout=max(_LEAST_TIMEOUT_SECONDS, 0 if like is None else like.timeout),
        mark=0 if like is None else like.mark,
        zone=0 if like is None else like.zone,
        labels=b"" if like is None else like.labels,
        protocol=socket.IPPROTO_UDP,
    )


class DatagramFlows:
    """The flows of the namespace that the calling thread is in at creation."""

    def __init__(self) -> None:
        self._conntrack = Conntrack()
        self._has_nat = False
        self._installed = False
        self._made = False

    def close(self) -> None:
        """Close the socket. What is led stays led; what was made for nothing is removed."""
        self._conntrack.close()
        if self._made:
            forget()

    def of_workload(
        self, addresses: Mapping[str, str], ports: Iterable[int]
    ) -> dict[FourTuple, ConntrackEntry]:
        """All flows from and to these addresses of the workload, at these ports of it.

        Walks the kernel's whole table, once for each IP version: milliseconds. Not where nothing is
        tracked, as in most pods.
        """
        if not _count():
            return {}
        wanted = frozenset(ports)
        found = {}
        for version in {6 if ":" in address else 4 for address in addresses}:
            for entry in self._conntrack.dump_datagrams(version=version):
                flow = flow_of(entry, addresses)
                if flow is not None and flow.local.port in wanted:
                    found[flow] = entry
        self._notice(found.values())
        return found

    def find(self, flows: Iterable[FourTuple]) -> dict[FourTuple, ConntrackEntry]:
        """The entries of these flows: microseconds each."""
        found = self._conntrack.find(flows, protocol=socket.IPPROTO_UDP)
        self._notice(found.values())
        return found

    def _notice(self, entries: Iterable[ConntrackEntry]) -> None:
        """Where there is NAT already, nothing has to be made for it."""
        self._has_nat = self._has_nat or any(entry.has_nat for entry in entries)

    def install(self) -> None:
        """Have the kernel look at entries' NAT here. May be called again. Raises ``NftError``."""
        if not self._has_nat and not self._installed:
            self._made = _install()
            self._installed = True

    def lead(self, entries: Sequence[ConntrackEntry]) -> None:
        """Put these entries in, in place of all that have a tuple in common with them.

        Raises ``NetfilterError`` with the first that could not be; the others are in.
        """
        leads = any(entry.has_nat for entry in entries)
        if leads:
            self.install()
        self._made = self._made and not entries
        left = list(entries)
        refused: dict[ConntrackEntry, int] = {}
        # One of that name is mostly there where there is NAT; in any case is tried what is quicker.
        self._conntrack.delete([entry for entry in left if entry.has_nat])
        for _ in range(_ATTEMPTS):
            errnos = self._conntrack.insert(left)
            now = {one: number for one, number in zip(left, errnos, strict=True) if number}
            refused |= {one: number for one, number in now.items() if number != errno.EEXIST}
            left = [one for one, number in now.items() if number == errno.EEXIST]
            if not left:
                break
            # The kernel finds an entry by either of its tuples.
            self._conntrack.delete([*left, *(replace(one, orig=one.reply) for one in left)])
        refused |= dict.fromkeys(left, errno.EEXIST)
        if leads and self._installed:  # another move may have forgotten it: see ``forget``
            _install()
        if refused:
            entry, number = next(iter(refused.items()))
            raise NetfilterError(f"cannot make the flow {entry.orig} lead elsewhere", number)


def _install() -> bool:
    """Make the table if it is not there. Returns whether that was so."""
    with Nft() as nft:
        if nft.has_table(TABLE):
            return False
        nft.run(_RULESET)
        return True


def _count() -> int:
    """How many entries the calling thread's namespace has."""
    try:
        return int(_COUNT.read_text())
    except FileNotFoundError:
        return 0


def forget(addresses: Iterable[str] = ()) -> bool:
    """Remove what ``lead`` made, if no flow is led in the calling thread's namespace any more.

    ``addresses``: flows that answer from these are no reason to keep it. Returns whether nothing is
    left. Raises ``NetfilterError``, ``NftError``. May be called while another move begins to lead:
    that one looks for the table when its entries are in, and this one for entries once the table
    is gone. One of them sees the other.
    """
    known = frozenset(addresses)
    with Conntrack() as conntrack, Nft() as nft:
        if not nft.has_table(TABLE):
            return True
        if _is_needed(conntrack, known):
            return False
        nft.delete_table(TABLE)
        if not _is_needed(conntrack, known):
            return True
        nft.run(_RULESET)
        return False


def _is_needed(conntrack: Conntrack, known: Collection[str]) -> bool:
    entries = [one for version in (4, 6) for one in conntrack.dump_datagrams(version=version)]
    return any(one.has_nat and one.reply.source.address not in known for one in entries)
