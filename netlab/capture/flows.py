"""Sorts captured packets into TCP connections, and follows the client's sequence numbers.

A connection of a moved workload may change its server address in the middle, as seen on the wire
(that is what `translate` does). So a connection is named by the path it takes (`Servers`) and by
the client's end; the server's address is only looked at to tell the path. A client's port that is
used again begins a new connection with its SYN.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from netlab.capture.packets import ACK, RST, SYN, Column, Packets


@dataclass(frozen=True)
class Servers:
    """Where the server is reached: for each path (``service``, ``direct``) the addresses that stand
    for it, all of them the same server, and the ports it listens on."""

    paths: Mapping[str, frozenset[str]]
    ports: frozenset[int]


@dataclass(frozen=True)
class Flow:
    """One TCP connection in the capture.

    ``rows`` are its packets' rows in order; ``from_client`` says which way each went. ``position``
    is, for each of them, the place in the client's byte stream that the packet speaks of, counted
    from the flow's first packet: the sequence number of a client's packet, the acknowledgement
    number of a server's. It does not wrap. RSTs have no meaningful place: theirs repeats the last
    one.
    """

    path: str
    client: str
    client_port: int
    rows: Column
    from_client: Column
    position: Column

    def __str__(self) -> str:
        return f"{self.client}:{self.client_port} ({self.path})"


def flows(packets: Packets, servers: Servers) -> list[Flow]:
    """All connections to the server, in the order of path, client and port."""
    names = sorted(servers.paths)
    path_of = np.full(max(len(packets.addresses), 1), -1)
    for number, name in enumerate(names):
        for index, address in enumerate(packets.addresses):
            if address in servers.paths[name]:
                path_of[index] = number
    ports = np.array(sorted(servers.ports))
    to_server = (path_of[packets.destination] >= 0) & np.isin(packets.destination_port, ports)
    to_client = (path_of[packets.source] >= 0) & np.isin(packets.source_port, ports) & ~to_server
    rows = np.flatnonzero(to_server | to_client)
    if not len(rows):
        return []
    up = to_server[rows]
    path = np.where(up, path_of[packets.destination[rows]], path_of[packets.source[rows]])
    client = np.where(up, packets.source[rows], packets.destination[rows])
    port = np.where(up, packets.source_port[rows], packets.destination_port[rows])
    key = (path * len(packets.addresses) + client) * 65536 + port
    order = np.argsort(key, kind="stable")
    bounds = np.flatnonzero(np.diff(key[order])) + 1
    found = []
    for part in np.split(order, bounds):
        first = part[0]
        for begin, end in _incarnations(packets, rows[part], up[part]):
            members = part[begin:end]
            found.append(
                Flow(
                    path=names[path[first]],
                    client=packets.addresses[client[first]],
                    client_port=int(port[first]),
                    rows=rows[members],
                    from_client=up[members],
                    position=_positions(packets, rows[members], up[members]),
                )
            )
    return found


def _incarnations(packets: Packets, rows: Column, up: Column) -> list[tuple[int, int]]:
    opening = up & ((packets.flags[rows] & (SYN | ACK)) == SYN)
    begins = [0]
    last_seq: int | None = None
    for index in np.flatnonzero(opening).tolist():
        seq = int(packets.seq[rows[index]])
        # The same sequence number is the same SYN sent again.
        if seq != last_seq and index > 0:
            begins.append(index)
        last_seq = seq
    return list(zip(begins, [*begins[1:], len(rows)], strict=True))


def _positions(packets: Packets, rows: Column, up: Column) -> Column:
    number = np.where(up, packets.seq[rows], packets.ack[rows])
    flags = packets.flags[rows]
    usable = ((flags & RST) == 0) & (up | ((flags & ACK) != 0))
    known = number[usable]
    # Modulo 2^32 the step from one packet to the next is never near 2^31: half the sequence space
    # cannot be in flight (RFC 7323, 2.3).
    steps = (np.diff(known) + 2**31) % 2**32 - 2**31
    unwrapped = np.concatenate([np.zeros(min(len(known), 1), np.int64), np.cumsum(steps)])
    positions = np.zeros(len(rows), np.int64)
    if len(unwrapped):
        last_usable = np.maximum(np.cumsum(usable) - 1, 0)
        positions = unwrapped[last_usable]
    return positions
