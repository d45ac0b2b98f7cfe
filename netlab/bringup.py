"""Bringing a lab up: claim its name, then namespaces, links, routes, Services.

Some hundred netlink messages from one process; the demo's five nodes take about a tenth of a
second.
"""

import errno
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from mycoproxy.errors import RefusedError, UsageError
from mycoproxy.namespaces import NamespaceWorker
from netlab import cgroups, images, inventory, layout, links, netns, pods, services, syscalls
from netlab.layout import Layout
from netlab.topology import Interface, Node, Topology
from netlab.topology_rules import POD_BRIDGE
from netlab.wire import delayed
from netlab.wire.tap import open_tap

_LINK_INTERFACE = 100  # interface numbers of the first ends of links begin here
_MTU = 1500  # bytes, of delayed links; a veth's
_CARRIER = 10.0  # seconds that the links get to come up

WorkerOf = Callable[[str], NamespaceWorker]


def claim(lab: Layout, topology: Topology) -> None:
    """Take the lab's name: from here on what goes wrong has to be removed.

    Raises ``RefusedError`` if not root, ``UsageError`` if the name is in use, or the topology
    wants an image that there is none of.
    """
    require_root()
    for pod in topology.pods:
        if pod.image is not None:
            images.image(pod.image)
    layout.RUN.mkdir(mode=0o755, exist_ok=True)
    if not lab.run.exists():
        left = inventory.leftovers(lab.lab)
        if left:
            raise UsageError(
                f"something of an earlier lab {lab.lab!r} is left ({left[0]}): "
                f"netlab down {lab.lab} removes it"
            )
    try:
        lab.run.mkdir(mode=0o755)
    except FileExistsError:
        raise UsageError(
            f"lab {lab.lab!r} is up already: netlab down {lab.lab} removes it, "
            "--name gives another name"
        ) from None


def require_root() -> None:
    """Raises ``RefusedError`` if network namespaces cannot be made for want of root."""
    if os.geteuid() != 0:
        raise RefusedError("root is needed to make network namespaces: run it with sudo")


def _mount_images(directory: Path, megabytes: int) -> None:
    """A tmpfs of huge pages, if the kernel has them: a dump and a restore of 100 MB are 40 ms
    faster on it. Not ``huge=always``, which would make every small image 2 MB of zeroes."""
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    options = f"size={megabytes}m,mode=700"
    try:
        syscalls.mount("tmpfs", directory, "tmpfs", flags, f"{options},huge=within_size")
    except OSError as error:
        if error.errno != errno.EINVAL:  # no CONFIG_TRANSPARENT_HUGEPAGE
            raise
        syscalls.mount("tmpfs", directory, "tmpfs", flags, options)


def build(lab: Layout, topology: Topology, worker_of: WorkerOf, *, images_mb: int) -> None:
    """Make everything of a claimed lab but its pods."""
    lab.logs.mkdir(mode=0o755)
    lab.images.mkdir(mode=0o700)
    _mount_images(lab.images, images_mb)
    cgroups.make(lab.lab)
    for node in topology.nodes:
        netns.create(lab.netns(node.name), _sysctls(node, topology))
    for number, link in enumerate(topology.links):
        if link.delay_ms is not None:
            continue
        first, second = link.ends
        with lab.netns(second.node).open("rb") as there:
            worker_of(first.node).call(
                links.make_pair,
                first.device,
                _LINK_INTERFACE + number,
                there.fileno(),
                second.device,
            )
    _make_delayed_links(lab, topology, worker_of)
    for node in topology.nodes:
        _configure(node, topology, worker_of(node.name))
    for node in topology.nodes:
        devices = [device for device, _ in _devices(node, topology)]
        worker_of(node.name).call(links.wait_until_up, devices, timeout=_CARRIER)
    _install_services(lab, topology, worker_of)


def _make_delayed_links(lab: Layout, topology: Topology, worker_of: WorkerOf) -> None:
    """TAP devices, and one process for all of them, in the namespace of one of their nodes."""
    made = []
    with ExitStack() as descriptors:
        for link in topology.delayed_links():
            taps = []
            for end in link.ends:
                taps.append(worker_of(end.node).call(open_tap, end.device, mtu=_MTU, offload=True))
                descriptors.callback(os.close, taps[-1])
            made.append(delayed.DelayedLink((link.delay_ms or 0) / 1000, *taps))
        if made:
            first = topology.delayed_links()[0].ends[0].node
            worker_of(first).call(delayed.start, made, lab.wire, lab.logs / "wire.log")


def _sysctls(node: Node, topology: Topology) -> dict[str, str]:
    sysctls = dict(netns.FORWARDING) if node.forwards else {}
    if topology.cluster is not None and node.pod_bridge:
        sysctls.update(netns.BRIDGED_PODS_ARE_NATED)
    return sysctls


def _devices(node: Node, topology: Topology) -> list[tuple[str, tuple[Interface, ...]]]:
    return [
        (end.device, end.addresses)
        for link in topology.links
        for end in link.ends
        if end.node == node.name
    ]


def _configure(node: Node, topology: Topology, worker: NamespaceWorker) -> None:
    if node.pod_bridge:
        worker.call(links.make_bridge, POD_BRIDGE, node.pod_bridge)
    routes = [*links.default_routes(node.gateways), *node.routes]
    worker.call(links.configure, _devices(node, topology), routes)


def _install_services(lab: Layout, topology: Topology, worker_of: WorkerOf) -> None:
    targets = {}
    for service in topology.services:
        pod = topology.pod(service.pod)
        targets[service.name] = (tuple(map(str, pod.addresses)), pods.port_of(pod))
    for node in topology.nodes:
        commands = services.ruleset(lab.nft_table, topology, node.name, targets)
        if commands:
            worker_of(node.name).call(services.apply, commands)
