"""A handover between two namespaces: sockets in every state, of real tasks in PID namespaces.

The copy is no work of CRIU's here: it is another process with the same pid and the same
descriptors, closed and shut down as CRIU restores them. Nothing else is pretended.
"""

import asyncio
import functools
import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from handover_lab import Lab, family
from tcp_lab import DEADLINE, receive_exactly, wait_until

from mycoproxy.handover import (
    Handover,
    HandoverError,
    LocalPeer,
    LocalSource,
    LocalTarget,
    Nodes,
    until_finished,
)
from mycoproxy.handover.orphans import orphans
from mycoproxy.tcp import repair
from mycoproxy.tcp.abi import TcpConnectionState as State

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

PORT, OWN_PORT, OUTSIDE = 7000, 7001, 7002


class HandoverLab(Lab):
    """With a handover in one process."""

    async def hand_over(self, *, fail: bool = False) -> Handover:
        source = LocalSource(self.a.worker, self.source.init, "test")
        target = LocalTarget(self.b.worker, "test")
        peer = LocalPeer("c", self.c.worker, "test")
        parts = (source, target, peer)
        handover = Handover(
            source,
            target,
            [peer],
            addresses=self.addresses,
            nodes=Nodes("a", "b"),
            record_commit=_failing if fail else _ok,
        )
        try:
            for part in parts:
                await part.prepare()
            self.source.stop()
            names = await source.collect()
            await handover.survey(names)
            self.after_collect()
            target.collect(self.copy.init, [self.copy.init])
            await handover.ready()
            try:
                await handover.commit()
            except HandoverError:
                self.copy.close()
                self.source.go_on()
                return handover
            await handover.go_live()
            await source.silence()
            return handover
        finally:
            for part in parts:
                await part.close()

    after_collect: Callable[[], None] = staticmethod(lambda: None)


def _ok() -> None:
    pass


def _failing() -> None:
    raise OSError("the journal's disk is full")


@pytest.fixture(params=[4, 6])
def lab(network: Any, request: Any) -> Iterator[HandoverLab]:
    made = HandoverLab(network, request.param)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("fail", [False, True], ids=["moved", "rolled back"])
def test_sockets_in_every_state_are_handed_over_or_given_back(lab: HandoverLab, fail: bool) -> None:
    wild = "0.0.0.0" if lab.version == 4 else "::"
    lab.source.listen(10, wild, PORT)
    lab.copy.listen(10, wild, PORT)
    clients = {}
    for name, fd in {"open": 20, "their end": 21, "our end": 22, "reset": 23}.items():
        clients[name] = lab.dial(lab.address["a"], PORT)
        lab.source.accept(10, fd)
        lab.copy.do(f"closed_as_criu_does({fd}, {family(lab)})")
        clients[name].sendall(name.encode())
    clients["their end"].shutdown(socket.SHUT_WR)
    lab.source.do("socket.socket(fileno=os.dup(22)).shutdown(socket.SHUT_WR)")
    assert clients["our end"].recv(1) == b""
    for fd, state in {21: State.CLOSE_WAIT, 22: State.FIN_WAIT2}.items():
        with lab.source.socket(fd) as sock:
            wait_until(
                lambda sock=sock, state=state: repair.connection_state(sock) is state, state.name
            )
    clients["reset"].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    clients["reset"].close()
    with lab.source.socket(23) as sock:
        wait_until(lambda: repair.connection_state(sock) is State.CLOSE, "reset")

    waiting = [lab.dial(lab.address["a"], PORT) for _ in range(3)]
    waiting[1].sendall(b"first")
    waiting[2].sendall(b"all")
    waiting[2].shutdown(socket.SHUT_WR)
    late: list[socket.socket] = []

    def one_more_comes() -> None:
        late.append(lab.dial(lab.address["a"], PORT))
        late[0].sendall(b"late")

    lab.after_collect = one_more_comes  # type: ignore[method-assign]

    handover = asyncio.run(lab.hand_over(fail=fail))

    place = lab.source if fail else lab.copy
    assert len(handover.connections) == 8
    with place.socket(20) as sock:
        assert receive_exactly(sock, 4) == b"open"
        talk(clients["open"], sock)
        assert sock.getsockname()[0] == lab.address["a" if fail else "b"]
    with place.socket(21) as sock:
        assert receive_exactly(sock, 100) == b"their end"
        sock.sendall(b"answer")
        assert receive_exactly(clients["their end"], 6) == b"answer"
    with place.socket(22) as sock:
        assert receive_exactly(sock, 7) == b"our end"
        clients["our end"].sendall(b"more")
        assert receive_exactly(sock, 4) == b"more"
        clients["our end"].close()
        assert receive_exactly(sock, 1) == b""
    with place.socket(23) as sock:
        assert sock.recv(5, socket.MSG_DONTWAIT) == b"reset"
        with pytest.raises(ConnectionResetError):
            sock.recv(1, socket.MSG_DONTWAIT)
        assert sock.recv(1, socket.MSG_DONTWAIT) == b""
    with place.socket(10) as listener:
        listener.settimeout(DEADLINE)
        for client, said in zip((*waiting, *late), (b"", b"first", b"all", b"late"), strict=True):
            with listener.accept()[0] as sock:
                assert sock.getpeername()[:2] == client.getsockname()[:2]
                assert receive_exactly(sock, len(said)) == said
                sock.sendall(b"welcome")
                assert receive_exactly(client, 7) == b"welcome"
                if said != b"all":
                    talk(client, sock)


def talk(one: socket.socket, other: socket.socket) -> None:
    for sender, receiver in ((one, other), (other, one)):
        sender.sendall(b"ping")
        assert receive_exactly(receiver, 4) == b"ping"


@pytest.mark.parametrize("fail", [False, True], ids=["moved", "rolled back"])
@pytest.mark.parametrize("where", ["loopback", "own address"])
def test_connections_of_the_workload_with_itself_move_as_pairs(
    lab: Lab, where: str, fail: bool
) -> None:
    loopback = "127.0.0.1" if lab.version == 4 else "::1"
    old, new = (loopback, loopback) if where == "loopback" else (lab.address["a"], lab.address["b"])
    wild = "0.0.0.0" if lab.version == 4 else "::"
    lab.source.listen(10, wild, OWN_PORT)
    lab.copy.listen(10, wild, OWN_PORT)
    for fd in (20, 22):
        lab.source.do(f"place(socket.create_connection(({old!r}, {OWN_PORT})), {fd})")
    lab.source.accept(10, 21)  # 22 stays in the accept queue
    for fd in (20, 21, 22):
        lab.copy.do(f"closed_as_criu_does({fd}, {family(lab)})")
    lab.source.do(
        "socket.socket(fileno=os.dup(20)).sendall(b'to 21')",
        "socket.socket(fileno=os.dup(21)).sendall(b'to 20')",
        "socket.socket(fileno=os.dup(22)).sendall(b'knock')",
    )
    asyncio.run(lab.hand_over(fail=fail))

    place, address = (lab.source, old) if fail else (lab.copy, new)
    with place.socket(20) as one, place.socket(21) as other, place.socket(22) as third:
        assert one.getpeername()[:2] == other.getsockname()[:2] == (address, OWN_PORT)
        assert one.getsockname()[:2] == other.getpeername()[:2]
        assert receive_exactly(other, 5) == b"to 21"
        assert receive_exactly(one, 5) == b"to 20"
        talk(one, other)
        with place.socket(10) as listener:
            listener.settimeout(DEADLINE)
            with listener.accept()[0] as accepted:
                assert receive_exactly(accepted, 5) == b"knock"
                talk(third, accepted)
        one.shutdown(socket.SHUT_WR)
        assert receive_exactly(other, 1) == b""


@pytest.mark.parametrize("fail", [False, True], ids=["moved", "rolled back"])
def test_a_connect_under_way_goes_on(lab: HandoverLab, fail: bool) -> None:
    outside = lab.keep(
        lab.c.call(
            functools.partial(
                socket.create_server,
                (lab.address["c"], OUTSIDE),
                family=socket.AF_INET if lab.version == 4 else socket.AF_INET6,
            )
        )
    )
    rules = (
        f"table inet lab {{\nchain in {{\ntype filter hook prerouting priority raw;\n"
        f"tcp dport {OUTSIDE} drop\n}}\n}}\n"
    )
    run = functools.partial(subprocess.run, ["nft", "-f", "-"], text=True, check=True)
    lab.c.call(run, input=rules)
    lab.source.do(
        f"new = socket.socket({family(lab)})",
        "new.setblocking(False)",
        f"kept.append(new.connect_ex(({lab.address['c']!r}, {OUTSIDE})))",
        "place(new, 20)",
    )
    lab.copy.do(f"closed_as_criu_does(20, {family(lab)})")
    lab.after_collect = lambda: lab.c.call(  # type: ignore[method-assign]
        run, input="delete table inet lab\n"
    )
    asyncio.run(lab.hand_over(fail=fail))
    outside.settimeout(DEADLINE)
    with outside.accept()[0] as accepted, (lab.source if fail else lab.copy).socket(20) as sock:
        assert accepted.getpeername()[0] == lab.address["a" if fail else "b"]
        wait_until(lambda: repair.connection_state(sock) is State.ESTABLISHED, "connected")
        talk(accepted, sock)


def test_what_the_workload_had_closed_is_delivered_from_the_source(lab: HandoverLab) -> None:
    """The whole answer and then close(2): no descriptor is left, most of it is still queued."""
    lab.source.listen(10, lab.address["a"], PORT)
    lab.copy.listen(10, lab.address["b"], PORT)
    client = lab.dial(lab.address["a"], PORT)
    size = 3 << 20
    lab.source.accept(10, 20)
    lab.source.do(
        "answer = socket.socket(fileno=20)",
        f"answer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, {size})",
        "answer.settimeout(0)",
        f"kept.append(answer.send(bytes(range(256)) * {size // 256}))",
        "answer.close()",
        "open('/proc/self/comm', 'w').write(str(kept[-1]))",
    )
    with open(f"/proc/{lab.source.init}/comm") as file:  # noqa: PTH123
        sent = int(file.read())
    assert lab.a.call(orphans) != []
    handover = asyncio.run(lab.hand_over())
    assert len(handover.connections) == 0
    lab.source.close()  # as its tasks are killed
    assert lab.a.call(orphans) != []

    answer = receive_exactly(client, size)
    assert answer == (bytes(range(256)) * (sent // 256 + 1))[:sent]
    assert asyncio.run(until_finished(lab.a.worker, timeout=DEADLINE)) == []
