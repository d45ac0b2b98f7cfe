"""Real tasks in a PID namespace of their own, and the sockets that they hold."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from tcp_lab import wait_until

from mycoproxy.addresses import Endpoint
from mycoproxy.errors import RefusedError
from mycoproxy.sockets import take, tasks_of
from mycoproxy.socktable import addresses_in_use

pytestmark = [pytest.mark.root, pytest.mark.timeout(30)]

# pid 1 of a PID namespace: a listener, two accepted connections, a third left in the accept
# queue, a closed socket, a udp and a unix socket; a child that shares all of it and opens a
# second descriptor of the first connection.
CONTAINER = """
import json, os, signal, socket, sys
listener = socket.create_server(("127.0.0.1", 0), backlog=5)
clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
accepted = [listener.accept()[0] for _ in range(2)]
closed = socket.socket()
others = socket.socketpair() + (socket.socket(socket.AF_INET, socket.SOCK_DGRAM),)
ready, told = os.pipe()
child = os.fork()
if child == 0:
    again = accepted[0].dup()
    os.write(told, json.dumps({"pid": os.getpid(), "dup": again.fileno()}).encode())
    signal.pause()
print(json.dumps({
    "pid": os.getpid(),
    "child": json.loads(os.read(ready, 1000)),
    "listener": listener.fileno(),
    "port": listener.getsockname()[1],
    "clients": [c.fileno() for c in clients],
    "accepted": [a.fileno() for a in accepted],
    "closed": closed.fileno(),
}), flush=True)
signal.pause()
"""


class Container:
    """The init's pid as the host sees it, and what it says of itself."""

    def __init__(self, node: Any) -> None:
        # unshare --fork --kill-child: when it dies, the whole namespace does.
        self.outer = node.call(
            subprocess.Popen,
            ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", CONTAINER],
            stdout=subprocess.PIPE,
        )
        assert self.outer.stdout is not None
        self.said: dict[str, Any] = json.loads(self.outer.stdout.readline())
        children = f"/proc/{self.outer.pid}/task/{self.outer.pid}/children"
        with open(children) as file:  # noqa: PTH123
            self.init = int(file.read())

    def close(self) -> None:
        self.outer.kill()
        self.outer.wait()
        self.outer.stdout.close()


@pytest.fixture
def container(network: Any) -> Iterator[Container]:
    made = Container(network.node("pod"))
    try:
        yield made
    finally:
        made.close()


def test_tasks_are_those_of_the_pid_namespace(container: Container) -> None:
    tasks = tasks_of(container.init)
    assert [task.inner_pid for task in tasks] == [1, container.said["child"]["pid"]]
    assert tasks[0].pid == container.init
    assert container.outer.pid not in [task.pid for task in tasks]


def test_a_task_that_entered_later_belongs_to_it(container: Container) -> None:
    entered = subprocess.Popen(
        ["nsenter", "--target", str(container.init), "--pid", "sleep", "60"],
    )
    try:
        wait_until(lambda: len(tasks_of(container.init)) == 3, "the entered task")
    finally:
        entered.kill()
        entered.wait()
    # nsenter forks; its child is in the namespace and ends with it
    assert all(task.inner_pid > 0 for task in tasks_of(container.init))


def test_tasks_of_a_nested_namespace_belong_to_it(container: Container) -> None:
    nested = subprocess.Popen(
        [
            *("nsenter", "--target", str(container.init), "--pid"),
            *("unshare", "--pid", "--fork", "--kill-child", "sleep", "60"),
        ],
    )
    try:
        wait_until(lambda: len(tasks_of(container.init)) == 4, "unshare and sleep")
        assert len({task.inner_pid for task in tasks_of(container.init)}) == 4
    finally:
        nested.kill()
        nested.wait()


def test_no_such_container_is_refused() -> None:
    with pytest.raises(RefusedError, match="no process"):
        tasks_of(2**22 + 1)


def test_each_socket_is_taken_once_with_all_its_names(container: Container) -> None:
    said = container.said
    with take(tasks_of(container.init)) as held:
        by_fd = {name.fd: s for s in held.connections for name in s.names if name.pid == 1}
        assert sorted(by_fd) == sorted(said["clients"] + said["accepted"])
        first = by_fd[said["accepted"][0]]
        child = said["child"]["pid"]
        assert set(first.names) == {
            (1, said["accepted"][0]),
            (child, said["accepted"][0]),
            (child, said["child"]["dup"]),
        }
        assert first.connection is not None
        assert first.connection.local == Endpoint("127.0.0.1", said["port"])
        assert first.inode == os.fstat(first.sock.fileno()).st_ino
        assert [s.names[0].fd for s in held.closed] == [said["closed"]]


def test_a_listener_shows_its_accept_queue(container: Container) -> None:
    with take(tasks_of(container.init)) as held:
        (listener,) = held.listeners
        assert listener.local == Endpoint("127.0.0.1", container.said["port"])
        assert listener.accept_queue == 1
        listener.sock.accept()[0].close()
        assert listener.accept_queue == 0


def test_sockets_of_stopped_tasks_can_be_taken(container: Container) -> None:
    for task in tasks_of(container.init):
        os.kill(task.pid, signal.SIGSTOP)
    with take(tasks_of(container.init)) as held:
        assert len(held.connections) == 5


def test_our_duplicates_are_closed(container: Container) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with take(tasks_of(container.init)) as held:
        assert len(os.listdir("/proc/self/fd")) == before + 7  # noqa: PTH208
        socks = [s.sock for s in held.connections]
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert all(sock.fileno() == -1 for sock in socks)


def test_an_mptcp_socket_is_refused_by_name(network: Any) -> None:
    node = network.node("pod")
    try:
        sock = node.call(socket.socket, socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
    except OSError:
        pytest.skip("this kernel has no MPTCP")
    with sock:
        tasks = [task for task in tasks_of(os.getpid()) if task.pid == os.getpid()]
        with pytest.raises(RefusedError, match="is a MPTCP socket"):
            take(tasks)


def test_addresses_in_use_are_those_of_the_namespace(container: Container, network: Any) -> None:
    empty = network.node("empty")
    assert empty.call(addresses_in_use) == ()
    with empty.call(socket.create_server, ("::", 0), family=socket.AF_INET6) as listener:
        (found,) = empty.call(addresses_in_use)
        assert found.local == Endpoint("::", listener.getsockname()[1])
        assert found.remote is None
