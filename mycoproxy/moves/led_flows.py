"""Removes what leads UDP flows in one namespace when none is led there any more.

The flows themselves end by their conntrack timeouts. What is left is a table (see
``datagram_flows``), which does no harm: so it is looked at seldom, and more and more seldom.
"""

import time
from typing import Final

from mycoproxy.namespaces import NamespaceWorker
from mycoproxy.netfilter.datagram_flows import forget

_FIRST: Final = 30.0  # seconds; as long as a flow lives at least
_LONGEST: Final = 600.0


class LedFlows:
    """``remain`` until it was found that there are none."""

    def __init__(self, worker: NamespaceWorker) -> None:
        self._worker = worker
        self.remain = True
        self._due = 0.0
        self._pause = _FIRST

    def begin(self) -> None:
        """A move has ended that may have led some here."""
        self.remain = True
        self._due, self._pause = 0.0, _FIRST

    async def look(self) -> None:
        """Look, if it is time. 0.2 ms; tens where there is a table. Raises ``NetfilterError``,
        ``NftError``."""
        if self.remain and time.monotonic() >= self._due:
            self.remain = not await self._worker.run(forget)
            self._due, self._pause = time.monotonic() + self._pause, min(2 * self._pause, _LONGEST)
