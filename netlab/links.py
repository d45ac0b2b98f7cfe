"""Interfaces, addresses and routes of a lab's nodes, through rtnetlink.

Every function here runs on the thread of the namespace that it changes (``NamespaceWorker.call``)
and opens one netlink socket for all it does: a message takes a third of a millisecond, a child
process would take ten.

The two ends of a veth pair get different interface numbers. With equal ones Linux before 6.3 or so
takes the pair for an ordinary device, and may report its carrier a second late
(net/core/link_watch.c, ``linkwatch_urgent_event``).
"""

import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from mycoproxy.errors import MycoError
from netlab.topology import Address, Interface, Route

_IFA_F_NODAD = 0x02  # linux/if_addr.h
_LOOPBACK = 1
_POLL = 0.001  # seconds


@contextmanager
def rtnetlink(what: str) -> Iterator[Any]:
    """A netlink socket in the calling thread's namespace; its errors say ``what`` was tried."""
    try:
        with IPRoute() as netlink:
            yield netlink
    except NetlinkError as error:
        raise MycoError(f"{what}: {error.args[1]} (netlink error {error.code})") from error


def make_pair(device: str, number: int, peer_namespace: int, peer_device: str) -> None:
    """A veth pair: ``device`` here, numbered ``number``, and ``peer_device`` in a namespace.

    ``peer_namespace`` is a descriptor of that namespace. The peer is numbered by the kernel, which
    counts from 2, so ``number`` is to be large.
    """
    with rtnetlink(f"cannot make the link {device} - {peer_device}") as netlink:
        netlink.link(
            "add",
            ifname=device,
            kind="veth",
            index=number,
            peer={"ifname": peer_device, "net_ns_fd": peer_namespace},
        )


def make_bridge(device: str, addresses: Sequence[Interface]) -> None:
    """A bridge with addresses, up, as the CNI bridge plugin makes it."""
    with rtnetlink(f"cannot make the bridge {device}") as netlink:
        # Neighbour discovery is multicast: without a querier, snooping has nothing to go by.
        # With an address of its own: otherwise it has that of one of its ports, and another one
        # when that port goes. Neighbours, which remember the old one, would not reach it any more.
        netlink.link(
            "add",
            ifname=device,
            kind="bridge",
            address=_some_address(),
            br_mcast_snooping=0,
            br_stp_state=0,
        )
        _set_up(netlink, _number(netlink, device), addresses)


def _some_address() -> str:
    """A locally administered unicast address (IEEE 802)."""
    return ":".join(f"{byte:02x}" for byte in (0x02, *secrets.token_bytes(5)))


def attach_to_bridge(device: str, bridge: str, *, hairpin: bool) -> None:
    """Make ``device`` a port of ``bridge`` and take it up.

    ``hairpin``: what comes by this port may leave by it again, as it must if a pod reaches itself
    through a Service. CNI's bridge plugin calls it hairpinMode.
    """
    with rtnetlink(f"cannot attach {device} to {bridge}") as netlink:
        port = _number(netlink, device)
        netlink.link("set", index=port, master=_number(netlink, bridge))
        if hairpin:
            netlink.brport("set", index=port, mode=1)
        netlink.link("set", index=port, state="up")


def remove(device: str) -> None:
    """Remove an interface (with its other end). None is fine."""
    with rtnetlink(f"cannot remove {device}") as netlink:
        found = list(netlink.link_lookup(ifname=device))
        if found:
            netlink.link("del", index=found[0])


def configure(devices: Sequence[tuple[str, Sequence[Interface]]], routes: Sequence[Route]) -> None:
    """Take loopback and ``devices`` up, with their addresses, then add ``routes``."""
    with rtnetlink("cannot configure the loopback interface") as netlink:
        netlink.link("set", index=_LOOPBACK, state="up")
    for device, addresses in devices:
        with rtnetlink(f"cannot configure {device}") as netlink:
            _set_up(netlink, _number(netlink, device), addresses)
    for route in routes:
        with rtnetlink(f"cannot add a route to {route.to} via {route.via}") as netlink:
            netlink.route(
                "add",
                dst=str(route.to),
                gateway=str(route.via),
                family=socket.AF_INET if route.via.version == 4 else socket.AF_INET6,
            )


def default_routes(gateways: Sequence[Address]) -> list[Route]:
    """The routes that ``gateways`` stand for."""
    return [Route(to="default", via=gateway) for gateway in gateways]


def states() -> dict[str, bool]:
    """The interfaces of this namespace without loopback: name, and whether it carries packets."""
    with rtnetlink("cannot list the interfaces") as netlink:
        return {
            str(link.get_attr("IFLA_IFNAME")): link.get_attr("IFLA_OPERSTATE") == "UP"
            for link in netlink.get_links()
            if link["index"] != _LOOPBACK
        }


def overflow(device: str) -> int:
    """Packets that ``device`` of this namespace was to send and had no room for (tx_dropped)."""
    with rtnetlink(f"cannot look at {device}") as netlink:
        (link,) = netlink.get_links(_number(netlink, device))
        return int(link.get_attr("IFLA_STATS64")["tx_dropped"])


def wait_until_up(devices: Sequence[str], *, timeout: float) -> None:
    """Wait until ``devices`` carry packets. Raises ``MycoError`` after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        now = states()
        down = [device for device in devices if not now.get(device)]
        if not down:
            return
        if time.monotonic() > deadline:
            raise MycoError(f"not up after {timeout:g} s: {', '.join(down)}")
        time.sleep(_POLL)


def _number(netlink: Any, device: str) -> int:  # noqa: ANN401
    found = list(netlink.link_lookup(ifname=device))
    if not found:
        raise MycoError(f"no interface {device} in this namespace")
    return int(found[0])


def _set_up(netlink: Any, number: int, addresses: Sequence[Interface]) -> None:  # noqa: ANN401
    for interface in addresses:
        arguments: dict[str, object] = {
            "index": number,
            "address": str(interface.ip),
            "prefixlen": interface.network.prefixlen,
        }
        if interface.version == 6:
            arguments["flags"] = _IFA_F_NODAD
        netlink.addr("add", **arguments)
    netlink.link("set", index=number, state="up")
