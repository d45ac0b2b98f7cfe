"""What has happened on the links of a node, as plain numbers; the metrics are made of them."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """Since the start. ``refused`` counts connections that never became a link, by reason."""

    accepted: int = 0
    """Connections that came in, whoever they are from."""
    dialled: int = 0
    """Connections that were tried."""
    established: int = 0
    """Links that came up."""
    refused: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    """Links that ended otherwise than by a goodbye."""
    bytes_in: int = 0
    bytes_out: int = 0
    frames_in: int = 0
    frames_out: int = 0
    requests_in: int = 0
    requests_out: int = 0
    failures_in: int = 0
    """Error replies that came."""
    failures_out: int = 0
    """Error replies that were sent."""
