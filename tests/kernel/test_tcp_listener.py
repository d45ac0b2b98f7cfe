"""A listening socket goes to another namespace with all that its owner has set."""

import socket
from typing import Any

import pytest
from tcp_lab import DEADLINE

from mycoproxy import tcp
from mycoproxy.addresses import Endpoint
from mycoproxy.tcp import options, repair
from mycoproxy.tcp.abi import TcpConnectionState

pytestmark = pytest.mark.root


@pytest.mark.parametrize(
    ("family", "host"),
    [
        (socket.AF_INET, "127.0.0.1"),
        (socket.AF_INET, "0.0.0.0"),
        (socket.AF_INET6, "::1"),
        (socket.AF_INET6, "::"),
    ],
)
@pytest.mark.parametrize("dual", [0, 1])
def test_a_listener_is_the_same_elsewhere(
    network: Any, family: socket.AddressFamily, host: str, dual: int
) -> None:
    here, there = network.node("here"), network.node("there")
    old = here.call(socket.socket, family, socket.SOCK_STREAM)
    new = there.call(socket.socket, family, socket.SOCK_STREAM)
    with old, new:
        if family == socket.AF_INET6:
            old.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1 - dual)
        old.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, dual)
        old.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, dual)
        old.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
        old.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        old.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 7)
        old.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1000)
        old.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77)
        old.bind((host, 0))
        old.listen(33)

        state = tcp.decode_listener(tcp.encode_listener(tcp.capture_listener(old)))
        assert there.call(tcp.listen, new, state) == []

        assert tcp.capture_listener(new) == state
        assert repair.accept_queue(new).limit == 33
        assert new.getsockname() == old.getsockname()
        assert options.read(new) == options.read(old)
        new.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 0)
        own = "127.0.0.1" if family == socket.AF_INET else "::1"
        with there.call(socket.create_connection, (own, state.local.port), DEADLINE) as client:
            new.settimeout(DEADLINE)
            with new.accept()[0] as server:
                assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77
                client.sendall(b"x")
                assert server.recv(1) == b"x"


def test_a_listener_can_have_another_address(network: Any) -> None:
    node = network.node("n")
    with (
        node.call(socket.create_server, ("127.0.0.1", 0)) as old,
        node.call(socket.socket) as new,
    ):
        state = tcp.capture_listener(old)
        elsewhere = Endpoint("127.0.0.2", state.local.port)
        assert node.call(tcp.listen, new, state.moved_to(elsewhere)) == []
        assert new.getsockname() == elsewhere


def test_what_does_not_listen_and_what_is_taken_is_named(network: Any) -> None:
    node = network.node("n")
    with (
        node.call(socket.create_server, ("127.0.0.1", 0)) as taken,
        node.call(socket.socket) as fresh,
    ):
        with pytest.raises(tcp.UnsupportedStateError, match="CLOSE"):
            tcp.capture_listener(fresh)
        with pytest.raises(tcp.TcpError, match=r"127\.0\.0\.1.*bind.*in use"):
            node.call(tcp.listen, fresh, tcp.capture_listener(taken))
        assert repair.connection_state(taken) is TcpConnectionState.LISTEN
