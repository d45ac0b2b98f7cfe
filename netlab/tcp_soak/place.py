"""A network namespace without a name: it lives as long as the thread and the sockets in it."""

import ipaddress
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pyroute2 import IPRoute

from mycoproxy.errors import MycoError
from mycoproxy.namespaces import NamespaceWorker
from mycoproxy.netfilter.nft import Nft
from netlab import links, syscalls
from netlab.topology import Address, Route

P = ParamSpec("P")
T = TypeVar("T")

_NUD_PERMANENT = 0x80  # linux/neighbour.h
_RTN_LOCAL = 2  # linux/rtnetlink.h
_DEADLINE = 10.0
# IPv6 addresses are usable at once, and nobody asks for routers.
_SYSCTLS = {"accept_dad": "0", "dad_transmits": "0", "router_solicitations": "0"}


class Place:
    """A fresh namespace, its loopback up, with a thread, a netlink socket and nftables in it."""

    def __init__(self, label: str) -> None:
        self.label = label
        with ExitStack() as stack:
            # There is no path to a namespace that is yet to be made: the thread leaves ours.
            self.worker = NamespaceWorker(Path("/proc/self/ns/net"))
            stack.callback(self.worker.close)
            self.call(_enter_fresh)
            self._netlink: Any = self.call(IPRoute)
            stack.callback(self.call, self._netlink.close)
            self.nft = self.call(Nft)
            stack.callback(self.call, self.nft.close)
            self._stack = stack.pop_all()

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``function`` on the thread that lives here."""
        return self.worker.call(function, *args, **kwargs)

    def configure(self, addresses: dict[str, Sequence[str]], routes: Sequence[Route] = ()) -> None:
        """Give interfaces their addresses (``"192.0.2.1/24"``); all can be used afterwards.

        The kernel makes an IPv6 address known to its routing in a work queue, so that is waited
        for. Raises ``MycoError``.
        """
        devices = {
            device: [ipaddress.ip_interface(each) for each in texts]
            for device, texts in addresses.items()
        }
        self.call(links.configure, list(devices.items()), routes)
        for interfaces in devices.values():
            for interface in interfaces:
                self._wait_for(interface.ip)

    def _wait_for(self, address: Address) -> None:
        end = time.monotonic() + _DEADLINE
        while not self.call(self._is_local, str(address)):
            if time.monotonic() > end:
                raise MycoError(f"{self.label}: {address} is not usable after {_DEADLINE:g} s")
            time.sleep(0.001)

    def _is_local(self, address: str) -> bool:
        (route,) = self._netlink.route("get", dst=address)
        return bool(route["type"] == _RTN_LOCAL)

    def hardware_address(self, ifname: str) -> str:
        """The Ethernet address of an interface."""

        def read() -> str:
            index = self._netlink.link_lookup(ifname=ifname)[0]
            return str(self._netlink.get_links(index)[0].get_attr("IFLA_ADDRESS"))

        return self.call(read)

    def introduce(self, ifname: str, hardware: str, addresses: Sequence[str]) -> None:
        """Know for good where ``addresses`` are: no lost packet is one of neighbour discovery."""

        def add() -> None:
            index = self._netlink.link_lookup(ifname=ifname)[0]
            for address in addresses:
                self._netlink.neigh(
                    "replace", dst=address, lladdr=hardware, ifindex=index, state=_NUD_PERMANENT
                )

        self.call(add)

    def set_route(self, to: str, *, via: str, source: str) -> None:
        """Lead packets to ``to`` (``"192.0.2.1/32"``) through ``via``, instead of where they went.

        ``source`` is the address that new connections have here.
        """
        self.call(self._netlink.route, "replace", dst=to, gateway=via, prefsrc=source)

    def socket(self, family: socket.AddressFamily) -> socket.socket:
        """A fresh TCP socket, non-blocking."""
        made = self.call(socket.socket, family, socket.SOCK_STREAM)
        made.setblocking(False)
        return made

    def notice_losses_after(self, milliseconds: int) -> None:
        """A shorter least retransmission timeout for what is opened from now on (Linux 6.11).

        The usual 200 ms make a connection over a bad wire wait most of the time.
        """

        def write() -> None:
            with suppress(FileNotFoundError):
                Path("/proc/sys/net/ipv4/tcp_rto_min_us").write_text(str(milliseconds * 1000))

        self.call(write)

    def close(self) -> None:
        """Let go of the namespace."""
        self._stack.close()


def _enter_fresh() -> None:
    syscalls.unshare_network()
    for name, value in _SYSCTLS.items():
        for which in ("all", "default"):
            Path("/proc/sys/net/ipv6/conf", which, name).write_text(value)
