"""Translations live exactly as long as their connections: who sees to it in one network namespace.

The kernel tells of the sockets it frees, and of conntrack entries (``DestroyedSockets``,
``EndedEntries``); then the connection is looked up by its name, and again when its TIME_WAIT is
over. A sweep finds what nobody told: events are lost if there are too many, nobody listened while
no agent ran, a socket that a reset took from a program still has a descriptor. What is between is
harmless, see ``translate``: a translation without a connection touches nothing.

Entries of conntrack (``rebind``, anchors, ``admit``) need none of this. The kernel ends them as it
ends its own: soon after FIN or RST, in the end by their timeout, at once when a SYN begins anew.

``attend`` drives it. Or somebody else waits until ``fileno`` is readable or ``look_in`` is over,
and calls ``react``, and ``sweep`` now and then. After a move that translated something here
``sweep`` is called in any case: nobody listens where nothing is translated.

Everything is done on the namespace's worker, where moves make their translations, too: so a
connection cannot be looked up, and then be translated, and removed after that.
"""

import asyncio
import select
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.namespaces import NamespaceWorker
from mycoproxy.netfilter.conntrack import Conntrack
from mycoproxy.netfilter.conntrack_events import EndedEntries
from mycoproxy.netfilter.endings import Ending, Evidence, Standing, judge
from mycoproxy.netfilter.nft import Nft
from mycoproxy.netfilter.translate import TABLE, Translate
from mycoproxy.sockdiag import DestroyedSockets, FoundSocket, SocketLookup

# What is missing is looked for once more after this, before it counts as ended.
_MISSING_SECONDS = 2.0
# A connection that is being moved is left alone, and looked at again.
_MOVING_SECONDS = 1.0
# A TIME_WAIT goes a little later than its timer says (timers are rounded up to a jiffy or more).
_LATE_SECONDS = 0.02
# Looked up in one go. A lookup takes some 15 us, and a handover waits behind it.
_CHUNK = 256
# ``attend`` leaves this share of the worker's time to others, since any removal lists everything.
_SHARE = 20
_LEAST_PAUSE_SECONDS = 0.01

_TRACKED = Path("/proc/sys/net/netfilter/nf_conntrack_count")
_RTN_LOCAL = 2  # linux/rtnetlink.h


class TranslationLifetimes:
    """The translations of one namespace. ``open`` first, ``close`` in the end.

    ``moving`` gives the addresses, old and new, of the workloads that are moved right now; it is
    called on the worker's thread. A translation that has one of them at either end is not removed.
    """

    def __init__(
        self, worker: NamespaceWorker, *, moving: Callable[[], AbstractSet[str]] = frozenset
    ) -> None:
        self.removed: Counter[Ending] = Counter()
        """How many translations were removed, and for what."""
        self.remaining = 0
        """How many there were when ``sweep`` or ``react`` looked last."""
        self._worker = worker
        self._moving = moving
        self._lock = asyncio.Lock()
        self._woken = asyncio.Event()
        self._readable = select.epoll()
        self._begun = False
        self._opened = False
        self._nft: Nft
        self._translate: Translate
        self._sockets: SocketLookup
        self._conntrack: Conntrack
        self._events: tuple[DestroyedSockets, EndedEntries] | None = None
        self._places: dict[FourTuple, Endpoint] = {}
        self._names: dict[FourTuple, FourTuple] = {}
        self._ports: dict[int, set[FourTuple]] = {}
        self._told: set[FourTuple] = set()
        self._missing: set[FourTuple] = set()
        self._again: dict[FourTuple, float] = {}

    def fileno(self) -> int:
        """Readable when ``react`` has something to do."""
        return self._readable.fileno()

    def look_in(self) -> float | None:
        """In how many seconds ``react`` has something to do anyway; None: never."""
        due = min(self._again.values(), default=None)
        return None if due is None else max(0.0, due - time.monotonic())

    async def open(self) -> None:
        """Open the sockets to the kernel. Raises ``OSError``, ``MycoError``."""
        self._begun = True
        await self._worker.run(self._open)

    def _open(self) -> None:
        self._nft = Nft()
        self._translate = Translate(self._nft)
        self._sockets = SocketLookup()
        self._conntrack = Conntrack()
        self._opened = True

    async def sweep(self) -> None:
        """Look at every translation, and listen from now on if there are any.

        Raises ``NetfilterError``, ``OSError``; then the next one finds what is left.
        """
        async with self._lock:
            await self._worker.run(self._list)
            await self._look_at(list(self._places))
        self._woken.set()

    async def react(self) -> None:
        """Look at those that the kernel told of, and those whose time has come.

        Raises like ``sweep``.
        """
        async with self._lock:
            if not await self._worker.run(self._read_events):
                await self._worker.run(self._list)
                await self._look_at(list(self._places))
                return
            now = time.monotonic()
            await self._look_at([one for one, when in self._again.items() if when <= now])

    async def attend(self, *, every_seconds: float = 30.0) -> None:
        """Do all that until it is cancelled, with a sweep every so often. Raises like ``sweep``."""
        loop = asyncio.get_running_loop()
        await self.sweep()
        swept = loop.time()
        while True:
            left = swept + every_seconds - loop.time()
            due = self.look_in()
            await self._wait(left if due is None else min(left, due))
            begun = loop.time()
            if begun >= swept + every_seconds:
                await self.sweep()
                swept = loop.time()
            await self.react()
            await asyncio.sleep(max(_LEAST_PAUSE_SECONDS, _SHARE * (loop.time() - begun)))

    async def _wait(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self.fileno(), self._woken.set)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, seconds)):
                    await self._woken.wait()
        finally:
            self._woken.clear()
            loop.remove_reader(self.fileno())

    async def close(self) -> None:
        """Listen no more. The translations stay."""
        async with self._lock:
            if self._begun:  # it may be under way, and cannot be stopped
                self._begun = False
                await self._worker.run(self._close)
            self._readable.close()

    def _close(self) -> None:
        if not self._opened:
            return
        self._opened = False
        self._listen(wanted=False)
        self._nft.close()
        self._sockets.close()
        self._conntrack.close()

    def _list(self) -> None:
        # Whoever ends after this is told of; whoever has ended before is looked up.
        self._listen(wanted=self._nft.has_table(TABLE))
        self.removed[Ending.SUPERSEDED] += self._translate.tidy()
        self._learn()

    def _learn(self) -> None:
        self._places = self._translate.list()
        self.remaining = len(self._places)
        self._names = {}
        self._ports = defaultdict(set)
        for dialled in self._places:
            self._names[dialled] = self._names[_reversed(dialled)] = dialled
            self._ports[dialled.remote.port].add(dialled)
        self._told &= self._places.keys()
        self._missing &= self._places.keys()
        self._again = {one: when for one, when in self._again.items() if one in self._places}
        if not self._places and not self._moving():
            self._translate.clear()
            self._listen(wanted=False)

    def _listen(self, *, wanted: bool) -> None:
        if wanted and self._events is None:
            self._events = DestroyedSockets(), EndedEntries()
            for one in self._events:
                self._readable.register(one.fileno(), select.EPOLLIN)
        elif not wanted and self._events is not None:
            for one in self._events:
                self._readable.unregister(one.fileno())
                one.close()
            self._events = None

    def _read_events(self) -> bool:
        """False if something was missed."""
        if self._events is None:
            return True
        sockets, entries = self._events
        destroyed, ended = sockets.read(), entries.read()
        names = [*destroyed.names, *(entry.workload for entry in ended.entries)]
        told = {self._names[name] for name in names if name in self._names}
        told.update(*(self._ports.get(port, ()) for port in destroyed.ports))
        self._told |= told
        self._again.update(dict.fromkeys(told, 0.0))  # now
        return not (destroyed.missed or ended.missed)

    async def _look_at(self, names: Sequence[FourTuple]) -> None:
        before = self.removed.total()
        for start in range(0, len(names), _CHUNK):
            await self._worker.run(self._look_at_some, names[start : start + _CHUNK])
        if self.removed.total() != before:
            await self._worker.run(self._learn)

    def _look_at_some(self, names: Sequence[FourTuple]) -> None:
        """Look at some connections, and remove the translations of those that have ended."""
        here = _LocalAddresses()
        moving = self._moving()
        now = time.monotonic()
        ended: dict[FourTuple, Ending] = {}
        found = self._sockets.find_all(map(_reversed, names))
        for dialled in names:
            evidence = self._evidence(dialled, found.get(_reversed(dialled)), here)
            standing = judge(evidence)
            self._again.pop(dialled, None)
            self._missing.discard(dialled)
            if standing is Standing.LINGERS:
                assert evidence.socket is not None and evidence.socket.expires is not None
                self._again[dialled] = now + evidence.socket.expires / 1000 + _LATE_SECONDS
            elif standing is Standing.LIVES:
                self._told.discard(dialled)
            elif standing is Standing.MISSING:
                self._missing.add(dialled)
                self._again[dialled] = now + _MISSING_SECONDS
            elif standing is Standing.ENDED:
                if moving & self._addresses(dialled):
                    self._again[dialled] = now + _MOVING_SECONDS
                    continue
                ended[dialled] = Ending.TOLD if evidence.told else Ending.MISSED
        if ended:
            self._translate.remove(ended)
            self.removed.update(ended.values())

    def _evidence(
        self, dialled: FourTuple, found: FoundSocket | None, here: "_LocalAddresses"
    ) -> Evidence:
        is_here = found is not None or here.has(dialled.remote.address)
        return Evidence(
            here=is_here,
            socket=found,
            tracked=None if is_here else self._is_tracked(dialled),
            told=dialled in self._told,
            missed_before=dialled in self._missing,
        )

    def _is_tracked(self, dialled: FourTuple) -> bool | None:
        """Whether conntrack knows of it; None if it knows nothing at all here."""
        if self._conntrack.find([dialled]):
            return True
        return False if _TRACKED.exists() and int(_TRACKED.read_text()) else None

    def _addresses(self, dialled: FourTuple) -> set[str]:
        ends = (*dialled, self._places[dialled])
        return {end.address for end in ends}


class _LocalAddresses:
    """Which addresses are the namespace's own, as its routing has it. Asked once for each."""

    def __init__(self) -> None:
        self._known: dict[str, bool] = {}

    def has(self, address: str) -> bool:
        if address not in self._known:
            with IPRoute() as route:
                try:
                    found = route.route("get", dst=address)
                except NetlinkError:
                    found = ()
            self._known[address] = any(one["type"] == _RTN_LOCAL for one in found)
        return self._known[address]


def _reversed(name: FourTuple) -> FourTuple:
    """The connection as its other end's socket is called."""
    return FourTuple(local=name.remote, remote=name.local)
