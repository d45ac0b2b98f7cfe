"""Connections that nobody has accepted when the workload is frozen."""

import functools
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from e2e_lab import Moving

from migrate.machine.machine import Action
from migrate.machine.mover import MoveError
from mycoproxy.handover import HandoverError, LocalTarget
from mycoproxy.namespaces import NamespaceWorker

PING = b"PING\r\n"
PONG = b"+PONG\r\n"
PORT = 6379


class Latecomers:
    """Clients that connect while the workload stands: the kernel lets them in, nobody accepts."""

    def __init__(self, moving: Moving, stack: ExitStack) -> None:
        self.moving = moving
        self.workers = {
            name: stack.enter_context(NamespaceWorker(moving.lab.node(name).netns))
            for name in ("client", "neighbour")
        }
        self.stack = stack
        self.connected: list[socket.socket] = []
        #: those that say all they have to say before anyone has accepted them
        self.short: list[socket.socket] = []

    def connect(self, node: str, host: str) -> socket.socket:
        sock = self.workers[node].call(
            functools.partial(socket.create_connection, (host, PORT), timeout=10)
        )
        self.stack.enter_context(sock)
        return sock

    def at(self, action: Action) -> Callable[[str], None]:
        """For ``progress``: all of them connect as ``action`` begins."""

        def progress(text: str) -> None:
            if action.value in text:
                self.all_connect()

        return progress

    def all_connect(self) -> None:
        paths = [
            ("client", self.moving.service),
            ("neighbour", self.moving.pod.addresses[0]),
            ("neighbour", self.moving.pod.addresses[1]),
        ]
        for node, host in paths:
            silent, asking, short = (self.connect(node, host) for _ in range(3))
            asking.sendall(PING)
            short.sendall(PING)
            short.shutdown(socket.SHUT_WR)
            self.connected += [silent, asking]
            self.short.append(short)

    def assert_all_are_served(self) -> None:
        assert len(self.connected) == 6
        for index, sock in enumerate(self.connected):
            if index % 2 == 0:
                sock.sendall(PING)
            assert receive(sock, len(PONG)) == PONG
            sock.sendall(PING)
            assert receive(sock, len(PONG)) == PONG
        for sock in self.short:
            # Redis answers, or sees the end first and closes; nobody is reset.
            assert receive(sock, len(PONG)) in (PONG, b"")


def receive(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            break
        data += part
    return data


@pytest.fixture
def latecomers(moving: Moving) -> Iterator[Latecomers]:
    with ExitStack() as stack:
        yield Latecomers(moving, stack)


def test_clients_that_connect_during_the_freeze_are_served_after_it(
    latecomers: Latecomers,
) -> None:
    moving = latecomers.moving
    report = moving.move("beta", progress=latecomers.at(Action.SEND))
    latecomers.assert_all_are_served()
    assert report.connections == 9
    assert report.warnings == []
    # And they move on like any other.
    assert moving.move("alpha").connections == 6
    for sock in latecomers.connected:
        sock.sendall(PING)
        assert receive(sock, len(PONG)) == PONG


def test_after_a_rollback_they_are_served_where_they_were(
    latecomers: Latecomers, monkeypatch: pytest.MonkeyPatch
) -> None:
    establish = LocalTarget._establish

    def fail_at_the_end(self: LocalTarget, *arguments: object) -> None:
        establish(self, *arguments)  # type: ignore[arg-type]
        raise HandoverError("injected after the last connection was established")

    monkeypatch.setattr(LocalTarget, "_establish", fail_at_the_end)
    with pytest.raises(MoveError, match="injected after the last"):
        latecomers.moving.move("beta", progress=latecomers.at(Action.SEND))
    latecomers.assert_all_are_served()
