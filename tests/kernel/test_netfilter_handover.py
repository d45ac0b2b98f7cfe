"""Hold, shield and re-homing in a handover's order, with data under way: whole, and no reset.

The state machine and the executor are another package's. This is what they rely on.
"""

import select
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from netfilter_lab import VIRTUAL, Lab, receive, service_lab, tuple_of

from mycoproxy.netfilter.conntrack import Conntrack
from mycoproxy.netfilter.hold import Hold
from mycoproxy.netfilter.paths import Path, choose_path
from mycoproxy.netfilter.rebind import Rebound, rebind
from mycoproxy.netfilter.renamed import renamed_entry
from mycoproxy.netfilter.shield import Shield
from mycoproxy.netfilter.translate import Move, Translate
from mycoproxy.tcp import capture, establish, release

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

# Ahead of any hold or shield, so that nothing escapes the count.
COUNT_RESETS = """\
table inet resets {
    chain prerouting {
        type filter hook prerouting priority -400;
        tcp flags & rst == rst counter
    }
    chain output {
        type filter hook output priority -400;
        tcp flags & rst == rst counter
    }
}
"""
CONNECTIONS = 10


@pytest.fixture
def lab(network: Any) -> Iterator[Lab]:
    with service_lab(network) as made:
        for name in ("client", "router", "a", "b"):
            made.run(name, COUNT_RESETS)
        yield made


class Echo(threading.Thread):
    """A client that sends numbers without a pause, and wants each of them back in order."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self.sock = sock
        self.stopping = threading.Event()
        self.sent = bytearray()
        self.got = bytearray()
        self.error: OSError | None = None

    def run(self) -> None:
        self.sock.settimeout(10)
        try:
            while not self.stopping.is_set():
                block = len(self.sent).to_bytes(8, "big") * 64
                self.sock.sendall(block)
                self.sent += block
                self.got += self.sock.recv(65536)
            self.got += receive(self.sock, len(self.sent) - len(self.got))
        except OSError as error:
            self.error = error


class EchoServer(threading.Thread):
    """Sends back what comes, until it is frozen."""

    def __init__(self, socks: list[socket.socket]) -> None:
        super().__init__()
        self.socks = socks
        self.frozen = threading.Event()

    def run(self) -> None:
        while not self.frozen.is_set():
            for sock in select.select(self.socks, [], [], 0.01)[0]:
                sock.sendall(sock.recv(65536))


def _rehome(lab: Lab, names: list[Any], version: int, dialled: str) -> Path:
    """What every node does that finds that it can; returns the one thing that was done."""
    direct = dialled == lab.address["a", version]
    new = lab.endpoint("b", version)
    done = set()
    for node_name in ("router", "client"):
        node = lab.node(node_name)
        conntrack = lab.on(node_name, Conntrack)
        entries = node.call(conntrack.find, names)
        here = node_name == "client" and direct
        addresses = [lab.address["client", version]] if here else []
        paths = {
            name: choose_path(
                name,
                addresses={name.local.address: new.address},
                entry=entries.get(name),
                local_addresses=addresses,
            )
            for name in names
        }
        if rebinds := [entries[name] for name in names if paths[name] is Path.REBIND]:
            hold = Hold(lab.nft[node_name], "rebind")
            node.call(hold.install)
            changes = [
                Rebound(one, renamed_entry(one, one.workload, one.workload._replace(local=new)))
                for one in rebinds
            ]
            node.call(rebind, conntrack, hold, changes)
            node.call(hold.release)
        if moves := [Move(name, new) for name in names if paths[name] is Path.TRANSLATE]:
            node.call(Translate(lab.nft[node_name]).add, moves)
        done |= set(paths.values())
    (chosen,) = done - {Path.NOTHING, Path.ADMIT}
    return chosen


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("wanted", [Path.REBIND, Path.TRANSLATE])
def test_a_handover_under_load_loses_nothing_and_resets_nothing(
    lab: Lab, version: int, wanted: Path
) -> None:
    dialled = VIRTUAL[version] if wanted is Path.REBIND else lab.address["a", version]
    listener = lab.listen("a", version)
    pairs = [lab.connect(listener, dialled) for _ in range(CONNECTIONS)]
    servers = [server for _, server in pairs]
    names = [tuple_of(server) for server in servers]
    clients = [Echo(client) for client, _ in pairs]
    server = EchoServer(servers)
    for thread in (*clients, server):
        thread.start()
    try:
        while min(len(client.got) for client in clients) < 50_000:
            select.select([], [], [], 0.01)
        hold, shield = Hold(lab.nft["a"], "source"), Shield(lab.nft["b"], "target")
        lab.a.call(hold.install)
        lab.b.call(shield.raise_)
        server.frozen.set()
        server.join(10)

        lab.a.call(hold.hold, names)
        states = [lab.a.call(capture, sock) for sock in servers]
        assert _rehome(lab, names, version, dialled) is wanted
        moved = [
            lab.keep(lab.b.call(socket.socket, sock.family, socket.SOCK_STREAM)) for sock in servers
        ]
        new = lab.endpoint("b", version)
        for sock, state in zip(moved, states, strict=True):
            lab.b.call(establish, sock, state, local=new)
        lab.b.call(shield.lift)
        for sock, state in zip(moved, states, strict=True):
            lab.b.call(release, sock, state)
        for sock in servers:
            sock.close()
        lab.a.call(hold.release)

        server = EchoServer(moved)
        server.start()
        before = [len(client.got) for client in clients]
        while any(len(c.got) < n + 50_000 for c, n in zip(clients, before, strict=True)):
            assert all(client.error is None for client in clients)
            select.select([], [], [], 0.01)
    finally:
        for client in clients:
            client.stopping.set()
            client.join(15)
        server.frozen.set()
        server.join(10)
    assert [client.error for client in clients] == [None] * CONNECTIONS
    assert all(client.got == client.sent for client in clients)
    for name in ("client", "router", "a", "b"):
        counted = lab.run(name, "list table inet resets")
        assert counted.count("counter packets 0 bytes 0") == 2, counted
