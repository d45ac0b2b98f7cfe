"""How long an agent waits for others in a move, and how much it takes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds, and bytes. ``call``: for one request to another agent; ``say``: for a message of the
    agreement, which is repeated if it is lost; ``ask``: how often a part that has not begun asks
    whether it will; ``unbound``: when it gives up if the source cannot be asked."""

    call: float = 20.0
    say: float = 5.0
    ask: float = 3.0
    unbound: float = 300.0
    votes: float = 60.0
    queues: int = 1 << 30


DEFAULT = Limits()
