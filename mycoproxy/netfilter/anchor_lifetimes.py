"""What anchoring needs in a namespace goes when no anchored connection is left there.

The kernel ends conntrack's entries by itself, some seconds to minutes after their connections. So
nothing has to be looked up at once, and nobody listens: now and then ``sweep`` looks at those that
were anchored. An entry that is there no more, or has no NAT any more, is one less.

As long as any workload is being moved nothing is removed: an entry is missing for a moment while it
is replaced, and the names of those that are to be anchored are there before their entries.
"""

import time
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

from mycoproxy.addresses import FourTuple
from mycoproxy.namespaces import NamespaceWorker
from mycoproxy.netfilter.anchor import Anchors
from mycoproxy.netfilter.conntrack import Conntrack
from mycoproxy.netfilter.nft import Nft

_EVERY_SECONDS = 10.0
_CHUNK = 256  # entries looked up in one go, at some 6 us each


class AnchorLifetimes:
    """The anchored connections of one namespace. ``open`` first, ``close`` in the end.

    ``moving`` gives the addresses of the workloads that are moved right now, as for
    ``TranslationLifetimes``; it is called on any thread.
    """

    def __init__(
        self, worker: NamespaceWorker, *, moving: Callable[[], AbstractSet[str]] = frozenset
    ) -> None:
        self.remaining = 0
        """How many there were after the last sweep, or may have been."""
        self._worker = worker
        self._moving = moving
        self._begun = False
        self._opened = False
        self._due = 0.0  # when ``look`` sweeps again
        self._nft: Nft
        self._anchors: Anchors
        self._conntrack: Conntrack

    async def open(self) -> None:
        """Open the sockets to the kernel. Raises ``OSError``, ``MycoError``."""
        self._begun = True
        await self._worker.run(self._open)

    def _open(self) -> None:
        self._nft = Nft()
        self._anchors = Anchors(self._nft)
        self._conntrack = Conntrack()
        self._opened = True

    async def look(self) -> None:
        """``sweep`` if that was not done for a while. Raises like it."""
        if time.monotonic() >= self._due:
            await self.sweep()

    async def sweep(self) -> None:
        """Forget those that have ended, and with the last of them the table.

        Raises ``NetfilterError``; then the next one finds what is left.
        """
        self._due = time.monotonic() + _EVERY_SECONDS
        names = await self._worker.run(self._anchors.list)
        if self._moving():
            self.remaining = max(self.remaining, len(names), 1)
            return
        ended: list[FourTuple] = []
        for start in range(0, len(names), _CHUNK):
            ended += await self._worker.run(self._ended, names[start : start + _CHUNK])
        self.remaining = await self._worker.run(self._remove, ended, len(names))

    def _ended(self, names: Sequence[FourTuple]) -> list[FourTuple]:
        coming = {name: FourTuple(local=name.remote, remote=name.local) for name in names}
        found = self._conntrack.find(coming.values())
        return [name for name, one in coming.items() if one not in found or not found[one].has_nat]

    def _remove(self, ended: Sequence[FourTuple], known: int) -> int:
        """How many are left."""
        if self._moving():
            return max(known, 1)
        if len(ended) < known:
            self._anchors.remove(ended)
        else:
            self._anchors.clear()
        return known - len(ended)

    async def close(self) -> None:
        """Close the sockets. What is anchored stays so."""
        if self._begun:  # it may be under way, and cannot be stopped
            self._begun = False
            await self._worker.run(self._close)

    def _close(self) -> None:
        if not self._opened:
            return
        self._opened = False
        self._nft.close()
        self._conntrack.close()
