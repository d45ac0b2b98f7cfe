"""One set of findings out of several captures that were taken at different places.

A connection must be seen by one of them only (captures at the clients' own devices are so).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeVar

from netlab.capture.findings import Event, Findings, Retransmission

Timed = TypeVar("Timed", Event, Retransmission)


def merge(findings: Sequence[Findings]) -> Findings | None:
    """The sum of the findings, events in time order; None if there are none."""
    if not findings:
        return None
    by_client: Counter[str] = Counter()
    for each in findings:
        by_client.update(each.connections_by_client)
    return Findings(
        packets=sum(each.packets for each in findings),
        connections=sum(each.connections for each in findings),
        opened=_merged(each.opened for each in findings),
        resets=_merged(each.resets for each in findings),
        retransmissions=_merged(each.retransmissions for each in findings),
        late_retransmissions=_merged(each.late_retransmissions for each in findings),
        probes=sum(each.probes for each in findings),
        connections_by_client=dict(by_client),
        server_fins=_merged(each.server_fins for each in findings),
        zero_windows=_merged(each.zero_windows for each in findings),
    )


def _merged(events: Iterable[tuple[Timed, ...]]) -> tuple[Timed, ...]:
    return tuple(sorted((one for each in events for one in each), key=lambda event: event.time))
