"""What a move came to: times, phases, connections."""

from dataclasses import dataclass, field

from mycoproxy.handover import Rehomed

#: The phases a freeze consists of, in their order. Each begins where the one before ends.
PHASES = ("freeze", "dump", "send", "restore", "handover", "resume")


@dataclass(slots=True)
class MoveReport:
    """Times are ``CLOCK_MONOTONIC`` seconds.

    ``marks`` has the end of each phase by its name, and
    ``begin`` for the freeze's first moment. ``remarks``: what could not be kept of the connections.
    ``welcomed``: how many new ones came to the source when the workload had left it.
    ``datagram_flows``: UDP flows that were known; ``datagrams``: how many were passed on.
    """

    move_id: str
    source: str
    target: str
    marks: dict[str, float] = field(default_factory=dict)
    handover_steps_ms: dict[str, float] = field(default_factory=dict)
    connections: int = 0
    rehomed: list[Rehomed] = field(default_factory=list)
    replayed_packets: int = 0
    welcomed: int = 0
    datagram_flows: int = 0
    datagrams: int = 0
    memory_bytes: int = 0
    image_bytes: int = 0
    remarks: tuple[str, ...] = ()
    warnings: list[str] = field(default_factory=list)

    @property
    def freeze_ms(self) -> float:
        """From the workload's last instruction on the source to its first on the target."""
        return (max(self.marks.values()) - self.marks["begin"]) * 1e3

    def phases_ms(self) -> dict[str, float]:
        """How long each phase of the freeze took; the sum is ``freeze_ms``."""
        durations = {}
        begin = self.marks["begin"]
        for phase in PHASES:
            if phase in self.marks:
                durations[phase] = (self.marks[phase] - begin) * 1e3
                begin = self.marks[phase]
        return durations

    def as_dict(self) -> dict[str, object]:
        """For ``--json``."""
        paths: dict[str, int] = {}
        for one in self.rehomed:
            key = f"{one.path.value}@{one.peer}"
            paths[key] = paths.get(key, 0) + 1
        return {
            "move": self.move_id,
            "source": self.source,
            "target": self.target,
            "freeze_ms": round(self.freeze_ms, 3),
            "phases_ms": {name: round(value, 3) for name, value in self.phases_ms().items()},
            "handover_steps_ms": {
                name: round(value, 3) for name, value in self.handover_steps_ms.items()
            },
            "connections_moved": self.connections,
            "rehomed": paths,
            "replayed_packets": self.replayed_packets,
            "new_connections_passed_on": self.welcomed,
            "datagram_flows": self.datagram_flows,
            "datagrams_passed_on": self.datagrams,
            "memory_bytes": self.memory_bytes,
            "image_bytes": self.image_bytes,
            "remarks": list(self.remarks),
            "warnings": self.warnings,
        }
