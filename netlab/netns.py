"""Named network namespaces, made and removed as ``ip netns`` does it, without the child process.

A name is a file in /run/netns with the namespace bind-mounted on it, so ``ip netns``,
``nsenter --net`` and runc find it. /run/netns is a shared mount (see ip-netns(8)): a namespace
removed here is then removed in everyone's mount namespace. If netlab made that mount, the last lab
takes it away again.
"""

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from mycoproxy.errors import MycoError, RefusedError
from netlab import layout, mounts, syscalls
from netlab.cgroups import exclusive_directories, shared_directories

_SYSCTL = Path("/proc/sys")

#: "We made the /run/netns mount."
_OWN_MOUNT = layout.RUN / ".netns-mount"

# Interfaces get their addresses from us at once: no detection of duplicates, which would make an
# IPv6 address unusable for its first second, no router advertisements. rp_filter would drop what a
# moved pod's peers send and receive on another path than the routing table's.
_COMMON = {
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv6/conf/all/accept_dad": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/default/dad_transmits": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv6/conf/default/router_solicitations": "0",
    "net/ipv6/conf/all/disable_ipv6": "0",
    "net/ipv6/conf/default/disable_ipv6": "0",
}

# A pod's answer to a pod of its own node goes over their bridge and not through the node: without
# this the NAT of a Service between them would not be taken back. kubeadm wants it set, too. It is
# there if the kernel has br_netfilter.
BRIDGED_PODS_ARE_NATED = {
    "net/bridge/bridge-nf-call-iptables": "1",
    "net/bridge/bridge-nf-call-ip6tables": "1",
}

FORWARDING = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}


def create(path: Path, sysctls: Mapping[str, str]) -> None:
    """Make an empty namespace with the common settings and ``sysctls`` (path below /proc/sys).

    Raises ``MycoError`` if one of that name is there, or the kernel refuses a setting.
    """
    _on_a_thread(lambda: _create_here(path, {**_COMMON, **sysctls}))


def _create_here(path: Path, sysctls: Mapping[str, str]) -> None:
    syscalls.unshare_network()
    for name, value in sysctls.items():
        try:
            (_SYSCTL / name).write_text(value)
        except OSError as error:
            raise RefusedError(f"cannot set {name} to {value}: {error}") from error
    with shared_directories():
        _prepare_directory()
        try:
            path.touch(mode=0o444, exist_ok=False)
        except FileExistsError:
            raise MycoError(f"there is a network namespace {path.name} already") from None
        try:
            syscalls.mount("/proc/thread-self/ns/net", path, flags=syscalls.MS_BIND)
        except OSError:
            path.unlink()
            raise


def _prepare_directory() -> None:
    layout.NETNS.mkdir(mode=0o755, parents=True, exist_ok=True)
    if any(mount.target == layout.NETNS for mount in mounts.mounted()):
        return
    _OWN_MOUNT.touch()
    syscalls.mount(str(layout.NETNS), layout.NETNS, flags=syscalls.MS_BIND | syscalls.MS_REC)
    syscalls.mount("", layout.NETNS, flags=syscalls.MS_SHARED | syscalls.MS_REC)


def remove(path: Path) -> None:
    """Take a namespace's name away; it ends with its last process. No such name is fine."""
    mounts.detach(path)
    path.unlink(missing_ok=True)


def remove_own_mount() -> None:
    """Unmount /run/netns if netlab mounted it and nothing is in it. Otherwise do nothing.

    Unmounting (not lazily) fails while a namespace is mounted in there, and a name that someone
    makes meanwhile lands in the directory below, where it works as well.
    """
    with exclusive_directories() as alone:
        if alone and _OWN_MOUNT.exists() and not any(layout.NETNS.iterdir()):
            with suppress(OSError):
                syscalls.umount(layout.NETNS)
                _OWN_MOUNT.unlink()


def of_lab(lab: str) -> list[Path]:
    """The names in /run/netns that are the lab's, whether or not there is a namespace on them."""
    try:
        names = sorted(entry.name for entry in os.scandir(layout.NETNS))
    except FileNotFoundError:
        return []
    return [layout.NETNS / name for name in names if layout.lab_of_namespace(name) == lab]


def _on_a_thread(function: Callable[[], None]) -> None:
    """Run on a thread that ends afterwards: it cannot go back to the namespace it left."""
    failure: list[Exception] = []

    def run() -> None:
        try:
            function()
        except Exception as error:  # noqa: BLE001  (raised again by the caller's thread)
            failure.append(error)

    thread = threading.Thread(target=run, name="netns-create")
    thread.start()
    try:
        thread.join()
    finally:
        # Also when a signal's exception came in between: what is made is made before it is removed.
        thread.join()
    if failure:
        raise failure[0]
