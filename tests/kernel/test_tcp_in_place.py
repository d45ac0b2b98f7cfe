"""A connection is put into a descriptor that another process holds and waits on."""

import multiprocessing
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tcp_lab import Move, exchange, receive_exactly, wait_until

from mycoproxy import tcp
from mycoproxy.kernel import pidfd_getfd
from mycoproxy.tcp import repair

pytestmark = [pytest.mark.root, pytest.mark.timeout(30)]


@pytest.fixture(params=["v4", "v6"])
def move(network: Any, request: Any) -> Iterator[Move]:
    made = Move(network, request.param)
    try:
        yield made
    finally:
        made.close()


def echo_by_epoll(sock: socket.socket, ready: Any) -> None:
    """Registers once, before the move, and never again."""
    epoll = select.epoll()
    epoll.register(sock, select.EPOLLIN | select.EPOLLET)
    epoll.poll(0)  # EPOLLHUP of the closed socket
    ready.set()
    while True:
        epoll.poll()
        try:
            data = sock.recv(1000, socket.MSG_DONTWAIT)
        except OSError:
            continue
        if data:
            sock.sendall(data)


def echo_by_recv(sock: socket.socket, ready: Any) -> None:
    """Finds its connection there when it wakes up."""
    ready.set()
    os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        if data := sock.recv(1000):
            sock.sendall(data)


def stopped(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
        return file.read().rsplit(")", 1)[1].split()[0] == "T"


@pytest.mark.parametrize("server", [echo_by_epoll, echo_by_recv])
def test_the_task_wakes_up_with_its_connection(
    move: Move, server: Callable[[socket.socket, Any], None]
) -> None:
    move.build()
    move.connect()
    exchange(move.client, move.server)
    fork = multiprocessing.get_context("fork")
    restored = move.socket_in("b")
    restored_as_criu_does(restored)
    ready = fork.Event()
    task = fork.Process(target=server, args=(restored, ready), daemon=True)
    task.start()
    try:
        assert task.pid is not None
        assert ready.wait(10)
        if server is echo_by_recv:
            wait_until(lambda: stopped(task.pid or 0), "task stopped")
        fd = restored.fileno()
        restored.close()
        pidfd = os.pidfd_open(task.pid)
        try:
            mine = socket.socket(fileno=pidfd_getfd(pidfd, fd))
        finally:
            os.close(pidfd)
        with mine:
            move.client.sendall(b"sent before")
            state = move.capture()
            move.address("b", present=True)
            tcp.establish(mine, state)
            move.shield("b", up=False)
            tcp.release(mine, state)
        move.server.close()
        os.kill(task.pid, signal.SIGCONT)
        assert receive_exactly(move.client, 11) == b"sent before"
        move.client.sendall(b"sent after")
        assert receive_exactly(move.client, 10) == b"sent after"
    finally:
        task.kill()
        task.join()


def restored_as_criu_does(sock: socket.socket) -> None:
    """CRIU's ``tcp-close`` leaves a connected socket closed *and* shut down."""
    with pytest.raises(OSError, match="not connected"):
        sock.shutdown(socket.SHUT_RDWR)
    assert repair.connection_state(sock) is tcp.TcpConnectionState.CLOSE
