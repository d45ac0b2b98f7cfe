"""How an upload fared while its server stood still: the frozen server's kernel must go on
acknowledging, until the receive window is full."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from netlab.capture.findings import ack_progress
from netlab.capture.flows import Servers, flows
from netlab.capture.packets import Packets
from netlab.load.summary import ClientSummary
from netlab.report import MoveTimes


@dataclass(frozen=True, slots=True)
class UploadInFreeze:
    """One upload during one freeze, from its beginning to the handover.

    ``sent`` and ``acknowledged`` are bytes; ``window_full``: the server announced a window of zero.
    """

    client: str
    move: int
    sent: int
    acknowledged: int
    window_full: bool


def uploads_in_freezes(
    packets: Packets,
    servers: Servers,
    clients: Iterable[ClientSummary],
    moves: Sequence[MoveTimes],
) -> list[UploadInFreeze]:
    """Every upload of ``clients`` that is in this capture, during every move."""
    by_port = {
        port: client.name
        for client in clients
        if client.client == "upload"
        for port in client.local_ports
    }
    found = []
    for flow in flows(packets, servers):
        name = by_port.get(flow.client_port)
        if name is None:
            continue
        for move in moves:
            progress = ack_progress(packets, flow, move.freeze_start, move.handover_start)
            found.append(
                UploadInFreeze(name, move.index, progress.sent, progress.total, progress.closed)
            )
    return found
