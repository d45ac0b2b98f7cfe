"""A lab that is up: its nodes, its pods, its Services, and what can be done with them.

    lab = Lab.up(topology.load(Path("demo")))
    pod = lab.start_pod("redis")
    probe = lab.popen("client", ["redis-cli", "-h", "10.96.0.10", "ping"])
    lab.down()

Nothing of a lab needs the process that brought it up: ``Lab.attach(name)`` gives the same object
in another one, from the record on disk. One process at a time changes a lab.
"""

import ipaddress
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mycoproxy.errors import RefusedError, UsageError
from mycoproxy.namespaces import NamespaceWorker
from netlab import allocation, bringup, inventory, listening, pods, services, state
from netlab.layout import Layout
from netlab.pods import Pod
from netlab.state import Placement, State
from netlab.topology import Node, Service, Topology

_POD_INTERFACE = 1000  # interface numbers of the nodes' ends of the pods' veth pairs begin here
_LISTENING = 30.0  # seconds that a server gets from its start until it accepts connections


@dataclass(slots=True)
class LabNode:
    """A node of a lab that is up."""

    spec: Node
    netns: Path
    _worker: NamespaceWorker | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The node's name in the topology."""
        return self.spec.name

    @property
    def worker(self) -> NamespaceWorker:
        """A thread in the node's namespace, made when it is first asked for."""
        if self._worker is None:
            self._worker = NamespaceWorker(self.netns)
        return self._worker

    def close(self) -> None:
        """End the thread, if there is one."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()


class LabService:
    """A Service of a lab that is up."""

    def __init__(self, lab: "Lab", spec: Service) -> None:
        self._lab = lab
        self.spec = spec

    @property
    def targets(self) -> tuple[str, ...]:
        """The addresses that it leads to now."""
        return self._lab.state.targets.get(self.spec.name, ())

    def point_to(self, addresses: Sequence[str]) -> None:
        """Lead new connections to ``addresses``, atomically on each node that does the DNAT.

        Connections that are there stay where they are: their conntrack entries decide.
        """
        table, topology = self._lab.layout.nft_table, self._lab.topology
        port = self._lab.port_of(self.spec.pod)
        commands = {
            node: services.target_rules(
                table, topology, node, self.spec, addresses=addresses, port=port
            )
            for node in self.spec.nodes
        }
        targets = {**self._lab.state.targets, self.spec.name: tuple(addresses)}
        self._lab.record(targets=targets)
        for node, rules in commands.items():
            self._lab.node(node).worker.call(services.apply, rules)


class Lab:
    """A lab that is up. Made by ``up`` or ``attach``; use ``with`` to end its threads."""

    def __init__(self, layout: Layout, recorded: State) -> None:
        self.layout = layout
        self._state = recorded
        self._lock = threading.Lock()
        self._children: list[subprocess.Popen[Any]] = []
        self._nodes = {
            node.name: LabNode(node, layout.netns(node.name)) for node in recorded.topology.nodes
        }

    # --- a lab's life ---------------------------------------------------------------------

    @classmethod
    def up(cls, topology: Topology, name: str | None = None, *, images_mb: int = 2048) -> Self:
        """Make nodes, links and Services (not the pods: ``start_pod``).

        ``images_mb`` limits the tmpfs for CRIU images, in MiB. Raises ``UsageError`` if a lab of
        that name is up or has left something. If anything fails, nothing is left behind.
        """
        layout = Layout(name or topology.name)
        bringup.claim(layout, topology)
        try:
            recorded = State(lab=layout.lab, topology=topology)
            state.save(layout.state, recorded)
            lab = cls(layout, recorded)
            try:
                lab._build(images_mb)
            except BaseException:
                lab.close()
                raise
        except BaseException:
            inventory.remove(layout.lab)
            raise
        return lab

    def _build(self, images_mb: int) -> None:
        bringup.build(
            self.layout,
            self.topology,
            lambda node: self.node(node).worker,
            images_mb=images_mb,
        )
        targets = {
            service.name: tuple(map(str, self.topology.pod(service.pod).addresses))
            for service in self.topology.services
        }
        self.record(targets=targets, complete=True)

    @classmethod
    def attach(cls, name: str) -> Self:
        """A lab that is up already. Raises ``RefusedError`` if there is none of that name."""
        layout = Layout(name)
        recorded = state.read(layout.state)
        if not recorded.complete:
            raise RefusedError(f"lab {name!r} is only half there: netlab down {name} removes it")
        return cls(layout, recorded)

    def down(self) -> list[str]:
        """End what was started, remove everything of the lab, and return what there was."""
        for child in self._children:
            if child.poll() is None:
                with suppress(ProcessLookupError):
                    child.kill()
        self.close()
        removed = inventory.remove(self.name)
        for child in self._children:
            child.wait()
        self._children.clear()
        return removed

    def close(self) -> None:
        """End this object's threads. The lab stays up."""
        for node in self._nodes.values():
            node.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # --- what there is --------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The lab's name."""
        return self.layout.lab

    @property
    def topology(self) -> Topology:
        """What the lab was made from."""
        return self._state.topology

    @property
    def state(self) -> State:
        """The lab's record as it is now."""
        return self._state

    @property
    def images(self) -> Path:
        """The lab's tmpfs for CRIU images."""
        return self.layout.images

    @property
    def logs(self) -> Path:
        """The directory for logs."""
        return self.layout.logs

    @property
    def nodes(self) -> tuple[LabNode, ...]:
        """All nodes, in the topology's order."""
        return tuple(self._nodes.values())

    def node(self, name: str) -> LabNode:
        """The node of that name. Raises ``UsageError``."""
        self.topology.node(name)
        return self._nodes[name]

    def service(self, name: str) -> LabService:
        """The Service of that name. Raises ``UsageError``."""
        return LabService(self, self.topology.service(name))

    def popen(
        self,
        node: str,
        argv: Sequence[str],
        **kwargs: Any,  # noqa: ANN401
    ) -> subprocess.Popen[Any]:
        """``subprocess.Popen`` in the namespace of a node, or of a pod where it is at home.

        ``down`` ends what still runs.
        """

        def start() -> subprocess.Popen[Any]:
            return subprocess.Popen(list(argv), **kwargs)

        if any(node == pod.name for pod in self.topology.pods):
            with NamespaceWorker(self.pod(node).netns) as worker:
                child = worker.call(start)
        else:
            child = self.node(node).worker.call(start)
        self._children.append(child)
        return child

    # --- pods -----------------------------------------------------------------------------

    def port_of(self, pod: str) -> int:
        """The port that the pod listens on."""
        return pods.port_of(self.topology.pod(pod))

    def sandboxes(self) -> list[Pod]:
        """Every place of every pod: two of one that is being moved."""
        return [self._place(placement) for placement in self._state.placements]

    def pod(self, name: str) -> Pod:
        """The pod where it is at home. Raises ``UsageError`` or, not started, ``RefusedError``."""
        self.topology.pod(name)
        home = self._state.home.get(name)
        placement = None if home is None else self._state.placement(name, home)
        if placement is None:
            raise RefusedError(f"pod {name} is not started in lab {self.name}")
        return self._place(placement)

    def start_pod(self, name: str) -> Pod:
        """Make the pod's sandbox on its own node, run its container, wait until it listens.

        Of a pod without an image there is the sandbox only.
        """
        spec = self.topology.pod(name)
        pod = self.make_sandbox(name, spec.node, tuple(map(str, spec.addresses)))
        self.record_pod(pod)
        if spec.image is None:
            return pod
        pods.run(pod, self.layout.logs / f"runc-run-{pod.name}.log")
        listening.wait(pod, timeout=_LISTENING)
        return pod

    def free_addresses(self, node: str, versions: Sequence[int] = (4, 6)) -> tuple[str, ...]:
        """The next free address of each of the node's pod subnets; nothing is reserved."""
        used = {
            ipaddress.ip_address(address)
            for placement in self._state.placements
            for address in placement.addresses
        }
        found = []
        for bridge in self.topology.node(node).pod_bridge:
            if bridge.version in versions:
                last = self._state.last_address.get(f"{node}/{bridge.version}")
                after = None if last is None else ipaddress.ip_address(last)
                found.append(str(allocation.next_free(bridge, used, after)))
        return tuple(found)

    def make_sandbox(self, pod_name: str, node: str, addresses: Sequence[str] | None = None) -> Pod:
        """A pod's network namespace and bundle on a node; nothing runs in it.

        Without ``addresses`` it gets the node's next free ones, of the IP versions that the pod
        has. The pod's home does not change: see ``record_pod``. Raises ``UsageError`` if the pod
        has a sandbox on that node or an address is taken.
        """
        spec = self.topology.pod(pod_name)
        self.node(node)
        if addresses is None:
            addresses = self.free_addresses(node, [each.version for each in spec.addresses])
        self._check_addresses(pod_name, node, addresses)
        placement = Placement(pod=pod_name, node=node, addresses=tuple(addresses))
        last = {f"{node}/{ipaddress.ip_address(each).version}": each for each in addresses}
        made = self._state.sandboxes_made + 1
        self.record(
            placements=(*self._state.placements, placement),
            last_address={**self._state.last_address, **last},
            sandboxes_made=made,
        )
        pod = self._place(placement)
        worker = self._nodes[node].worker
        try:
            pods.make_sandbox(
                pod,
                spec,
                self.topology.node(node),
                worker,
                number=_POD_INTERFACE + made,
                hairpin=self.topology.cluster is not None,
            )
        except BaseException:
            self.remove_pod(pod)
            raise
        return pod

    def record_pod(self, pod: Pod) -> None:
        """Say that the pod is at home in this sandbox now: after its start or its move."""
        if self._state.placement(pod.name, pod.node) is None:
            raise UsageError(f"pod {pod.name} has no sandbox on {pod.node} in lab {self.name}")
        self.record(home={**self._state.home, pod.name: pod.node})

    def remove_pod(self, pod: Pod) -> None:
        """Remove a pod's container, if there is one, and its sandbox from a node.

        The other place of a pod that is being moved is not touched. Twice is fine.
        """
        log = self.layout.logs / f"runc-delete-{pod.name}-{pod.node}.log"
        pods.remove(pod, self.node(pod.node).worker, log)
        left = tuple(
            each for each in self._state.placements if (each.pod, each.node) != (pod.name, pod.node)
        )
        home = {
            name: node
            for name, node in self._state.home.items()
            if (name, node) != (pod.name, pod.node)
        }
        self.record(placements=left, home=home)

    def record(self, **changes: object) -> None:
        """Change the lab's record, on disk first."""
        with self._lock:
            changed = self._state.model_copy(update=changes)
            state.save(self.layout.state, changed)
            self._state = changed

    def _place(self, placement: Placement) -> Pod:
        spec = self.topology.pod(placement.pod)
        return pods.place(self.layout, spec, placement.node, placement.addresses)

    def _check_addresses(self, pod: str, node: str, addresses: Sequence[str]) -> None:
        if self._state.placement(pod, node) is not None:
            raise UsageError(f"pod {pod} has a sandbox on {node} already")
        subnets = [bridge.network for bridge in self.topology.node(node).pod_bridge]
        for address in map(ipaddress.ip_address, addresses):
            if not any(address in subnet for subnet in subnets):
                wanted = ", ".join(map(str, subnets)) or "none"
                raise UsageError(f"{address} is not of {node}'s pod subnets ({wanted})")
            for other in self._state.placements:
                if str(address) in other.addresses:
                    raise UsageError(f"address taken: {address} is pod {other.pod}'s")


@contextmanager
def running(topology: Topology, name: str | None = None) -> Iterator[Lab]:
    """A lab with all its pods started, removed at the end whatever happens."""
    lab = Lab.up(topology, name)
    try:
        for pod in topology.pods:
            lab.start_pod(pod.name)
        yield lab
    finally:
        lab.down()
