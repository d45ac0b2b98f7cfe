"""A pod: its sandbox (network namespace and bundle), its container, and its end.

The sandbox is made first and the container in it later, as Kubernetes does: that is what lets a
target sandbox wait, shielded, for a container that is still running elsewhere.
"""

import ipaddress
import json
import shutil
import subprocess
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mycoproxy.errors import MycoError, RefusedError
from mycoproxy.namespaces import NamespaceWorker
from netlab import bundle, cgroups, images, links, netns
from netlab.cgroups import shared_directories
from netlab.layout import Layout
from netlab.topology import Interface, Node, PodSpec
from netlab.topology_rules import POD_BRIDGE

_DEVICE = "eth0"
_RUNC_TIMEOUT = 30.0  # seconds
_CGROUP_TIMEOUT = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Pod:
    """One place of a pod. A pod that is being moved has two: the source's and the target's.

    ``addresses`` are in canonical text form, at most one for IPv4 and one for IPv6. ``cgroup`` is
    the path from the root of each hierarchy.
    """

    name: str
    node: str
    container_id: str
    bundle: Path
    runc_root: Path
    netns: Path
    addresses: tuple[str, ...]
    port: int
    cgroup: str

    @property
    def init_pid(self) -> int:
        """The container's init in our PID namespace, from runc's own record.

        Raises ``RefusedError`` if nothing runs here.
        """
        try:
            state = json.loads((self.runc_root / self.container_id / "state.json").read_text())
            pid, started = int(state["init_process_pid"]), int(state["init_process_start"])
        except (OSError, ValueError, KeyError):
            raise RefusedError(f"pod {self.name} has no container on {self.node}") from None
        if _start_time(pid) != started:
            raise RefusedError(f"pod {self.name} on {self.node} has ended (its init was {pid})")
        return pid

    @property
    def running(self) -> bool:
        """Whether the container's init is there (it may be frozen)."""
        try:
            return self.init_pid > 0
        except RefusedError:
            return False

    @property
    def data(self) -> Path:
        """What the container has on /data (its logs too). Raises ``RefusedError``."""
        return Path(f"/proc/{self.init_pid}/root/data")


def _start_time(pid: int) -> int | None:
    """Clock ticks since boot, field 22 of proc_pid_stat(5); ``None`` for a zombie or no task."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def place(layout: Layout, spec: PodSpec, node: str, addresses: Sequence[str]) -> Pod:
    """What a pod is called on a node; nothing is made."""
    return Pod(
        name=spec.name,
        node=node,
        container_id=layout.container_id(spec.name),
        bundle=layout.bundle(node, spec.name),
        runc_root=layout.runc_root(node),
        netns=layout.netns(node, spec.name),
        addresses=tuple(str(ipaddress.ip_address(address)) for address in addresses),
        port=port_of(spec),
        cgroup=layout.cgroup(node, spec.name),
    )


def port_of(spec: PodSpec) -> int:
    """The port that the pod listens on; 0 if neither the topology nor an image says."""
    if spec.port is not None:
        return spec.port
    return 0 if spec.image is None else images.image(spec.image).port


def make_sandbox(
    pod: Pod, spec: PodSpec, node: Node, worker: NamespaceWorker, *, number: int, hairpin: bool
) -> None:
    """Make the network namespace, its veth pair to the node's bridge, and the bundle, if the pod
    has an image.

    ``number`` is the interface number of the node's end; ``worker`` is the node's. ``hairpin``: the
    pod can reach itself through a Service.
    """
    netns.create(pod.netns, {})
    device = host_device(pod.name)
    with pod.netns.open("rb") as namespace:
        worker.call(links.make_pair, device, number, namespace.fileno(), _DEVICE)
    with NamespaceWorker(pod.netns) as inside:
        inside.call(
            links.configure,
            [(_DEVICE, _interfaces(pod, node))],
            links.default_routes([bridge.ip for bridge in _bridges(pod, node)]),
        )
        worker.call(links.attach_to_bridge, device, POD_BRIDGE, hairpin=hairpin)
        inside.call(links.wait_until_up, [_DEVICE], timeout=5.0)
    if spec.image is not None:
        _write_bundle(pod, spec, images.image(spec.image))
    pod.runc_root.mkdir(parents=True, exist_ok=True)


def _write_bundle(pod: Pod, spec: PodSpec, image: images.Image) -> None:
    process = bundle.Process(
        argv=tuple(word.format(port=pod.port) for word in image.argv) + spec.args,
        env={**image.env, **spec.env},
        user=image.user if spec.user is None else spec.user,
        data_mb=image.data_mb if spec.data_mb is None else spec.data_mb,
    )
    content = bundle.config(
        process,
        hostname=pod.name,
        rootfs=images.root_filesystem(image),
        netns=pod.netns,
        cgroup=pod.cgroup,
    )
    bundle.write(pod.bundle, content)


def host_device(pod: str) -> str:
    """The node's end of the pod's veth pair: its name if that fits into 15 characters."""
    device = f"veth-{pod}"
    return device if len(device) <= 15 else f"veth-{zlib.crc32(pod.encode()):08x}"


def _bridges(pod: Pod, node: Node) -> list[Interface]:
    versions = {ipaddress.ip_address(address).version for address in pod.addresses}
    return [bridge for bridge in node.pod_bridge if bridge.version in versions]


def _interfaces(pod: Pod, node: Node) -> list[Interface]:
    lengths = {bridge.version: bridge.network.prefixlen for bridge in node.pod_bridge}
    addresses = [ipaddress.ip_address(address) for address in pod.addresses]
    return [ipaddress.ip_interface(f"{a}/{lengths[a.version]}") for a in addresses]


def run(pod: Pod, log: Path) -> None:
    """Create and start the container in its sandbox. Raises ``MycoError`` with runc's reason."""
    with shared_directories():
        _runc(pod, log, "run", "--detach", "--bundle", str(pod.bundle), pod.container_id)


def delete_container(pod: Pod, log: Path) -> None:
    """Kill the container and let runc forget it. No container is fine."""
    if (pod.runc_root / pod.container_id).exists():
        _runc(pod, log, "delete", "--force", pod.container_id)


def remove(pod: Pod, worker: NamespaceWorker, log: Path) -> None:
    """Remove the container, if there is one, and the sandbox. What is not there is fine.

    ``worker`` is the node's. Raises ``MycoError`` if runc cannot end the container or a cgroup
    stays busy.
    """
    delete_container(pod, log)
    cgroups.remove_pod(pod.cgroup, deadline=time.monotonic() + _CGROUP_TIMEOUT)
    worker.call(links.remove, host_device(pod.name))
    netns.remove(pod.netns)
    if pod.bundle.exists():
        shutil.rmtree(pod.bundle)


def _runc(pod: Pod, log: Path, *arguments: str) -> None:
    log.unlink(missing_ok=True)
    command = ["runc", "--root", str(pod.runc_root), "--log", str(log), "--log-format", "json"]
    try:
        status = subprocess.run(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_RUNC_TIMEOUT,
            check=False,
        ).returncode
    except FileNotFoundError:
        raise RefusedError("no runc on PATH: install the Debian package runc") from None
    except subprocess.TimeoutExpired:
        raise MycoError(
            f"runc {arguments[0]} of pod {pod.name} did not end in {_RUNC_TIMEOUT:g} s; see {log}"
        ) from None
    if status != 0:
        raise MycoError(
            f"runc {arguments[0]} of pod {pod.name} failed: {_last_error(log, status)}; see {log}"
        )


def _last_error(log: Path, status: int) -> str:
    reason = f"exit status {status}"
    if log.exists():
        for line in log.read_text(errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry.get("level") in ("error", "fatal"):
                reason = str(entry.get("msg"))
    return reason
