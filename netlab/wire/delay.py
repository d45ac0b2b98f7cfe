"""Frames that leave as they came, a fixed time later: pure, in anyone's time.

What `impairment.Schedule` does for one setting of it, at a third of the price: no chance, no heap,
as nothing overtakes. It is for links that are to carry gigabits.
"""

from collections import deque

from netlab.wire.impairment import Counters

#: What may be under way in one direction, bytes: 40 ms at 13 Gbit/s. A frame beyond that is
#: dropped, so memory has a bound; it takes memory only when so much is under way.
ROOM_BYTES = 64 << 20

#: What a frame takes beside its bytes, about: so small ones are bounded too.
_FRAME_OVERHEAD = 200


class DelayLine:
    """The frames under way in one direction. Times are seconds, of any clock that does not go
    backwards.

    ``counters.dropped`` has the frames that found no room (and those that the forwarder could not
    write, as ever); ``room`` is `ROOM_BYTES` but for a test.
    """

    def __init__(self, delay: float, *, room: int = ROOM_BYTES) -> None:
        self.counters = Counters()
        self._delay = delay
        self._room = room
        self._under_way: deque[tuple[float, bytes]] = deque()

    def arrive(self, now: float, packet: bytes) -> None:
        """A frame comes in at ``now``."""
        counters = self.counters
        counters.packets += 1
        room = self._room - len(packet) - _FRAME_OVERHEAD
        if room < 0:
            counters.dropped += 1
            return
        self._room = room
        self._under_way.append((now + self._delay, packet))

    def leave(self, now: float) -> list[bytes]:
        """Take out the frames that leave until ``now``, in the order in which they came."""
        leaving = []
        under_way = self._under_way
        while under_way and under_way[0][0] <= now:
            packet = under_way.popleft()[1]
            self._room += len(packet) + _FRAME_OVERHEAD
            leaving.append(packet)
        return leaving

    def next_departure(self) -> float | None:
        """When the next frame leaves. None: there is none under way."""
        return self._under_way[0][0] if self._under_way else None
