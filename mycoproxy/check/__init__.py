"""What this machine can and cannot do, and what to do about it (``mycoproxy check``).

Every probe really tries what it is asked about, leaves nothing behind, and does its netfilter
and TCP work in a network namespace of its own.
"""

import os

from mycoproxy.check import container, kernel, netfilter
from mycoproxy.check.report import OPTIONAL, RUN_AS_ROOT, Item, Probe, Report, examine

__all__ = ["PROBES", "Item", "Probe", "Report", "check_machine", "examine"]

_NEWER_KERNEL = "use a kernel that has it built in or as a module"

PROBES = (
    Probe("root", "user 0", RUN_AS_ROOT, container.is_root),
    Probe(
        "capabilities",
        "SYS_ADMIN, NET_ADMIN, NET_RAW, SYS_PTRACE",
        "run as root, in a container as a privileged one",
        container.needed_capabilities,
    ),
    Probe(
        "CAP_SYS_RESOURCE",
        "the capability, or the rlimit fallback",
        "make setup",
        container.rlimit_capability,
    ),
    Probe("kernel", ">= 5.15", "boot a newer kernel", kernel.kernel_version),
    Probe(
        "pidfd_getfd",
        "take a task's descriptor",
        "allow ptrace (sysctl kernel.yama.ptrace_scope, seccomp)",
        kernel.descriptor_of_a_child,
    ),
    Probe(
        "TCP_REPAIR",
        "repair a live connection",
        "use a kernel with CONFIG_CHECKPOINT_RESTORE",
        kernel.tcp_repair,
        needs_root=True,
    ),
    Probe(
        "nftables",
        "make and delete a table",
        "apt-get install libnftables1; modprobe nf_tables",
        netfilter.tables,
        needs_root=True,
    ),
    Probe(
        "nftables maps",
        "raw-priority chains that rewrite by 4-tuple",
        _NEWER_KERNEL,
        netfilter.raw_maps,
        needs_root=True,
    ),
    Probe(
        "NAT", "DNAT and masquerade", "modprobe nft_nat nft_masq", netfilter.nat, needs_root=True
    ),
    Probe(
        "conntrack",
        "insert and delete NATed entries",
        "modprobe nf_conntrack_netlink nf_nat",
        netfilter.conntrack,
        needs_root=True,
    ),
    Probe("TPROXY", OPTIONAL, "modprobe nft_tproxy", netfilter.tproxy, needs_root=True),
    Probe("CRIU", ">= 4.2", "make setup builds it", container.criu_version),
    Probe("CRIU's kernel", "criu check", "see criu check", container.criu_check, needs_root=True),
    Probe("runc", ">= 1.1", "apt-get install runc", container.runc_version),
    Probe(
        "cgroups",
        "freeze and thaw a cgroup",
        "mount a cgroup hierarchy with a freezer, writable",
        container.freezer,
        needs_root=True,
    ),
    Probe(
        "tmpfs",
        f">= {container.IMAGE_SPACE >> 20} MiB free",
        "mount a tmpfs at /dev/shm, or make room",
        container.image_space,
    ),
    Probe("userfaultfd", OPTIONAL, "use Linux >= 6.7, as root", kernel.userfaultfd),
    Probe("PAGEMAP_SCAN", OPTIONAL, "use Linux >= 6.7", kernel.pagemap_scan),
)


def check_machine() -> Report:
    """Ask everything. Takes well under a second."""
    return examine(PROBES, is_root=os.geteuid() == 0)
