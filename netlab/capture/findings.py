"""What a capture says about a move: resets, bytes sent again, new connections, acknowledgements.

Pure functions over `Packets` and `Flow`. Terms, precisely:

* A client's packet is *sent again* (a retransmission) if it has payload and begins before the end
  of what the client has sent already.
* Not so a *probe*: no payload, or one byte just before what the server has acknowledged, and a
  sequence number before the end of what was sent. That is a keep-alive or a window probe.
* A retransmission is *late* if it comes more than 50 ms after a resume and carries payload that had
  been sent for the first time before that resume. Such a client sat in its back-off when the server
  could have answered.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from netlab.capture.flows import Flow, Servers, flows
from netlab.capture.packets import ACK, FIN, RST, SYN, Column, Packets

LATE_SECONDS = 0.05


@dataclass(frozen=True)
class Event:
    """Something that happened on a connection. ``time`` as in the `Packets`."""

    time: float
    connection: str
    from_client: bool


@dataclass(frozen=True)
class Retransmission:
    """Payload that was sent again. ``position`` and ``length`` are bytes of the sender's stream;
    ``late`` is the index of the resume that it came too late after, or None."""

    time: float
    connection: str
    position: int
    length: int
    late: int | None


@dataclass(frozen=True)
class Findings:
    """The sum of it. ``opened``: the SYN of every connection that was opened during the capture.
    ``connections_by_client`` counts per path and client address (``service 10.0.0.2``): a client
    that never reconnects has as many as it says. ``server_fins``: connections that the server
    closed first. ``zero_windows``: each time that the server's receive window was full."""

    packets: int
    connections: int
    opened: tuple[Event, ...]
    resets: tuple[Event, ...]
    retransmissions: tuple[Retransmission, ...]
    late_retransmissions: tuple[Retransmission, ...]
    probes: int
    connections_by_client: dict[str, int]
    server_fins: tuple[Event, ...]
    zero_windows: tuple[Event, ...]


@dataclass(frozen=True)
class AckProgress:
    """How the server's acknowledgements of the client's bytes advanced in an interval of time.

    ``times``: when (as in the `Packets`), ``acknowledged``: bytes since the interval's beginning.
    ``sent``: bytes that the client sent for the first time in the interval. ``closed``: the server
    announced a window of zero in it.
    """

    times: Column
    acknowledged: Column
    sent: int
    closed: bool

    @property
    def total(self) -> int:
        """Bytes acknowledged in the interval."""
        return int(self.acknowledged[-1]) if len(self.acknowledged) else 0


def find(packets: Packets, servers: Servers, resumes: Sequence[float] = ()) -> Findings:
    """Look at every connection. ``resumes``: when the moved server went on, ascending, in the clock
    of the packets."""
    found = flows(packets, servers)
    again = [each for flow in found for each in retransmissions(packets, flow, resumes)]
    again.sort(key=lambda each: each.time)
    by_client = Counter(f"{flow.path} {flow.client}" for flow in found)
    return Findings(
        packets=len(packets),
        connections=len(found),
        opened=_opened(packets, found),
        resets=resets(packets, servers),
        retransmissions=tuple(again),
        late_retransmissions=tuple(each for each in again if each.late is not None),
        probes=sum(int(_probes(packets, flow).sum()) for flow in found),
        connections_by_client=dict(by_client),
        server_fins=_server_fins(packets, found),
        zero_windows=_zero_windows(packets, found),
    )


def resets(packets: Packets, servers: Servers) -> tuple[Event, ...]:
    """Every RST in the capture, whoever sent it, also outside of known connections."""
    everything = frozenset().union(*servers.paths.values())
    events = []
    for row in np.flatnonzero(packets.flags & RST).tolist():
        source = packets.addresses[packets.source[row]]
        destination = packets.addresses[packets.destination[row]]
        name = (
            f"{source}:{packets.source_port[row]} -> {destination}:{packets.destination_port[row]}"
        )
        to_server = destination in everything and packets.destination_port[row] in servers.ports
        events.append(Event(float(packets.time[row]), name, bool(to_server)))
    return tuple(events)


def retransmissions(
    packets: Packets, flow: Flow, resumes: Sequence[float] = ()
) -> list[Retransmission]:
    """The client's payload that was sent again on this connection."""
    sent_before = _sent_before(packets, flow)
    length = packets.payload[flow.rows]
    again = _client_data(packets, flow) & (flow.position < sent_before) & ~_probes(packets, flow)
    time = packets.time[flow.rows]
    ends = _ends(packets, flow)
    sent_until = [int(ends[time < resume].max(initial=0)) for resume in resumes]
    found = []
    for index in np.flatnonzero(again).tolist():
        late = None
        for move, resume in enumerate(resumes):
            if time[index] > resume + LATE_SECONDS and flow.position[index] < sent_until[move]:
                late = move
                break
        found.append(
            Retransmission(
                time=float(time[index]),
                connection=str(flow),
                position=int(flow.position[index]),
                length=int(length[index]),
                late=late,
            )
        )
    return found


def ack_progress(packets: Packets, flow: Flow, begin: float, end: float) -> AckProgress:
    """How the server acknowledged the client's bytes between two moments."""
    time = packets.time[flow.rows]
    flags = packets.flags[flow.rows]
    server = ~flow.from_client & ((flags & ACK) != 0) & ((flags & RST) == 0)
    before = flow.position[server & (time < begin)]
    within = server & (time >= begin) & (time <= end)
    positions = np.maximum.accumulate(flow.position[within])
    base = int(before.max()) if len(before) else int(positions[0]) if len(positions) else 0
    ends = _ends(packets, flow)
    sent = int(ends[time <= end].max(initial=0)) - int(ends[time < begin].max(initial=0))
    closed = within & (packets.window[flow.rows] == 0)
    return AckProgress(
        times=time[within],
        acknowledged=np.maximum(positions - base, 0),
        sent=sent,
        closed=bool(closed.any()),
    )


def _client_data(packets: Packets, flow: Flow) -> Column:
    reset = (packets.flags[flow.rows] & RST) != 0
    data: Column = flow.from_client & (packets.payload[flow.rows] > 0) & ~reset
    return data


def _ends(packets: Packets, flow: Flow) -> Column:
    """Where each client packet's bytes end in its stream; SYN and FIN count as one. 0 for
    others."""
    flags = packets.flags[flow.rows]
    counted = packets.payload[flow.rows] + ((flags & SYN) != 0) + ((flags & FIN) != 0)
    valid = flow.from_client & ((flags & RST) == 0) & (counted > 0)
    ends: Column = np.where(valid, flow.position + counted, 0)
    return ends


def _sent_before(packets: Packets, flow: Flow) -> Column:
    """For each packet, the end of what the client had sent before it."""
    highest = np.maximum.accumulate(_ends(packets, flow))
    return np.concatenate([np.zeros(1, np.int64), highest[:-1]])


def _probes(packets: Packets, flow: Flow) -> Column:
    """Keep-alives and window probes of the client: tcp_xmit_probe_skb() in net/ipv4/tcp_output.c
    sends no payload at snd_una - 1; other systems send one byte of garbage there."""
    flags = packets.flags[flow.rows]
    length = packets.payload[flow.rows]
    server = ~flow.from_client & ((flags & ACK) != 0) & ((flags & RST) == 0)
    acknowledged = np.maximum.accumulate(np.where(server, flow.position, -1))
    sent = _sent_before(packets, flow)
    plain = flow.from_client & ((flags & (SYN | FIN | RST)) == 0)
    empty = (length == 0) & (flow.position < sent)
    garbage = (length == 1) & (flow.position == acknowledged - 1)
    probes: Column = plain & (empty | garbage)
    return probes


def _opened(packets: Packets, found: list[Flow]) -> tuple[Event, ...]:
    """The first SYN of each connection whose beginning was captured."""
    events = []
    for flow in found:
        opening = flow.from_client & ((packets.flags[flow.rows] & (SYN | ACK)) == SYN)
        for row in flow.rows[opening][:1]:
            events.append(Event(float(packets.time[row]), str(flow), True))
    return tuple(sorted(events, key=lambda event: event.time))


def _server_fins(packets: Packets, found: list[Flow]) -> tuple[Event, ...]:
    """Connections that the server closed first: a moved container's FIN must not get out."""
    events = []
    for flow in found:
        fins = (packets.flags[flow.rows] & FIN) != 0
        first = np.flatnonzero(fins)[:1]
        for index in first[~flow.from_client[first]]:
            events.append(Event(float(packets.time[flow.rows[index]]), str(flow), False))
    return tuple(sorted(events, key=lambda event: event.time))


def _zero_windows(packets: Packets, found: list[Flow]) -> tuple[Event, ...]:
    """Each time that the server's window was closed: the first packet that says so."""
    events = []
    for flow in found:
        rows = flow.rows[~flow.from_client & ((packets.flags[flow.rows] & (SYN | RST)) == 0)]
        zero = packets.window[rows] == 0
        first = zero & ~np.concatenate([np.zeros(min(len(zero), 1), np.bool_), zero[:-1]])
        events += [Event(float(packets.time[row]), str(flow), False) for row in rows[first]]
    return tuple(sorted(events, key=lambda event: event.time))
