"""What a node can do for the workload's UDP flows: in its own network namespace and its pods'."""

from collections.abc import Mapping, Sequence

from mycoproxy.addresses import FourTuple, wire_address
from mycoproxy.errors import MycoError
from mycoproxy.handover.datagram_routes import FlowOffer, FlowTask
from mycoproxy.namespaces import NamespaceWorker
from mycoproxy.netfilter.anchor import address_toward
from mycoproxy.netfilter.datagram_flows import DatagramFlows, led_entry, moved_end
from mycoproxy.netfilter.elements import on_the_wire
from mycoproxy.netfilter.entry import ConntrackEntry
from mycoproxy.netfilter.local_addresses import local_addresses
from mycoproxy.netfilter.paths import Network, Path, Standpoint, choose_path
from mycoproxy.socktable import datagram_addresses_in_use


class _Place:
    """One namespace. ``behind`` as in ``Standpoint``."""

    def __init__(self, worker: NamespaceWorker) -> None:
        self.worker = worker
        self.flows: DatagramFlows | None = None
        self.addresses: frozenset[str] = frozenset()
        self.entries: dict[FourTuple, ConntrackEntry] = {}
        self._toward: dict[str, str | None] = {}

    def prepare(self) -> None:
        self.flows = DatagramFlows()
        self.addresses = local_addresses()

    def close(self) -> None:
        if self.flows is not None:
            self.flows.close()
            self.flows = None

    def toward(self, destination: str) -> str | None:
        """The address that this namespace speaks from to ``destination``. On its thread."""
        if destination not in self._toward:
            self._toward[destination] = address_toward(destination)
        return self._toward[destination]

    def opened(self) -> DatagramFlows:
        if self.flows is None:
            raise MycoError("this node was not prepared for datagrams")
        return self.flows


class LocalDatagramPeer:
    """See ``DatagramPeer``. ``prepare`` ahead of the freeze, ``close`` when the move has ended."""

    def __init__(
        self,
        name: str,
        host: NamespaceWorker,
        pods: Sequence[NamespaceWorker] = (),
        *,
        behind: Sequence[Network] | None = None,
    ) -> None:
        self.name = name
        self._host = _Place(host)
        self._pods = [_Place(pod) for pod in pods]
        self._behind = None if behind is None else tuple(behind)
        self._where: dict[tuple[FourTuple, Path], _Place] = {}
        self.known_behind: frozenset[str] = frozenset()
        """Addresses of pods, which are behind this node beside its own."""

    async def add(self, pod: NamespaceWorker) -> None:
        """One more pod of this node; prepares it."""
        place = _Place(pod)
        self._pods.append(place)  # to be closed, also if this is given up
        await pod.run(place.prepare)

    async def prepare(self) -> None:
        """Open what the survey needs."""
        for place in (self._host, *self._pods):
            await place.worker.run(place.prepare)

    async def survey(
        self, addresses: Mapping[str, str], ports: Sequence[int], *, home: bool
    ) -> Sequence[FlowOffer]:
        """See ``DatagramPeer``. A walk through the kernel's table for each namespace."""
        offers = []
        for place in (self._host, *self._pods):
            offers += await place.worker.run(self._survey, place, addresses, ports, home)
        return offers

    def _survey(
        self, place: _Place, addresses: Mapping[str, str], ports: Sequence[int], home: bool
    ) -> list[FlowOffer]:
        found = place.opened().of_workload(addresses, ports)
        place.entries.update(found)
        # Nothing may track those that dialled the workload itself.
        dialled = dict.fromkeys(dialled_from_here(addresses, ports))
        offers = self._offers(place, {**dialled, **found}, addresses, home=home)
        if any(offer.path is Path.TRANSLATE for offer in offers):
            place.opened().install()  # it takes longer than all the rest: ahead of the handover
        return offers

    async def ask(
        self, flows: Sequence[FourTuple], addresses: Mapping[str, str], *, home: bool
    ) -> Sequence[FlowOffer]:
        """See ``DatagramPeer``."""
        offers = [*await self._host.worker.run(self._ask, self._host, flows, addresses, home)]
        for pod in self._pods:
            theirs = [one for one in flows if one.remote.address in pod.addresses]
            if theirs:
                offers += await pod.worker.run(self._ask, pod, theirs, addresses, False)
        return offers

    def _ask(
        self,
        place: _Place,
        flows: Sequence[FourTuple],
        addresses: Mapping[str, str],
        home: bool,
    ) -> list[FlowOffer]:
        found = place.opened().find(flows)
        place.entries.update(found)
        offers = self._offers(
            place, {flow: found.get(flow) for flow in flows}, addresses, home=home
        )
        if any(offer.path is Path.TRANSLATE for offer in offers):
            place.opened().install()
        return offers

    def _offers(
        self,
        place: _Place,
        entries: Mapping[FourTuple, ConntrackEntry | None],
        addresses: Mapping[str, str],
        *,
        home: bool,
    ) -> list[FlowOffer]:
        host = place is self._host
        standpoint = Standpoint(
            home=home and host,
            behind=self._behind if host else None,
            addresses=self.known_behind | self._host.addresses,
        )
        offers = []
        for flow, entry in entries.items():
            path = choose_path(
                flow,
                addresses=addresses,
                entry=entry,
                local_addresses=place.addresses,
                standpoint=standpoint,
            )
            if not host and path not in (Path.REBIND, Path.TRANSLATE):
                continue
            anchor = None
            if home and host and path in (Path.NOTHING, Path.ANCHOR, Path.ADMIT):
                anchor = place.toward(moved_end(flow.local, addresses).address)
            elif path is Path.NOTHING:
                continue
            certain = self._behind is not None and standpoint.has_behind(flow.remote.address)
            offers.append(FlowOffer(flow, path, entry, certain, anchor))
            self._where.setdefault((flow, path), place)
        return offers

    async def lead(self, tasks: Sequence[FlowTask]) -> None:
        """See ``DatagramPeer``. Raises ``NetfilterError``, once all others are done."""
        shares: dict[_Place, list[FlowTask]] = {}
        for task in tasks:
            place = self._where.get((task.flow, task.path), self._host)
            shares.setdefault(place, []).append(task)
        failures: list[MycoError] = []
        for place, share in shares.items():
            try:
                await place.worker.run(_lead, place, share)
            except MycoError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    async def close(self) -> None:
        """Close what was opened. What is led stays led."""
        for place in (self._host, *self._pods):
            await place.worker.run(place.close)


def dialled_from_here(addresses: Mapping[str, str], ports: Sequence[int]) -> list[FourTuple]:
    """The flows of the connected UDP sockets of the calling thread's namespace, to these ports of
    the workload at its old addresses (the keys)."""
    return [
        FourTuple(on_the_wire(used.remote), on_the_wire(used.local))
        for used in datagram_addresses_in_use()
        if used.remote is not None
        and used.remote.port in ports
        and wire_address(used.remote.address) in addresses
    ]


def has_flows(addresses: Mapping[str, str], ports: Sequence[int]) -> bool:
    """Does anything in the calling thread's namespace speak with these ports of the workload?

    Cheap where nothing is tracked: for a pod that nothing is opened for unless it matters.
    """
    if dialled_from_here(addresses, ports):
        return True
    flows = DatagramFlows()
    try:
        return bool(flows.of_workload(addresses, ports))
    finally:
        flows.close()


def _lead(place: _Place, tasks: Sequence[FlowTask]) -> None:
    flows = place.opened()
    # First: a flow that is led here has a tuple in common with what is only admitted, and wins.
    flows.lead([task.entry for task in tasks if task.path is Path.ADMIT and task.entry])
    flows.lead(
        [
            task.entry or led_entry(place.entries.get(task.flow), task.flow, task.after)
            for task in tasks
            if task.path is not Path.ADMIT
        ]
    )
