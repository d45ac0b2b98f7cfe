"""What a client says at its end: one JSON object."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from mycoproxy.errors import MycoError


@dataclass(frozen=True)
class LostConnection:
    """A connection that ended, or was never opened, or hangs. ``time``: monotonic seconds."""

    connection: int
    reason: str
    time: float


@dataclass(frozen=True)
class ClientSummary:
    """All that counts about a client's run. Times and waits are seconds.

    ``local_ports`` names the connections in a packet capture; ``longest_wait_s`` has one entry per
    connection; ``wrong`` describes the first wrong answers; ``details`` is the client's own.
    """

    client: str
    name: str
    group: str
    connections: int
    local_ports: tuple[int, ...]
    lost: tuple[LostConnection, ...]
    requests: int
    bytes_checked: int
    bytes_wrong: int
    wrong: tuple[str, ...]
    longest_wait_s: tuple[float, ...]
    started: float
    ended: float
    stopped_by: str
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """No connection was lost and no byte was wrong."""
        return not self.lost and not self.bytes_wrong and not self.wrong

    def to_json(self) -> str:
        """The summary as one line."""
        return json.dumps({"state": "done", "ok": self.ok, **dataclasses.asdict(self)})

    @classmethod
    def from_json(cls, line: str | bytes) -> "ClientSummary":
        """Read what ``to_json`` wrote. Raises ``MycoError`` if it is something else."""
        try:
            found = json.loads(line)
            names = {each.name for each in dataclasses.fields(cls)}
            values = {name: value for name, value in found.items() if name in names}
            values["lost"] = tuple(LostConnection(**each) for each in values["lost"])
            for name in ("local_ports", "wrong", "longest_wait_s"):
                values[name] = tuple(values[name])
            return cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise MycoError(f"a load client's summary wanted, found {line[:200]!r}") from error
