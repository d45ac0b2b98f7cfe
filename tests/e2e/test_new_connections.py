"""Clients that connect while a move is under way: nobody has to send a SYN twice.

A SYN that is dropped is sent again after one second, so each of these would wait that long.
"""

import errno
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from e2e_lab import Moving

from migrate.machine.mover import MoveError
from mycoproxy.handover import HandoverError, LocalTarget
from mycoproxy.namespaces import NamespaceWorker

PING, PONG = b"PING\r\n", b"+PONG\r\n"
PORT = 6379
DEADLINE = 20.0
EVERY = 0.007  # seconds
_INFO_TOTAL_RETRANS = slice(100, 104)  # tcpi_total_retrans, include/uapi/linux/tcp.h


class Newcomers:
    """Opens a connection every few milliseconds, and waits for none of them."""

    def __init__(self, worker: NamespaceWorker, host: str) -> None:
        self.socks: list[socket.socket] = []
        self._worker, self._host = worker, host
        self._stopping = threading.Event()
        self._opening = worker.submit(self._open)

    def _open(self) -> None:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        while not self._stopping.wait(EVERY):
            sock = socket.socket(family)
            self.socks.append(sock)
            sock.setblocking(False)
            assert sock.connect_ex((self._host, PORT)) == errno.EINPROGRESS

    def stop(self) -> None:
        self._stopping.set()
        self._opening.result(DEADLINE)

    def retransmissions(self) -> list[int]:
        """Of each connection, once it was served: how often its client had to repeat itself."""
        found = []
        for sock in self.socks:
            assert select.select([], [sock], [], DEADLINE)[1]
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            sock.settimeout(DEADLINE)
            sock.sendall(PING)
            assert sock.recv(len(PONG), socket.MSG_WAITALL) == PONG
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
            found.append(int.from_bytes(info[_INFO_TOTAL_RETRANS], "little"))
        return found

    def close(self) -> None:
        self._stopping.set()
        for sock in self.socks:
            sock.close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def newcomers(moving: Moving, stack: ExitStack) -> list[Newcomers]:
    service = moving.lab.topology.service("redis")
    found = []
    for address in service.addresses:
        worker = stack.enter_context(NamespaceWorker(moving.lab.node("client").netns))
        found.append(Newcomers(worker, str(address)))
        stack.callback(found[-1].close)
    return found


def test_nobody_who_connects_during_a_move_is_kept_waiting(
    moving: Moving, stack: ExitStack
) -> None:
    clients = newcomers(moving, stack)
    report = moving.move("beta")
    assert report.warnings == []
    for client in clients:
        client.stop()
    for client in clients:
        assert len(client.socks) > 10
        assert not any(client.retransmissions())


def test_nor_who_connects_during_one_that_is_undone(
    moving: Moving, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    establish = LocalTarget._establish

    def fail_at_the_end(self: LocalTarget, *arguments: object) -> None:
        establish(self, *arguments)  # type: ignore[arg-type]
        raise HandoverError("injected after the last connection was established")

    monkeypatch.setattr(LocalTarget, "_establish", fail_at_the_end)
    clients = newcomers(moving, stack)
    with pytest.raises(MoveError, match="injected after the last"):
        moving.move("beta")
    for client in clients:
        client.stop()
    for client in clients:
        assert not any(client.retransmissions())
