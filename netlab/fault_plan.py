"""Which faults a run injects: a pure function of their number and a seed.

The first are every kind with every role and step, each once, in a shuffled order. Those after them
are drawn, most of them in the handover and just after its commit, where what an agent knows and
what it has done come apart. A plan can be split into parts, for several labs.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from random import Random
from typing import Final, Self, TypeVar

from migrate.machine.machine import Action
from mycoproxy.errors import UsageError

_T = TypeVar("_T")

KINDS: Final = ("kill", "stop", "cut", "full")
ROLES: Final = ("source", "target", "peer")
STEPS: Final = (Action.FREEZE, Action.DUMP, Action.SEND, Action.RESTORE, Action.HAND_OVER)
#: How many faults it takes to have every combination of the three once.
EVERY: Final = len(KINDS) * len(ROLES) * len(STEPS)

#: Milliseconds that a step takes, more or less: a fault comes at any moment of it, or just after.
_LASTS: Final = {
    Action.FREEZE: 2,
    Action.DUMP: 100,
    Action.SEND: 10,
    Action.RESTORE: 40,
    Action.HAND_OVER: 80,
    Action.RESUME: 20,
    Action.GO_LIVE: 10,
    Action.REMOVE_SOURCE: 100,
}
_DRAWN: Final = (
    *(Action.FREEZE, Action.DUMP, Action.SEND, Action.RESTORE),
    *(Action.HAND_OVER,) * 8,
    *(Action.RESUME, Action.GO_LIVE, Action.REMOVE_SOURCE),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens, to whom, and when: ``delay_ms`` after the move has come to ``step``.

    ``seconds``: how long it lasts, unless all is over sooner; 0 of a kill, which is for ever.
    ``turn``: which of the other nodes the workload moves to, 0 or 1.
    """

    kind: str
    role: str
    step: Action
    delay_ms: float
    seconds: float
    turn: int

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.kind} {self.role}{lasting} {self.delay_ms:.0f} ms into {self.step.value}"


@dataclass(frozen=True, slots=True)
class Part:
    """Part ``number`` (from 1 on) of ``total``. All together are the whole, each thing once."""

    number: int = 1
    total: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``2/4``. Raises ``UsageError``."""
        found = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text)
        number, total = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= total:
            raise UsageError(f"a part is wanted, like 2/4 (the second of four); found {text!r}")
        return cls(number, total)

    def of(self, whole: Sequence[_T]) -> Sequence[_T]:
        """This part: every ``total``-th thing, so that all parts are alike."""
        return whole[self.number - 1 :: self.total]

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"


def choose(count: int, seed: int) -> list[Fault]:
    """``count`` faults. More of them with the same seed begin with the same ones."""
    return list(islice(_faults(Random(seed)), count))  # noqa: S311


def _faults(chance: Random) -> Iterator[Fault]:
    every = list(product(KINDS, ROLES, STEPS))
    chance.shuffle(every)
    for kind, role, step in every:
        yield _drawn(chance, kind, role, step)
    while True:
        yield _drawn(chance, chance.choice(KINDS), chance.choice(ROLES), chance.choice(_DRAWN))


def _drawn(chance: Random, kind: str, role: str, step: Action) -> Fault:
    delay = chance.uniform(0, _LASTS[step])
    # TCP makes up for a partition; but it tries less and less often, so the agents notice longer.
    cut = 0.5 * 8 ** chance.random()
    seconds = {"kill": 0.0, "stop": 5.0, "cut": cut, "full": 1.0}[kind]
    return Fault(kind, role, step, delay, seconds, chance.randrange(2))
