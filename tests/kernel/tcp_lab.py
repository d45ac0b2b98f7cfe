"""A client and two places its server can be: the lab of the tcp kernel tests.

The server's address is on the loopback of both places; the client's route decides which of them
it talks to. Moving the route is the re-homing. The target has a shield, which drops what comes
from outside until the connection is there: moving the route early is a hold on the source.

A ``Lab`` is the three places, a ``Move`` one connection in them: in a lab of its own, or in one
that serves many.
"""

import os
import select
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mycoproxy import tcp
from mycoproxy.netfilter.nft import Nft
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
NOTHING = "table inet lab\n" + LIFT


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


def fill(sock: socket.socket, chunk: int = 65536, most: int = 48 << 20) -> bytes:
    """Write until the kernel takes no single byte more for 50 ms; return what it took."""
    sock.setblocking(False)
    data = memoryview(os.urandom(most))
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
        wait_until(partial(_is_acknowledged, sock), "acknowledged")


def _is_acknowledged(sock: socket.socket) -> bool:
    return not repair.queued_bytes(sock, abi.SIOCOUTQ)


class Lab:
    """Client ``c``, source ``a``, target ``b``: namespaces, links, addresses, routes, shields."""

    def __init__(
        self, network: Any, *, mtu: int = 1500, sysctls: Mapping[str, object] | None = None
    ) -> None:
        """The client's route leads to the source; the target has no address, and no shield yet."""
        self.network = network
        self.c, self.a, self.b = (network.node(name) for name in "cab")
        self._sysctls: dict[tuple[str, str], object] = {}
        self.sysctls("cab", sysctls or {})
        self.to_a = network.link(self.c, self.a, mtu=mtu)
        self.to_b = network.link(self.c, self.b, mtu=mtu)
        for link in (self.to_a, self.to_b):
            link.right.set_route("default", gateway=link.left_v4)
            link.right.set_route("::/0", gateway=link.left_v6)
        self._contexts = {place: self.node(place).call(Nft) for place in "cab"}
        self._addressed: set[str] = set()
        self.address("a", present=True)
        self.route_to("a")

    def node(self, place: str) -> Any:
        return getattr(self, place)

    def sysctls(self, places: str, values: Mapping[str, object]) -> None:
        """Set these in places, unless they were set so before."""
        for place in places:
            for name, value in values.items():
                if self._sysctls.get((place, name)) != value:
                    self.node(place).sysctl(name, value)
                    self._sysctls[place, name] = value

    def nft(self, place: str, rules: str) -> None:
        """Run nftables commands in a place."""
        self.node(place).call(self._contexts[place].run, rules)

    def shield(self, place: str, *, up: bool) -> None:
        """Drop, or no longer drop, all TCP that comes from outside."""
        self.nft(place, SHIELD if up else LIFT)

    def address(self, place: str, *, present: bool) -> None:
        """Put the server's addresses on a place, or take them off."""
        if present == (place in self._addressed):
            return
        change = self.node(place).add_address if present else self.node(place).delete_address
        change("lo", V4, 32)
        change("lo", V6, 128)
        (self._addressed.add if present else self._addressed.remove)(place)

    def route_to(self, place: str) -> None:
        """Lead the client's packets to a place."""
        link = self.to_a if place == "a" else self.to_b
        self.c.set_route(f"{V4}/32", gateway=link.right_v4, prefsrc=self.to_a.left_v4)
        self.c.set_route(f"{V6}/128", gateway=link.right_v6, prefsrc=self.to_a.left_v6)

    def restore(self) -> None:
        """Ready for another connection: as it was built, but for addresses and sysctls.

        The target is shielded, both ways.
        """
        for place in "cab":
            self.nft(place, NOTHING + (SHIELD + MUTE if place == "b" else ""))
        self.route_to("a")

    def close(self) -> None:
        """Let go of what is not the network's."""
        for place, context in self._contexts.items():
            self.node(place).call(context.close)


@dataclass
class Move:
    """One connection from the client to the source, and its way to the target.

    It is in ``lab``, or in one of its own, which ``build`` makes.
    """

    network: Any
    kind: str
    lab: Any = None
    client: Any = None
    server: Any = None
    moved: Any = None
    stack: ExitStack = field(default_factory=ExitStack)

    def build(self, *, mtu: int = 1500, sysctls: Mapping[str, object] | None = None) -> None:
        """A lab of its own, its target shielded."""
        self.lab = Lab(self.network, mtu=mtu, sysctls=sysctls)
        self.stack.callback(self.lab.close)
        self.shield("b", up=True)

    def __getattr__(self, name: str) -> Any:
        """The lab's places, links and switches are at hand here: ``move.a``, ``move.shield``."""
        return getattr(self.lab, name)

    def _nft(self, place: str, rules: str) -> None:
        self.lab.nft(place, rules)

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET if self.kind == "v4" else socket.AF_INET6

    @property
    def server_address(self) -> str:
        """As the server's socket names it."""
        return {"v4": V4, "v6": V6, "mapped": f"::ffff:{V4}"}[self.kind]

    def socket_in(self, place: str) -> Any:
        """A fresh socket in a place, closed with the connection.

        Of the connection's family; the client's end of a mapped connection is an IPv4 socket.
        """
        plain = place == "c" and self.kind == "mapped"
        family = socket.AF_INET if plain else self.family
        made = self.lab.node(place).call(socket.socket, family, socket.SOCK_STREAM)
        self.stack.callback(made.close)
        return made

    def connect(
        self, prepare: Callable[[socket.socket, str], None] | None = None, **buffers: int
    ) -> None:
        """One connection: ``self.client`` to ``self.server``. Buffers: SO_RCVBUF/SO_SNDBUF.

        ``prepare`` is given the listener ("a") and the client's socket ("c") before they are used.
        """
        listener, self.client = self.socket_in("a"), self.socket_in("c")
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.kind == "mapped":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if prepare:
            prepare(listener, "a")
            prepare(self.client, "c")
        listener.bind(("::" if self.kind == "mapped" else self.server_address, 0))
        listener.listen()
        target = V4 if self.kind == "mapped" else self.server_address
        self.client.settimeout(DEADLINE)
        self.client.connect((target, listener.getsockname()[1]))
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
        self.nft("a", MUTE)
        state: tcp.TcpState = self.a.call(tcp.capture, self.server)
        return state

    def unmute(self) -> None:
        """The source may send again."""
        self.nft("a", LIFT)

    def roll_back(self, state: tcp.TcpState) -> list[str]:
        """Everything as it was before ``capture``; returns what is not."""
        self.unmute()
        self.route_to("a")
        remarks: list[str] = self.a.call(tcp.resume, self.server, state)
        return remarks

    def establish(self, state: tcp.TcpState) -> Any:
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
