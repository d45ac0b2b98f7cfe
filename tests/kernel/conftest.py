"""Throwaway network namespaces for the kernel tests.

The namespaces have no name: each lives as long as the thread and the descriptor that hold it, so
a test process that is killed leaves nothing behind, and parallel runs cannot collide. Use
``node.path`` wherever a path for setns(2) or ``nsenter --net=`` is wanted; it is valid for other
processes too.

Fixtures::

    def test_x(netns_pair):                 # two namespaces, one veth, IPv4 and IPv6
        server = netns_pair.right.call(socket.create_server, (netns_pair.right_v4, 0))

    def test_y(network):                    # any number of namespaces and links
        a, b, c = network.node("a"), network.node("b"), network.node("c")
        link = network.link(a, b)           # next free 10.77.N.0/24 and fd77:N::/64

A socket stays in the namespace it was made in, so only its making has to go through ``call``.
"""

import ctypes
import ipaddress
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pytest
from pyroute2 import IPRoute

from mycoproxy.kernel import CLONE_NEWNET
from mycoproxy.namespaces import NamespaceWorker

P = ParamSpec("P")
T = TypeVar("T")

IFA_F_NODAD = 0x02  # linux/if_addr.h
RTF_LOCAL = 0x80000000  # linux/ipv6_route.h

_libc = ctypes.CDLL(None, use_errno=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test marked ``root`` that is run without it is skipped, and says so."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root: makes network namespaces"))


class Node:
    """One network namespace with its worker thread, its loopback up.

    ``label`` is for messages only. ``path`` opens the namespace from any process.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        # NamespaceWorker enters a namespace that exists; this one exists only once its thread
        # unshares it. Entering our own first changes nothing.
        self.worker = NamespaceWorker(Path("/proc/self/ns/net"))
        self._fd = self.worker.call(self._unshare)
        self.path = Path(f"/proc/{os.getpid()}/fd/{self._fd}")
        self._netlink = self.worker.call(IPRoute)
        # Link-local addresses too are usable at once: neighbour discovery would wait for them.
        self.sysctl("net.ipv6.conf.default.accept_dad", 0)
        self.sysctl("net.ipv6.conf.default.dad_transmits", 0)
        self.netlink(lambda ipr: ipr.link("set", index=1, state="up"))

    @staticmethod
    def _unshare() -> int:
        if _libc.unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET) failed")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def fd(self) -> int:
        """A descriptor of the namespace (for ``net_ns_fd``, setns)."""
        return self._fd

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``function`` on the thread that lives in this namespace."""
        return self.worker.call(function, *args, **kwargs)

    def netlink(self, function: Callable[[IPRoute], T]) -> T:
        """Run ``function`` with this namespace's rtnetlink socket."""
        return self.worker.call(function, self._netlink)

    def index(self, ifname: str) -> int:
        """The interface index of ``ifname``."""
        found: int = self.netlink(lambda ipr: ipr.link_lookup(ifname=ifname))[0]
        return found

    def add_address(self, ifname: str, address: str, prefix: int) -> None:
        """Add an address to an interface that is up; it can be used when this returns.

        Whatever IFA_F_NODAD says, the kernel makes an IPv6 address known to its routing and to
        neighbour discovery in a work queue. A packet before that is lost or refused, and the
        first connection would wait a second.
        """
        index = self.index(ifname)
        flags = {"flags": IFA_F_NODAD} if ":" in address else {}
        self.netlink(
            lambda ipr: ipr.addr("add", index=index, address=address, prefixlen=prefix, **flags)
        )
        if ":" not in address:
            return
        wanted = ipaddress.IPv6Address(address).packed.hex()
        deadline = time.monotonic() + 5
        while not self._has_local_route(wanted):
            assert time.monotonic() < deadline, f"{address} on {ifname}: no local route within 5 s"
            time.sleep(0.001)

    def _has_local_route(self, address: str) -> bool:
        """``address`` in 32 hex digits, as in /proc/net/ipv6_route."""
        lines = self.call(Path("/proc/thread-self/net/ipv6_route").read_text).splitlines()
        return any(
            fields[0] == address and fields[1] == "80" and int(fields[8], 16) & RTF_LOCAL
            for fields in map(str.split, lines)
        )

    def delete_address(self, ifname: str, address: str, prefix: int) -> None:
        """Remove an address."""
        index = self.index(ifname)
        self.netlink(lambda ipr: ipr.addr("del", index=index, address=address, prefixlen=prefix))

    def set_route(self, destination: str, **route: Any) -> None:
        """Add or replace a route: ``set_route("10.1.0.0/24", gateway="10.77.1.2")``.

        ``ifname=`` may be given instead of ``oif=``.
        """
        if "ifname" in route:
            route["oif"] = self.index(route.pop("ifname"))
        self.netlink(lambda ipr: ipr.route("replace", dst=destination, **route))

    def sysctl(self, name: str, value: object) -> None:
        """Set ``net.ipv4.tcp_sack`` and the like in this namespace."""
        self.call(Path("/proc/sys", *name.split(".")).write_text, str(value))

    def link_state(self, ifname: str, state: str) -> None:
        """Set an interface ``up`` or ``down``."""
        index = self.index(ifname)
        self.netlink(lambda ipr: ipr.link("set", index=index, state=state))

    def close(self) -> None:
        """Let go of the namespace. It disappears with its last socket and process."""
        self.call(self._netlink.close)
        self.worker.close()
        os.close(self._fd)


@dataclass(frozen=True)
class Link:
    """A veth between two nodes: interface names and addresses of either end."""

    left: Node
    right: Node
    left_ifname: str
    right_ifname: str
    left_v4: str
    right_v4: str
    left_v6: str
    right_v6: str

    def address(self, side: str, family_version: int) -> str:
        """``address("left", 6)``."""
        found: str = getattr(self, f"{side}_v{family_version}")
        return found


class Network:
    """Makes nodes and links, and takes all of them down again."""

    def __init__(self) -> None:
        self._nodes: list[Node] = []
        self._links = 0

    def node(self, label: str) -> Node:
        """A new network namespace."""
        node = Node(label)
        self._nodes.append(node)
        return node

    def link(self, left: Node, right: Node, *, mtu: int = 1500) -> Link:
        """Join two nodes by a veth: 10.77.N.1/24 and fd77:N::1/64 left, .2 right.

        The interfaces are called ``to-<other's label>`` (cut at 15 characters), up, addressed,
        and usable when this returns.
        """
        self._links += 1
        number = self._links
        link = Link(
            left=left,
            right=right,
            left_ifname=f"to-{right.label}"[:15],
            right_ifname=f"to-{left.label}"[:15],
            left_v4=f"10.77.{number}.1",
            right_v4=f"10.77.{number}.2",
            left_v6=f"fd77:{number:x}::1",
            right_v6=f"fd77:{number:x}::2",
        )
        peer = {"ifname": link.right_ifname, "net_ns_fd": right.fd, "mtu": mtu}
        left.netlink(
            lambda ipr: ipr.link("add", ifname=link.left_ifname, kind="veth", mtu=mtu, peer=peer)
        )
        left.link_state(link.left_ifname, "up")
        right.link_state(link.right_ifname, "up")
        for node, ifname, v4, v6 in (
            (left, link.left_ifname, link.left_v4, link.left_v6),
            (right, link.right_ifname, link.right_v4, link.right_v6),
        ):
            node.add_address(ifname, v4, 24)
            node.add_address(ifname, v6, 64)
        return link

    def close(self) -> None:
        """Take everything down."""
        while self._nodes:
            self._nodes.pop().close()


@pytest.fixture
def network() -> Iterator[Network]:
    """Makes as many namespaces and links as the test asks for; all are gone afterwards."""
    made = Network()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def netns_pair(network: Network) -> Link:
    """Two namespaces (``left``, ``right``) joined by a veth, IPv4 and IPv6."""
    return network.link(network.node("left"), network.node("right"))
