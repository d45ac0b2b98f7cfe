"""What the netfilter tests stand on: a client, a router with a Service, and two servers.

::

    client --- router --- a
                  |
                  +------ b

The Service's virtual addresses are translated by the router to server ``a``, in a nat prerouting
chain, as kube-proxy does it. IPv4 and IPv6. Connections move from ``a`` to ``b`` for real, with
``mycoproxy.tcp``.
"""

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.netfilter.nft import Nft
from mycoproxy.tcp import capture, establish, release

PORT = 6379
VIRTUAL = {4: "10.96.0.10", 6: "fd96::10"}
DEADLINE_SECONDS = 10.0

_NAT = """\
table inet service {{
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        ip daddr {v4} tcp dport {port} dnat ip to {a4}:{port}
        ip6 daddr {v6} tcp dport {port} dnat ip6 to [{a6}]:{port}
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        {masquerade}
    }}
}}
"""


def wait_until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE_SECONDS) -> None:
    """Wait until ``condition`` is true; ``AssertionError`` after the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        select.select([], [], [], 0.005)


def tcp_info(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 240)


def total_retransmissions(sock: socket.socket) -> int:
    """tcpi_total_retrans (linux/tcp.h, struct tcp_info)."""
    found: int = struct.unpack_from("=I", tcp_info(sock), 100)[0]
    return found


def attempts(sock: socket.socket) -> int:
    """How often data was sent in vain: again, or as a probe (tcpi_probes).

    What the sender's own output hook drops never counts as sent; TCP probes for it instead.
    """
    return total_retransmissions(sock) + tcp_info(sock)[3]


def readable(sock: socket.socket, seconds: float = 0) -> bool:
    return bool(select.select([sock], [], [], seconds)[0])


def receive(sock: socket.socket, count: int) -> bytes:
    """Exactly ``count`` bytes, or an error at the deadline."""
    sock.settimeout(DEADLINE_SECONDS)
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        assert part, "the connection was closed"
        data += part
    return data


def tuple_of(server: socket.socket) -> FourTuple:
    """The connection's name as the server's socket has it."""
    local, remote = server.getsockname(), server.getpeername()
    return FourTuple(Endpoint(*local[:2]), Endpoint(*remote[:2]))


def assert_talks(client: socket.socket, server: socket.socket, count: int = 100_000) -> None:
    """``count`` bytes go each way, whole."""
    for sender, receiver in ((client, server), (server, client)):
        sender.settimeout(DEADLINE_SECONDS)
        sent = bytes(i * 7 & 0xFF for i in range(1000)) * (count // 1000)
        got = bytearray()
        view = memoryview(sent)
        while len(got) < len(sent):
            wanted = [sender] if view else []
            ready, writable, _ = select.select([receiver], wanted, [], DEADLINE_SECONDS)
            assert ready or writable, f"stuck at {len(got)} of {len(sent)} bytes"
            if writable:
                view = view[sender.send(view[:65536]) :]
            if ready:
                part = receiver.recv(65536)
                assert part, "the connection was closed"
                got += part
        assert got == sent


@dataclass
class Lab:
    """The four nodes, their addresses by family, and an nftables context in each."""

    client: Any
    router: Any
    a: Any
    b: Any
    address: dict[tuple[str, int], str]
    nft: dict[str, Nft]
    stack: contextlib.ExitStack

    def node(self, name: str) -> Any:
        return getattr(self, name)

    def endpoint(self, name: str, version: int) -> Endpoint:
        return Endpoint(self.address[name, version], PORT)

    def run(self, name: str, commands: str) -> str:
        """Run nft commands on a node."""
        found: str = self.node(name).call(self.nft[name].run, commands)
        return found

    def ruleset(self, name: str) -> str:
        return self.run(name, "list ruleset")

    def keep(self, made: Any) -> Any:
        """Closed when the lab goes down."""
        self.stack.callback(made.close)
        return made

    def on(self, name: str, make: Callable[..., Any], *arguments: Any) -> Any:
        """Something made on a node's thread, and closed there when the lab goes down."""
        made = self.node(name).call(make, *arguments)
        self.stack.callback(self.node(name).call, made.close)
        return made

    def listen(self, name: str, version: int, *, address: str | None = None) -> socket.socket:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        where = (self.address[name, version] if address is None else address, PORT)
        server = self.node(name).call(socket.create_server, where, family=family, backlog=4096)
        server.settimeout(DEADLINE_SECONDS)
        return self.keep(server)  # type: ignore[no-any-return]

    def dial(self, address: str, port: int = PORT, *, name: str = "client") -> socket.socket:
        sock = self.node(name).call(
            socket.create_connection, (address, port), timeout=DEADLINE_SECONDS
        )
        return self.keep(sock)  # type: ignore[no-any-return]

    def connect(self, listener: socket.socket, address: str) -> tuple[socket.socket, socket.socket]:
        """A connection from the client: (client's socket, server's socket)."""
        client = self.dial(address)
        server, _ = listener.accept()
        return client, self.keep(server)

    def move(self, server: socket.socket, source: str, target: str) -> socket.socket:
        """Take a connection out of a server's socket, and establish it on another node."""
        state = self.node(source).call(capture, server)
        moved = self.node(target).call(socket.socket, server.family, socket.SOCK_STREAM)
        self.keep(moved)
        version = Endpoint(*server.getsockname()[:2]).version
        self.node(target).call(establish, moved, state, local=self.endpoint(target, version))
        server.close()  # in repair mode: silently
        self.node(target).call(release, moved, state)
        return moved  # type: ignore[no-any-return]


@contextlib.contextmanager
def service_lab(network: Any, *, nat: bool = True, masquerade: bool = False) -> Iterator[Lab]:
    """Bring the lab up on the ``network`` fixture's namespaces."""
    client, router, a, b = (network.node(name) for name in ("client", "router", "a", "b"))
    address: dict[tuple[str, int], str] = {}
    router.sysctl("net.ipv4.ip_forward", 1)
    router.sysctl("net.ipv6.conf.all.forwarding", 1)
    for name, node in (("client", client), ("a", a), ("b", b)):
        link = network.link(node, router)
        for version in (4, 6):
            address[name, version] = link.address("left", version)
            destination = "0.0.0.0/0" if version == 4 else "::/0"
            node.set_route(destination, gateway=link.address("right", version))
    with contextlib.ExitStack() as stack:
        lab = Lab(client, router, a, b, address, {}, stack)
        for name in ("client", "router", "a", "b"):
            lab.nft[name] = lab.on(name, Nft)
        if nat:
            lab.run(
                "router",
                _NAT.format(
                    v4=VIRTUAL[4],
                    v6=VIRTUAL[6],
                    a4=address["a", 4],
                    a6=address["a", 6],
                    port=PORT,
                    masquerade="masquerade" if masquerade else "",
                ),
            )
        yield lab
