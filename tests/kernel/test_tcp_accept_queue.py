"""Connections that nobody has accepted yet move into another listener's accept queue."""

import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from tcp_lab import DEADLINE, V4, Move, exchange, fill, receive_exactly, settle, wait_until

from mycoproxy import tcp
from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.sockdiag import SocketLookup
from mycoproxy.tcp import accept_queue, handshakes, repair
from mycoproxy.tcp.abi import TcpConnectionState

pytestmark = pytest.mark.root
PORT = 7777


class Queue(Move):
    """Two listeners of one name, on source and target; clients that nobody accepts."""

    def prepare(self, **options: Any) -> None:
        self.build(**options)
        self.address("b", present=True)
        self.old, self.new = self.listener("a"), self.listener("b")
        self.clients: list[socket.socket] = []

    def listener(self, place: str) -> socket.socket:
        listener = self.socket_in(place)
        if self.kind == "mapped":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::" if self.kind == "mapped" else self.server_address, PORT))
        listener.listen(16)
        return listener

    def client_connects(self, data: bytes = b"") -> socket.socket:
        waiting = repair.accept_queue(self.old).waiting
        target = V4 if self.kind == "mapped" else self.server_address
        client = self.c.call(socket.create_connection, (target, PORT), DEADLINE)
        self.stack.callback(client.close)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if data:
            client.sendall(data)
            settle(client)
        wait_until(lambda: repair.accept_queue(self.old).waiting > waiting, "in the queue")
        self.clients.append(client)
        return client

    def take(self) -> list[tcp.TcpState]:
        """Hold, take everything out of the source's queue, capture, forget the source."""
        self.hold()
        self._nft("a", SHIELD)
        taken = self.a.call(accept_queue.take, self.old)
        states = [tcp.decode(tcp.encode(tcp.capture(one))) for one in taken]
        for one in taken:
            one.close()
        return states

    def put(self, states: list[tcp.TcpState]) -> list[tcp.TcpState]:
        agreed = self.b.call(accept_queue.put, self.new, states)
        self.shield("b", up=False)
        return agreed

    def shield(self, place: str, *, up: bool) -> None:
        """Both ways, as the real one."""
        self._nft(place, SHIELD if up else "delete table inet lab\n")


SHIELD = """
table inet lab {
    chain in {
        type filter hook prerouting priority raw; policy accept;
        iif != lo meta l4proto tcp drop
    }
    chain out {
        type filter hook output priority raw; policy accept;
        oif != lo meta l4proto tcp drop
    }
}
"""


@pytest.fixture(params=["v4", "v6", "mapped"])
def queue(network: Any, request: Any) -> Iterator[Queue]:
    made = Queue(network, request.param)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def queue_v4(network: Any) -> Iterator[Queue]:
    made = Queue(network, "v4")
    try:
        yield made
    finally:
        made.close()


def accept(queue: Queue) -> socket.socket:
    queue.new.settimeout(DEADLINE)
    server, _ = queue.new.accept()
    queue.stack.callback(server.close)
    return server


def test_what_waited_is_accepted_on_the_target_in_order(queue: Queue) -> None:
    queue.prepare()
    for number in range(3):
        queue.client_connects(b"request %d" % number)
    states = queue.take()
    assert repair.accept_queue(queue.old).waiting == 0
    agreed = queue.put(states)
    assert [state.connection for state in agreed] == [state.connection for state in states]
    for number, client in enumerate(queue.clients):
        server = accept(queue)
        assert receive_exactly(server, 9) == b"request %d" % number
        assert server.getpeername()[:2] == states[number].remote
        exchange(client, server)
        client.close()
        assert server.recv(1) == b""


def test_a_client_that_said_all_it_had_to_say_is_answered(queue: Queue) -> None:
    queue.prepare()
    client = queue.client_connects(b"question")
    client.shutdown(socket.SHUT_WR)
    settle(client)
    queue.put(queue.take())
    server = accept(queue)
    assert receive_exactly(server, 99) == b"question"
    server.sendall(b"answer")
    server.close()
    assert receive_exactly(client, 99) == b"answer"


def test_as_much_as_the_receive_buffer_holds_is_carried_over(queue_v4: Queue) -> None:
    queue_v4.prepare()
    client = queue_v4.client_connects()
    sent = fill(client)
    states = queue_v4.take()
    assert len(states[0].receive.data) > 30_000
    queue_v4.put(states)
    server = accept(queue_v4)
    assert receive_exactly(server, len(sent)) == sent
    client.settimeout(DEADLINE)
    exchange(client, server)


@pytest.mark.parametrize(
    "scales", [("131072", "6291456"), ("6291456", "131072"), ("1048576", "33554432")]
)
def test_the_window_scale_is_the_one_that_was_negotiated(
    queue_v4: Queue, scales: tuple[str, str]
) -> None:
    """Whatever the target's namespace would have chosen."""
    queue_v4.prepare()
    queue_v4.new.close()
    for place, largest in zip("ab", scales, strict=True):
        getattr(queue_v4, place).sysctl("net.ipv4.tcp_rmem", f"4096 131072 {largest}")
    queue_v4.new = queue_v4.listener("b")
    client = queue_v4.client_connects()
    states = queue_v4.take()
    queue_v4.put(states)
    server = accept(queue_v4)
    again = tcp.capture(server, peek=True)
    assert again.negotiated.window_scale == states[0].negotiated.window_scale
    assert queue_v4.b.call(_read_sysctl, "tcp_rmem").split() == ["4096", "131072", scales[1]]
    exchange(client, server)


@pytest.mark.parametrize("sack", [0, 1])
@pytest.mark.parametrize("scaling", [0, 1])
@pytest.mark.parametrize("timestamps", [0, 1])
def test_every_combination_of_options(
    queue_v4: Queue, sack: int, scaling: int, timestamps: int
) -> None:
    """Negotiated on the source; the target's own settings are the opposite."""
    queue_v4.prepare()
    names = {"tcp_sack": sack, "tcp_window_scaling": scaling, "tcp_timestamps": timestamps}
    for name, value in names.items():
        queue_v4.a.sysctl(f"net.ipv4.{name}", value)
        queue_v4.b.sysctl(f"net.ipv4.{name}", 1 - value)
    client = queue_v4.client_connects(b"x")
    (state,) = queue_v4.take()
    (agreed,) = queue_v4.put([state])
    server = accept(queue_v4)
    again = tcp.capture(server, peek=True)
    assert again.negotiated.sack is bool(sack)
    assert again.negotiated.window_scale == state.negotiated.window_scale
    assert again.negotiated.mss_clamp == state.negotiated.mss_clamp
    assert (again.negotiated.timestamps is None) is (agreed.negotiated.timestamps is None)
    assert (again.send.una, again.receive) == (state.send.una, state.receive)
    assert receive_exactly(server, 1) == b"x"
    for name, value in names.items():
        found = queue_v4.b.call(_read_sysctl, name)
        assert found == str(1 - value), f"{name} was not put back"
    exchange(client, server)


def _read_sysctl(name: str) -> str:
    with open(f"/proc/sys/net/ipv4/{name}") as file:  # noqa: PTH123
        return file.read().strip()


def test_a_rollback_puts_them_back_where_they_were(queue: Queue) -> None:
    queue.prepare()
    client = queue.client_connects(b"still there?")
    states = queue.take()
    assert queue.a.call(accept_queue.put, queue.old, states) == states  # timestamps and all
    queue.unmute()
    queue.route_to("a")
    queue.new = queue.old
    server = accept(queue)
    assert receive_exactly(server, 12) == b"still there?"
    exchange(client, server)
    again = tcp.capture(server, peek=True)
    assert (again.negotiated.timestamps is None) is (states[0].negotiated.timestamps is None)


LOSE_AT_CLIENT = {
    "the client's acknowledgement is lost": """
table inet lab {
    chain c {
        type filter hook output priority raw; policy accept;
        tcp dport 7777 tcp flags & (syn | ack) == ack drop
    }
}
""",
    "the client has heard nothing yet": """
table inet lab {
    chain c {
        type filter hook prerouting priority raw; policy accept;
        tcp sport 7777 drop
    }
}
""",
    "the listener defers it until there is data": None,
}


@pytest.mark.parametrize("where", ["moved", "rolled back"])
@pytest.mark.parametrize("what", LOSE_AT_CLIENT)
def test_a_handshake_under_way_is_completed(queue: Queue, what: str, where: str) -> None:
    queue.prepare()
    rules = LOSE_AT_CLIENT[what]
    if rules:
        queue._nft("c", rules)
    else:
        for listener in (queue.old, queue.new):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
    client = queue.c.call(socket.socket, socket.AF_INET6 if queue.kind == "v6" else socket.AF_INET)
    queue.stack.callback(client.close)
    client.setblocking(False)
    target = V4 if queue.kind == "mapped" else queue.server_address
    client.connect_ex((target, PORT))
    name = FourTuple(
        Endpoint(target, PORT),
        Endpoint(*client.getsockname()[:2]),
    )
    lookup = queue.a.call(SocketLookup)
    queue.stack.callback(lookup.close)
    wait_until(lambda: lookup.find(name) is not None, "a request")
    if not rules:
        wait_until(
            lambda: repair.connection_state(client) is TcpConnectionState.ESTABLISHED, "connected"
        )
    assert repair.accept_queue(queue.old).waiting == 0

    tap = queue.a.call(lambda: tcp.Tap(outgoing=True))
    queue.stack.callback(tap.close)
    (known,) = queue.a.call(handshakes.learn, [name], tap)
    queue.hold()
    queue._nft("a", SHIELD)
    queue.a.call(handshakes.complete, [queue.old], [known])
    assert queue.old.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) == (
        queue.new.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT)
    )
    (taken,) = queue.a.call(accept_queue.take, queue.old)
    state = tcp.capture(taken)
    taken.close()
    assert (state.send.una, state.receive.next) == (known.ours + 1, known.theirs + 1)

    if rules:
        queue._nft("c", "delete table inet lab\n")
    if where == "moved":
        agreed = queue.b.call(accept_queue.put, queue.new, [state])
        queue.shield("b", up=False)
        queue.b.call(accept_queue.announce, agreed)
    else:
        agreed = queue.a.call(accept_queue.put, queue.old, [state])
        queue.unmute()
        queue.route_to("a")
        queue.a.call(accept_queue.announce, agreed)
        queue.new = queue.old
    client.settimeout(DEADLINE)
    wait_until(
        lambda: repair.connection_state(client) is TcpConnectionState.ESTABLISHED, "connected"
    )
    client.sendall(b"hello")
    server = accept(queue)
    assert receive_exactly(server, 5) == b"hello"
    exchange(client, server)


def test_a_client_that_has_reset_meanwhile_is_left_out(queue_v4: Queue) -> None:
    queue_v4.prepare()
    gone, stays = queue_v4.client_connects(), queue_v4.client_connects(b"here")
    gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    gone.close()
    states = queue_v4.take()
    assert [state.remote for state in states] == [Endpoint(*stays.getsockname())]
    queue_v4.put(states)
    exchange_after = accept(queue_v4)
    assert receive_exactly(exchange_after, 4) == b"here"


def test_the_listener_is_left_as_it_was(queue_v4: Queue) -> None:
    queue_v4.prepare()

    def settings() -> tuple[int, ...]:
        get = queue_v4.new.getsockopt
        return (
            get(socket.SOL_SOCKET, socket.SO_RCVBUF),
            repair.buffer_lock(queue_v4.new),
            get(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT),
            repair.accept_queue(queue_v4.new).limit,
        )

    before = settings()
    client = queue_v4.client_connects()
    fill(client)
    queue_v4.put(queue_v4.take())
    assert settings() == before


def test_a_full_backlog_is_named(queue_v4: Queue) -> None:
    queue_v4.prepare()
    for _ in range(2):
        queue_v4.client_connects(b"x")
    states = queue_v4.take()
    queue_v4.new.listen(0)  # room for one
    with pytest.raises(tcp.TcpError, match="backlog"):
        queue_v4.b.call(accept_queue.put, queue_v4.new, states)


def test_nobody_listening_is_named(queue_v4: Queue) -> None:
    queue_v4.prepare()
    queue_v4.client_connects(b"x")
    states = queue_v4.take()
    elsewhere = [state.moved_to(local=state.local._replace(port=9)) for state in states]
    with pytest.raises(tcp.TcpError, match="anyone listen"):
        queue_v4.b.call(accept_queue.put, queue_v4.new, elsewhere)


def test_a_fast_open_connection_whose_handshake_is_not_complete(queue_v4: Queue) -> None:
    """It is in the accept queue with its first data before the client's acknowledgement."""
    queue_v4.prepare()
    queue_v4.c.sysctl("net.ipv4.tcp_fastopen", 0x1 | 0x4)  # a client, also without a cookie
    queue_v4.a.sysctl("net.ipv4.tcp_fastopen", 0x2 | 0x200)  # a server that wants no cookie
    queue_v4.old.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
    rules = LOSE_AT_CLIENT["the client's acknowledgement is lost"]
    assert rules is not None
    queue_v4._nft("c", rules)
    client = queue_v4.c.call(socket.socket)
    queue_v4.stack.callback(client.close)
    client.settimeout(DEADLINE)
    queue_v4.c.call(client.sendto, b"at once", socket.MSG_FASTOPEN, (queue_v4.server_address, PORT))
    wait_until(lambda: repair.accept_queue(queue_v4.old).waiting == 1, "in the queue")
    queue_v4.hold()
    queue_v4._nft("a", SHIELD)
    (taken,) = queue_v4.a.call(accept_queue.take, queue_v4.old)
    state = tcp.capture(taken)
    taken.close()
    queue_v4._nft("c", "delete table inet lab\n")
    agreed = queue_v4.put([state])
    queue_v4.b.call(accept_queue.announce, agreed)
    server = accept(queue_v4)
    assert receive_exactly(server, 7) == b"at once"
    exchange(client, server)


def test_a_request_tells_its_numbers_also_just_after_a_second_syn(queue: Queue) -> None:
    """Which is answered too, and the kernel limits how often it answers."""
    queue.prepare()
    rules = LOSE_AT_CLIENT["the client has heard nothing yet"]
    assert rules is not None
    queue._nft("c", rules)
    syns = queue.a.call(lambda: tcp.Tap(only_syn=True))
    queue.stack.callback(syns.close)
    client = queue.c.call(socket.socket, socket.AF_INET6 if queue.kind == "v6" else socket.AF_INET)
    queue.stack.callback(client.close)
    client.setblocking(False)
    client.connect_ex((V4 if queue.kind == "mapped" else queue.server_address, PORT))
    lookup = queue.a.call(SocketLookup)
    queue.stack.callback(lookup.close)
    found: list[tcp.Segment] = []
    wait_until(lambda: found.extend(syns.arrived()) or found, "a SYN")
    (syn,) = found
    wait_until(lambda: lookup.find(syn.connection) is not None, "a request")
    queue.a.call(tcp.inject, [syn])
    tap = queue.a.call(lambda: tcp.Tap(outgoing=True))
    queue.stack.callback(tap.close)
    (known,) = queue.a.call(handshakes.learn, [syn.connection], tap)
    assert known.theirs == syn.header.sequence
