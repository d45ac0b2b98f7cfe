"""A client, and two places that its server can be at: three network namespaces without a name.

The server's address is on the loopback of both places; the client's route decides which of the two
it talks to, and moving the route is the re-homing. A second address stays at the source: what is
not moved is found there, over a path of the same kind.

The namespaces end with the process, also if it is killed.
"""

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address, ip_interface
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pyroute2 import IPBatch

from mycoproxy.namespaces import NamespaceWorker
from netlab import links, syscalls
from netlab.topology import Interface, Route

MOVING: Final = "10.98.0.1"
"""The server's address, which is at both places."""

STAYING: Final = "10.98.0.2"
"""Another one, at the source only."""

_CLIENT: Final = "10.98.1.1"
_TO_SOURCE: Final = ("10.98.1.1/24", "10.98.1.2/24")
_TO_TARGET: Final = ("10.98.2.1/24", "10.98.2.2/24")
# struct nlmsgerr after struct nlmsghdr (include/uapi/linux/netlink.h)
_ERROR: Final = struct.Struct("=16xi")
_ANSWER: Final = 8192
# Of a limited link, bytes: what may leave at once (a packet that is not cut yet, 64 KiB, and more),
# and what may wait.
_BURST: Final = 1 << 17
_QUEUE: Final = 1 << 20
_DISCARD_PORT: Final = 9
_DEADLINE: Final = 5.0  # seconds


class Places:
    """``client``, ``source``, ``target``: a worker in each; the client's route leads to the source.

    Needs root. Raises ``MycoError``, ``OSError``.
    """

    def __init__(self) -> None:
        with ExitStack() as stack:
            (self.client, client), (self.source, source), (self.target, target) = (
                _namespace(stack) for _ in range(3)
            )
            del client
            self.client.call(links.make_pair, "source", 1001, source, "client")
            self.client.call(links.make_pair, "target", 1002, target, "client")
            here, there = (ip_interface(each) for each in _TO_SOURCE)
            other_here, other_there = (ip_interface(each) for each in _TO_TARGET)
            self.client.call(links.configure, [("source", [here]), ("target", [other_here])], [])
            self.source.call(_configure, there, str(here.ip), [MOVING, STAYING])
            self.target.call(_configure, other_there, str(other_here.ip), [MOVING])
            gateways = str(there.ip), str(other_there.ip)
            self._routes = stack.enter_context(self.client.call(_Routes))
            self._to_source, self._to_target = (_route(MOVING, each) for each in gateways)
            self.lead_to_source()
            self._routes.replace(_route(STAYING, gateways[0]))
            for gateway in gateways:
                self.client.call(_meet, gateway)
            self._stack = stack.pop_all()

    def lead_to_source(self) -> None:
        """Let the client's packets to ``MOVING`` go to the source."""
        self._routes.replace(self._to_source)

    def lead_to_target(self) -> None:
        """Let the client's packets to ``MOVING`` go to the target."""
        self._routes.replace(self._to_target)

    @contextmanager
    def limited(self, rate: float) -> Iterator[None]:
        """Every link, each way, at ``rate`` Gbit/s and no more. 0: as fast as it can."""
        ends = (
            (self.client, "source"),
            (self.client, "target"),
            (self.source, "client"),
            (self.target, "client"),
        )
        if not rate:
            yield
            return
        with ExitStack() as stack:
            for worker, device in ends:
                worker.call(_limit, device, int(rate * 1e9 / 8))
                stack.callback(worker.call, _unlimit, device)
            yield

    def close(self) -> None:
        """End the namespaces, once no process and no socket is left in them."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Routes:
    """rtnetlink of the client, with messages made beforehand: making one takes longest."""

    def __init__(self) -> None:
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)

    def replace(self, message: bytes) -> None:
        """Send what ``_route`` made, from any thread. Raises ``OSError``."""
        self._netlink.send(message)
        number = -_ERROR.unpack_from(self._netlink.recv(_ANSWER))[0]
        if number:
            raise OSError(number, f"cannot set a route: {os.strerror(number)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._netlink.close()


def _route(address: str, gateway: str) -> bytes:
    """The rtnetlink message that leads the client's packets to ``address`` over ``gateway``."""
    batch = IPBatch()
    batch.route("replace", dst=f"{address}/32", gateway=gateway, prefsrc=_CLIENT)
    message = bytes(batch.batch)
    batch.close()
    return message


def _namespace(stack: ExitStack) -> tuple[NamespaceWorker, int]:
    """A worker in a new namespace, and a descriptor of that namespace."""
    worker = stack.enter_context(NamespaceWorker(Path("/proc/self/ns/net")))
    worker.call(syscalls.unshare_network)
    # What arrives may have another way back: the server's address is behind two interfaces.
    for which in ("all", "default"):
        worker.call(Path(f"/proc/sys/net/ipv4/conf/{which}/rp_filter").write_text, "0")
    namespace = worker.call(os.open, "/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, namespace)
    return worker, namespace


def _configure(interface: Interface, gateway: str, addresses: Sequence[str]) -> None:
    loopback = [ip_interface(f"{address}/32") for address in addresses]
    route = Route(to="default", via=ip_address(gateway))
    links.configure([("lo", loopback), ("client", [interface])], [route])


def _limit(device: str, rate: int) -> None:
    with links.rtnetlink(f"cannot limit the rate of {device}") as netlink:
        index = netlink.link_lookup(ifname=device)[0]
        netlink.tc("add", "tbf", index=index, handle="1:0", rate=rate, burst=_BURST, limit=_QUEUE)


def _unlimit(device: str) -> None:
    with links.rtnetlink(f"cannot remove the limit of {device}") as netlink:
        netlink.tc("del", index=netlink.link_lookup(ifname=device)[0], handle="1:0", root=True)


def _meet(gateway: str) -> None:
    """Resolve both ends' link addresses; the connection is refused."""
    with suppress(ConnectionRefusedError):
        socket.create_connection((gateway, _DISCARD_PORT), _DEADLINE).close()
