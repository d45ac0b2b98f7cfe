"""Which moves a node takes part in: not more than its limits allow, and none to a node that drains.

Asked before anything is done for a move. What is under way goes on, whatever is changed here: a
move that was let in is finished. A part as a peer is never refused: without it the clients of this
node would lose their connections.
"""

from collections import Counter
from dataclasses import dataclass, field

from mycoproxy.errors import RefusedError

REASONS = ("draining", "moves", "connections")
"""What can be refused for."""


@dataclass(slots=True)
class Admission:
    """Can be changed at any time. None: no limit."""

    draining: bool = False
    most_moves: int | None = None
    """As source or target, at once."""
    most_connections: int | None = None
    """Of one move from here."""
    refused: Counter[str] = field(default_factory=Counter)
    """How often, by reason."""

    def coming(self, name: str) -> None:
        """May a move come here? Raises ``RefusedError``."""
        if self.draining:
            self.refused["draining"] += 1
            raise RefusedError(
                f"{name}: this node is draining, and takes in no workload: choose another target, "
                "or end that here: mycoproxy drain --undo"
            )

    def one_more(self, name: str, under_way: int) -> None:
        """May there be one more, beside those ``under_way``? Raises ``RefusedError``."""
        if self.most_moves is not None and under_way >= self.most_moves:
            self.refused["moves"] += 1
            raise RefusedError(
                f"{name}: {under_way} moves from or to this node are under way, and limits.moves "
                f"is {self.most_moves}: wait for one to end (mycoproxy moves), or allow more"
            )

    def connections(self, name: str, count: int) -> None:
        """May one move have so many? Raises ``RefusedError``."""
        if self.most_connections is not None and count > self.most_connections:
            self.refused["connections"] += 1
            raise RefusedError(
                f"{name}: the workload has {count} connections, and limits.connections is "
                f"{self.most_connections}: allow more, or move it when it has fewer"
            )
