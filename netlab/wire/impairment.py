"""What happens to the packets that go over a wire in one direction: pure, in anyone's time.

A `Schedule` is told what arrives when, and says what leaves when. It looks at no clock, so a test
runs it in virtual time; its random numbers are its own, so the same seed and the same packets at
the same times give the same result. The words are those of netem (tc-netem(8)).
"""

import heapq
import math
import random
from dataclasses import dataclass

from mycoproxy.errors import UsageError

#: Longest time that a packet is held back so that others overtake it, seconds. It has to do with
#: the spacing of packets and with nothing else: some hundred packets pass in that time.
HELD_BACK = 0.002

#: What a wire with a rate buffers, in seconds of that rate. A packet that would wait longer is
#: dropped (tail drop): a sender that is too fast is to notice, and memory has a bound.
BUFFERED = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Impairment:
    """What a wire does to packets, each of them on its own. As it is by default: nothing.

    ``loss``, ``duplicate``, ``reorder``: probabilities, 0 to 1. A packet that is reordered is held
    back for up to `HELD_BACK` seconds; it is overtaken if others follow it in that time.
    ``delay``: seconds; ``jitter``: seconds, up to that much is added to each packet's delay, and
    packets closer together than their jitter change places. Without ``jitter`` and ``reorder`` the
    order is kept. ``rate``: bytes per second (Ethernet frames), or None for no limit.

    Raises ``UsageError`` for values out of range.
    """

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    rate: float | None = None

    def __post_init__(self) -> None:
        for name in ("loss", "duplicate", "reorder"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UsageError(f"{name}: a probability from 0 to 1 is wanted, found {value}")
        for name in ("delay", "jitter"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise UsageError(f"{name}: seconds, 0 or more, are wanted, found {value}")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise UsageError(f"rate: bytes per second or None is wanted, found {self.rate}")


@dataclass(slots=True)
class Counters:
    """What happened so far.

    ``packets``: arrived at the wire. ``lost``: of these, lost by chance. ``duplicated``: second
    copies made. ``reordered``: copies that left after a packet which had arrived later (RFC 4737).
    ``dropped``: packets that did not fit into the buffer of a wire with a rate, and copies that
    found the interface down on the other side. ``delivered``: copies that came out.
    """

    packets: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    dropped: int = 0
    delivered: int = 0

    def __add__(self, other: "Counters") -> "Counters":
        return Counters(
            *(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__)
        )


class Schedule:
    """The packets under way in one direction. Times are seconds, of any clock that does not go
    backwards.

    ``impairment`` may be set at any time and holds for what arrives from then on; if it makes the
    delay shorter, new packets overtake those that are under way.
    """

    def __init__(self, impairment: Impairment, seed: int | str) -> None:
        self.impairment = impairment
        self.counters = Counters()
        self._random = random.Random(seed)  # noqa: S311  (not a secret)
        # (departure, serial number of the copy, number of the packet, the packet)
        self._under_way: list[tuple[float, int, int, bytes]] = []
        self._copies = 0
        self._furthest = 0  # the highest number of a packet that has left
        self._free_at = -math.inf  # when the sender of a wire with a rate has sent all before

    def arrive(self, now: float, packet: bytes) -> None:
        """A packet comes in at ``now``."""
        impairment = self.impairment
        self.counters.packets += 1
        if self._happens(impairment.loss):
            self.counters.lost += 1
            return
        copies = 1
        if self._happens(impairment.duplicate):
            self.counters.duplicated += 1
            copies = 2
        for _ in range(copies):
            departure = now
            if impairment.rate is not None:
                departure = max(now, self._free_at)
                if departure - now > BUFFERED:
                    self.counters.dropped += 1
                    continue
                departure += len(packet) / impairment.rate
                self._free_at = departure
            departure += impairment.delay
            if impairment.jitter:
                departure += self._random.uniform(0, impairment.jitter)
            if self._happens(impairment.reorder):
                departure += self._random.uniform(0, HELD_BACK)
            self._copies += 1
            entry = (departure, self._copies, self.counters.packets, packet)
            heapq.heappush(self._under_way, entry)

    def leave(self, now: float) -> list[bytes]:
        """Take out the copies that leave until ``now``, in their order."""
        leaving = []
        while self._under_way and self._under_way[0][0] <= now:
            _, _, number, packet = heapq.heappop(self._under_way)
            if number < self._furthest:
                self.counters.reordered += 1
            else:
                self._furthest = number
            leaving.append(packet)
        return leaving

    def next_departure(self) -> float | None:
        """When the next copy leaves. None: there is none under way."""
        return self._under_way[0][0] if self._under_way else None

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self._random.random() < probability
