"""A peer node as a whole: its own network namespace, and those of the pods on it."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from mycoproxy.addresses import FourTuple, wire_address
from mycoproxy.handover.peer import LocalPeer
from mycoproxy.handover.sides import Offer, Task
from mycoproxy.netfilter.paths import Path
from mycoproxy.tcp import Segment

Find = Callable[[Collection[str]], Awaitable[object]]


class LocalNode:
    """The namespaces of one node as one ``Peer``.

    ``host`` is where the node NATs, forwards and tracks. ``pods`` are where clients live; they are
    asked for connections of theirs only. ``find`` is asked for more of them, by the addresses of
    clients; it is to ``add`` them.
    """

    def __init__(
        self, host: LocalPeer, pods: Sequence[LocalPeer] = (), *, find: Find | None = None
    ) -> None:
        self.name = host.name
        self._host = host
        self._pods = list(pods)
        self._find = find
        self._clients: dict[FourTuple, LocalPeer] = {}
        self._staged: dict[LocalPeer, list[Task]] = {}

    def add(self, pod: LocalPeer) -> None:
        """One more namespace, which has been prepared."""
        self._pods.append(pod)

    async def prepare(self) -> None:
        """See ``LocalPeer``."""
        for part in (self._host, *self._pods):
            await part.prepare()

    async def survey(
        self, connections: Sequence[FourTuple], addresses: Mapping[str, str], *, home: bool
    ) -> Sequence[Offer]:
        """See ``Peer``."""
        if self._find is not None:
            await self._find({wire_address(one.remote.address) for one in connections})
        offers = [*await self._host.survey(connections, addresses, home=home)]
        # A client behind NAT knows its connection by another name; by this one it may have another.
        behind_nat = {offer.connection for offer in offers if offer.entry and offer.entry.has_nat}
        unchanged = [one for one in connections if one not in behind_nat]
        for pod in self._pods:
            theirs = [one for one in unchanged if pod.has_address(one.remote.address)]
            found = await pod.survey(theirs, addresses, home=False) if theirs else ()
            translating = [offer for offer in found if offer.path is Path.TRANSLATE]
            self._clients.update((offer.connection, pod) for offer in translating)
            offers += translating
        return offers

    async def stage(self, tasks: Sequence[Task]) -> None:
        """See ``Peer``."""
        self._staged = self._shares(tasks)
        for part, share in self._staged.items():
            await part.stage(share)

    async def rehome(self, tasks: Sequence[Task], without: Collection[FourTuple] = ()) -> None:
        """See ``Peer``."""
        staged, self._staged = self._staged, {}
        new = self._shares(tasks)
        for part in {**staged, **new}:
            await part.rehome(new.get(part, ()), without)

    def _shares(self, tasks: Sequence[Task]) -> dict[LocalPeer, list[Task]]:
        shares: dict[LocalPeer, list[Task]] = defaultdict(list)
        for task in tasks:
            translated = task.path is Path.TRANSLATE
            part = self._clients.get(task.connection, self._host) if translated else self._host
            shares[part].append(task)
        return shares

    async def lost_segments(self) -> Sequence[Segment]:
        """See ``Peer``."""
        return await self._host.lost_segments()

    async def undo(self) -> None:
        """See ``Peer``. Every namespace is undone, also if one fails."""
        failures: list[Exception] = []
        for part in (self._host, *self._pods):
            try:
                await part.undo()
            except Exception as error:  # noqa: BLE001 - told below
                failures.append(error)
        if failures:
            raise failures[0]

    async def finish(self) -> None:
        """See ``Peer``."""
        await self._host.finish()

    async def close(self) -> None:
        """See ``LocalPeer``."""
        for part in (self._host, *self._pods):
            await part.close()
