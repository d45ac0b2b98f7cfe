"""The connection tracking table of one network namespace: find, list, insert, delete.

Entries of known connections are looked up by name, one hash lookup in the kernel each. A dump
would walk every bucket of the table, which is one for all network namespaces of the machine.
"""

import errno
import socket
import struct
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.netfilter import abi
from mycoproxy.netfilter.elements import on_the_wire
from mycoproxy.netfilter.entry import (
    ConntrackEntry,
    Direction,
    decode_entry,
    encode_entry,
    encode_name,
    encode_tuple,
    encode_zone,
    wire_direction,
)
from mycoproxy.netfilter.nfnetlink import (
    NetfilterError,
    Nfnetlink,
    Request,
    attribute,
    nested,
)


class Conntrack:
    """The conntrack table of the namespace that the calling thread is in at creation."""

    def __init__(self) -> None:
        self._netlink = Nfnetlink()

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def find(
        self,
        connections: Iterable[FourTuple],
        *,
        zone: int = 0,
        protocol: int = socket.IPPROTO_TCP,
    ) -> dict[FourTuple, ConntrackEntry]:
        """The entries of these connections, by the names that were asked for.

        A connection is named as the workload's socket sees it, which is an entry's reply tuple.
        Connections that are not tracked in this namespace are left out.
        """
        asked = list(connections)
        tuples = [wire_direction(one.local, one.remote) for one in asked]
        entries = self._get(abi.CTA_TUPLE_REPLY, tuples, zone, protocol)
        return {
            name: entry
            for name, direction, entry in zip(asked, tuples, entries, strict=True)
            # The kernel finds an entry by either of its tuples. The other way round this would be
            # a connection that the workload opened itself, through this node: also its name.
            if entry is not None and direction in (entry.reply, entry.orig)
        }

    def get(self, orig: Direction, *, zone: int = 0) -> ConntrackEntry | None:
        """The entry with this original tuple, ``None`` if there is none."""
        (entry,) = self._get(abi.CTA_TUPLE_ORIG, [orig], zone, socket.IPPROTO_TCP)
        return entry if entry is not None and entry.orig == orig else None

    def _get(
        self, kind: int, tuples: Sequence[Direction], zone: int, protocol: int
    ) -> list[ConntrackEntry | None]:
        answers = self._netlink.exchange(
            [
                Request(
                    abi.NFNL_SUBSYS_CTNETLINK,
                    abi.IPCTNL_MSG_CT_GET,
                    _family(direction),
                    encode_tuple(kind, direction, protocol) + encode_zone(zone),
                )
                for direction in tuples
            ]
        )
        for answer in answers:
            if answer.errno not in (0, errno.ENOENT):
                raise NetfilterError("cannot read the conntrack table", answer.errno)
        return [
            decode_entry(answer.attributes, protocol) if answer.attributes is not None else None
            for answer in answers
        ]

    def dump(
        self, *, version: int, workload: Endpoint | None = None, zone: int = 0
    ) -> list[ConntrackEntry]:
        """All TCP entries of a family (4 or 6), of one zone; of one answering endpoint if given.

        The kernel sorts out what it can, so that few entries of a big table are copied: the family
        and zone, the port, and an IPv4 address. Not an IPv6 address: kernels had that comparison
        the wrong way round (ctnetlink_filter_match_tuple); it is done here.
        """
        family = abi.NFPROTO_IPV4 if version == 4 else abi.NFPROTO_IPV6
        attributes = encode_zone(zone)
        if workload is not None:
            workload = on_the_wire(workload)
            attributes += _filter(workload)
        payloads = self._netlink.dump(
            Request(abi.NFNL_SUBSYS_CTNETLINK, abi.IPCTNL_MSG_CT_GET, family, attributes)
        )
        entries = (decode_entry(payload) for payload in payloads)
        # A dump may show an entry twice if the table is resized under it.
        unique = {entry.orig: entry for entry in entries if entry is not None}
        return [
            entry
            for entry in unique.values()
            if entry.zone == zone and (workload is None or entry.reply.source == workload)
        ]

    def dump_datagrams(self, *, version: int, zone: int = 0) -> list[ConntrackEntry]:
        """All UDP entries of a family (4 or 6) and zone. No others are copied out of the kernel."""
        unspecified = Endpoint("0.0.0.0" if version == 4 else "::", 0)
        shape = encode_tuple(
            abi.CTA_TUPLE_REPLY, Direction(unspecified, unspecified), socket.IPPROTO_UDP
        )
        attributes = encode_zone(zone) + shape + _compared(abi.CTA_FILTER_F_CTA_PROTO_NUM)
        family = abi.NFPROTO_IPV4 if version == 4 else abi.NFPROTO_IPV6
        payloads = self._netlink.dump(
            Request(abi.NFNL_SUBSYS_CTNETLINK, abi.IPCTNL_MSG_CT_GET, family, attributes)
        )
        entries = (decode_entry(payload, socket.IPPROTO_UDP) for payload in payloads)
        unique = {entry.orig: entry for entry in entries if entry is not None}
        return [entry for entry in unique.values() if entry.zone == zone]

    def insert(self, entries: Sequence[ConntrackEntry]) -> list[int]:
        """Insert entries; the result has an errno for each (0: inserted, EEXIST: its tuple is
        taken already)."""
        return self._errnos([_insertion(entry) for entry in entries])

    def delete(self, entries: Sequence[ConntrackEntry]) -> list[int]:
        """Delete entries by original tuple and zone; the result has an errno for each (0:
        deleted, ENOENT: was gone, EBUSY: offloaded to a flow table)."""
        return self._errnos([_deletion(entry) for entry in entries])

    def replace(self, pairs: Sequence[tuple[ConntrackEntry, ConntrackEntry]]) -> list[int]:
        """Put the second entry of each pair in the first one's place; an errno for each pair.

        A first entry that is gone already (expired, flushed) is no error.
        """
        requests = [request for old, new in pairs for request in (_deletion(old), _insertion(new))]
        errnos = self._errnos(requests)
        return [
            inserted if deleted in (0, errno.ENOENT) else deleted
            for deleted, inserted in zip(errnos[::2], errnos[1::2], strict=True)
        ]

    def _errnos(self, requests: Sequence[Request]) -> list[int]:
        return [answer.errno for answer in self._netlink.exchange(requests)]


def _insertion(entry: ConntrackEntry) -> Request:
    return Request(
        abi.NFNL_SUBSYS_CTNETLINK,
        abi.IPCTNL_MSG_CT_NEW,
        entry.family,
        encode_entry(entry),
        abi.NLM_F_CREATE | abi.NLM_F_EXCL | abi.NLM_F_ACK,
    )


def _deletion(entry: ConntrackEntry) -> Request:
    return Request(
        abi.NFNL_SUBSYS_CTNETLINK,
        abi.IPCTNL_MSG_CT_DELETE,
        entry.family,
        encode_name(entry),
        abi.NLM_F_ACK,
    )


def _family(direction: Direction) -> int:
    return abi.NFPROTO_IPV6 if ":" in direction.source.address else abi.NFPROTO_IPV4


def _filter(workload: Endpoint) -> bytes:
    flags = abi.CTA_FILTER_F_CTA_PROTO_NUM | abi.CTA_FILTER_F_CTA_PROTO_SRC_PORT
    if workload.version == 4:
        flags |= abi.CTA_FILTER_F_CTA_IP_SRC
    # Only the fields that the flags name are compared: the other end may be anything.
    shape = encode_tuple(abi.CTA_TUPLE_REPLY, Direction(workload, workload))
    return shape + _compared(flags)


def _compared(flags: int) -> bytes:
    """Which fields of the reply tuple a dump compares (CTA_FILTER_F_CTA_*)."""
    return nested(abi.CTA_FILTER, attribute(abi.CTA_FILTER_REPLY_FLAGS, struct.pack("=I", flags)))
