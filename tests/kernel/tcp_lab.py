"""A client and two places its server can be: the lab of the tcp kernel tests.

The server's address is on the loopback of both places; the client's route decides which of them
it talks to. Moving the route is the re-homing. The target has a shield, which drops what comes
from outside until the connection is there: moving the route early is a hold on the source.
"""

import os
import select
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from mycoproxy import tcp
from mycoproxy.tcp import abi, repair

V4 = "10.99.0.1"
V6 = "fd99::1"
DEADLINE = 10.0

SHIELD = """
table inet lab {
    chain shield {
        type filter hook prerouting priority raw; policy accept;
        iif != lo meta l4proto tcp drop
    }
}
"""
MUTE = """
table inet lab {
    chain mute {
        type filter hook output priority raw; policy accept;
        oif != lo meta l4proto tcp drop
    }
}
"""
LIFT = "delete table inet lab\n"


def wait_until(condition: Callable[[], object], what: str, deadline: float = DEADLINE) -> None:
    """Poll until ``condition`` holds; fail after ``deadline`` seconds."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"waited {deadline} s for: {what}"
        time.sleep(0.001)


def receive_exactly(sock: socket.socket, count: int) -> bytes:
    """``count`` bytes, or what came before the end of the stream."""
    sock.settimeout(DEADLINE)
    parts = []
    while count:
        part = sock.recv(min(count, 1 << 20))
        if not part:
            break
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def fill(sock: socket.socket, chunk: int = 65536) -> bytes:
    """Write until the kernel takes no single byte more for 50 ms; return what it took."""
    sock.setblocking(False)
    data = memoryview(os.urandom(48 << 20))
    taken = 0
    while taken < len(data):
        try:
            taken += sock.send(data[taken : taken + chunk])
        except BlockingIOError:
            # The window may open while the peer's buffer grows, without EPOLLOUT's free third.
            select.select([], [sock], [], 0.05)
            try:
                taken += sock.send(data[taken : taken + 1])
            except BlockingIOError:
                break
    return bytes(data[:taken])


def settle(*socks: socket.socket) -> None:
    """Wait until the peer has acknowledged everything."""
    for sock in socks:
        wait_until(lambda sock=sock: not repair.queued_bytes(sock, abi.SIOCOUTQ), "acknowledged")


@dataclass
class Move:
    """Client ``c``, source ``a``, target ``b``, and one connection c -> a."""

    network: Any
    kind: str
    c: Any = None
    a: Any = None
    b: Any = None
    client: Any = None
    server: Any = None
    moved: Any = None
    stack: ExitStack = field(default_factory=ExitStack)

    def build(self, *, mtu: int = 1500, sysctls: dict[str, object] | None = None) -> None:
        """Namespaces, links, addresses, routes; the client's route leads to the source."""
        self.c, self.a, self.b = (self.network.node(name) for name in "cab")
        for node in (self.c, self.a, self.b):
            for name, value in (sysctls or {}).items():
                node.sysctl(name, value)
        self.to_a = self.network.link(self.c, self.a, mtu=mtu)
        self.to_b = self.network.link(self.c, self.b, mtu=mtu)
        for link in (self.to_a, self.to_b):
            link.right.set_route("default", gateway=link.left_v4)
            link.right.set_route("::/0", gateway=link.left_v6)
        self.shield("b", up=True)
        self.address("a", present=True)
        self.route_to("a")

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET if self.kind == "v4" else socket.AF_INET6

    @property
    def server_address(self) -> str:
        """As the server's socket names it."""
        return {"v4": V4, "v6": V6, "mapped": f"::ffff:{V4}"}[self.kind]

    def shield(self, place: str, *, up: bool) -> None:
        """Drop, or no longer drop, all TCP that comes from outside."""
        self._nft(place, SHIELD if up else LIFT)

    def _nft(self, place: str, rules: str) -> None:
        node = getattr(self, place)
        node.call(subprocess.run, ["nft", "-f", "-"], input=rules, text=True, check=True)

    def address(self, place: str, *, present: bool) -> None:
        """Put the server's addresses on a place, or take them off."""
        node = getattr(self, place)
        change = node.add_address if present else node.delete_address
        change("lo", V4, 32)
        change("lo", V6, 128)

    def route_to(self, place: str) -> None:
        """Lead the client's packets to a place."""
        link = self.to_a if place == "a" else self.to_b
        self.c.set_route(f"{V4}/32", gateway=link.right_v4, prefsrc=self.to_a.left_v4)
        self.c.set_route(f"{V6}/128", gateway=link.right_v6, prefsrc=self.to_a.left_v6)

    def socket_in(self, place: str) -> socket.socket:
        """A fresh socket of the right family in a place; closed with the lab."""
        node = getattr(self, place)
        made: socket.socket = node.call(socket.socket, self.family, socket.SOCK_STREAM)
        self.stack.callback(made.close)
        return made

    def connect(self, **buffers: int) -> None:
        """One connection: ``self.client`` to ``self.server``. Buffers: SO_RCVBUF/SO_SNDBUF."""
        listener = self.socket_in("a")
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.kind == "mapped":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::" if self.kind == "mapped" else self.server_address, 0))
        listener.listen()
        target = V4 if self.kind == "mapped" else self.server_address
        self.client = self.c.call(
            socket.create_connection, (target, listener.getsockname()[1]), DEADLINE
        )
        self.stack.callback(self.client.close)
        self.server, _ = listener.accept()
        self.stack.callback(self.server.close)
        self.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for name, size in buffers.items():
            for sock in (self.client, self.server):
                sock.setsockopt(socket.SOL_SOCKET, getattr(socket, name), size)

    def hold(self) -> None:
        """From now on no packet of the client arrives anywhere."""
        self.route_to("b")

    def capture(self) -> tcp.TcpState:
        """Hold both ways, then capture the server's end.

        In repair mode the source's timers go on, and what they sent would be younger than all the
        target sends: to the client the target would be an old duplicate (PAWS).
        """
        self.hold()
        self._nft("a", MUTE)
        return tcp.capture(self.server)

    def unmute(self) -> None:
        """The source may send again."""
        self._nft("a", LIFT)

    def roll_back(self, state: tcp.TcpState) -> None:
        """Everything as it was before ``capture``."""
        self.unmute()
        self.route_to("a")
        self.a.call(tcp.resume, self.server, state)

    def establish(self, state: tcp.TcpState) -> socket.socket:
        """The address comes to the target, and the connection with it, in repair mode."""
        self.moved = self.socket_in("b")
        self.address("b", present=True)
        tcp.establish(self.moved, state)
        return self.moved

    def move(self, state: tcp.TcpState | None = None) -> tcp.TcpState:
        """The whole move, over the wire format; the source is closed silently."""
        state = tcp.decode(tcp.encode(state or self.capture()))
        self.establish(state)
        self.shield("b", up=False)
        self.b.call(tcp.release, self.moved, state)
        self.server.close()
        return state

    def close(self) -> None:
        self.stack.close()


def exchange(one: socket.socket, other: socket.socket, rounds: int = 5) -> None:
    """Both directions work, each answering the other."""
    for number in range(rounds):
        for sender, receiver in ((one, other), (other, one)):
            message = f"round {number}".encode()
            sender.sendall(message)
            assert receive_exactly(receiver, len(message)) == message
    settle(one, other)
