"""The user-space wire between two real network namespaces: what TCP makes of it, and that nothing
of it stays behind."""

import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread

import pytest
from conftest import Link, Network, Node
from pyroute2 import IPRoute

from mycoproxy.errors import MycoError, UsageError
from netlab.wire.impairment import Impairment
from netlab.wire.wire import Wire

pytestmark = pytest.mark.root

DEADLINE = 20.0
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
NUD_PERMANENT = 0x80  # linux/neighbour.h
BAD = Impairment(loss=0.03, duplicate=0.03, reorder=0.1)
LOST = Impairment(loss=1.0)


@contextmanager
def joined(
    network: Network, impairment: Impairment | None = None, **options: int
) -> Iterator[tuple[Wire, Link]]:
    """Two fresh namespaces with a wire between them, addressed like a `Network` link.

    The two know each other's hardware address, so a lost packet is never one of neighbour
    discovery, which would ask again only after a second.
    """
    left, right = network.node("left"), network.node("right")
    with Wire.join(left, "wire", right, "wire", impairment, **options) as wire:
        link = Link(
            *(left, right, "wire", "wire"),
            *("10.78.0.1", "10.78.0.2", "fd78::1", "fd78::2"),
        )
        for node, v4, v6 in (
            (left, link.left_v4, link.left_v6),
            (right, link.right_v4, link.right_v6),
        ):
            node.add_address("wire", v4, 24)
            node.add_address("wire", v6, 64)
        introduce(left, right, link.right_v4, link.right_v6)
        introduce(right, left, link.left_v4, link.left_v6)
        yield wire, link


def introduce(node: Node, other: Node, *addresses: str) -> None:
    """Tell a node which hardware address the other's addresses have."""
    theirs = other.index("wire")
    hardware = other.netlink(lambda netlink: netlink.get_links(theirs))[0].get_attr("IFLA_ADDRESS")
    index = node.index("wire")

    def add(netlink: IPRoute, address: str) -> None:
        netlink.neigh("replace", dst=address, lladdr=hardware, ifindex=index, state=NUD_PERMANENT)

    for address in addresses:
        node.netlink(lambda netlink, address=address: add(netlink, address))


def connect(link: Link, version: int) -> tuple[socket.socket, socket.socket]:
    """A TCP connection over the wire: the left socket, the right one."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    address = link.address("right", version)
    with link.right.call(socket.create_server, (address, 0), family=family) as listener:
        listener.settimeout(DEADLINE)
        client = link.left.call(
            socket.create_connection, listener.getsockname()[:2], timeout=DEADLINE
        )
        server = listener.accept()[0]
    server.settimeout(DEADLINE)
    return client, server


def transfer(sender: socket.socket, receiver: socket.socket, data: bytes) -> bytes:
    """Send ``data`` and the end of the stream; what arrives until there."""

    def send() -> None:
        sender.sendall(data)
        sender.shutdown(socket.SHUT_WR)

    sending = Thread(target=send)
    sending.start()
    received = b"".join(iter(lambda: receiver.recv(1 << 20), b""))
    sending.join(DEADLINE)
    assert not sending.is_alive()
    return received


def both_ways(link: Link, version: int, size: int) -> None:
    """Transfers over one connection, first one way, then the other; every byte is checked."""
    data = random.Random(version).randbytes(size)
    client, server = connect(link, version)
    with client, server:
        assert transfer(client, server, data) == data
        assert transfer(server, client, data[::-1]) == data[::-1]


def datagrams(link: Link, count: int, size: int = 100) -> tuple[socket.socket, list[bytes]]:
    """Send ``count`` different datagrams from left to right; the socket that gets them."""
    receiver = link.right.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind((link.right_v4, 0))
    receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 22)
    receiver.settimeout(DEADLINE)
    sent = [number.to_bytes(4, "big").ljust(size, b".") for number in range(count)]
    with link.left.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for each in sent:
            sender.sendto(each, receiver.getsockname())
    return receiver, sent


def exited(pidfd: int) -> bool:
    """Wait until a process has ended."""
    return bool(select.select([pidfd], [], [], DEADLINE)[0])


@pytest.mark.parametrize("version", [4, 6])
def test_tcp_arrives_intact_over_a_bad_wire(network: Network, version: int) -> None:
    with joined(network, BAD, seed=version) as (wire, link):
        both_ways(link, version, 300_000)
        counters = wire.counters()
    assert counters.lost
    assert counters.duplicated
    assert counters.reordered
    assert not counters.dropped


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("version", [4, 6])
def test_an_unimpaired_wire_loses_nothing(network: Network, version: int, offload: bool) -> None:
    with joined(network, offload=offload) as (wire, link):
        receiver, sent = datagrams(link, 500)
        with receiver:
            assert [receiver.recv(2000) for _ in sent] == sent
        both_ways(link, version, 3_000_000)
        wait_for(lambda: (now := wire.counters()).delivered == now.packets)
        assert [not_queued(node) for node in (link.left, link.right)] == [0, 0]
        counters = wire.counters()
    assert counters.lost == counters.dropped == counters.reordered == 0
    assert (counters.packets < 2 * 3_000_000 // 1500) == offload  # segments of up to 64 KiB


def not_queued(node: Node) -> int:
    """Packets that the TAP device had no room for."""
    index = node.index("wire")
    link = node.netlink(lambda netlink: netlink.get_links(index))[0]
    dropped: int = link.get_attr("IFLA_STATS64")["tx_dropped"]
    return dropped


def test_every_datagram_is_lost_doubled_or_passed_on(network: Network) -> None:
    with joined(network, Impairment(loss=0.2, duplicate=0.2), seed=5) as (wire, link):
        before = wire.counters()
        receiver, sent = datagrams(link, 400)
        with receiver:
            wait_for(lambda: wire.counters().packets >= before.packets + 400)
            counters = wire.counters()
            receiver.setblocking(False)
            arrived = list(drain(receiver))
    assert set(arrived) < set(sent)
    assert arrived == sorted(arrived)
    # The kernel's own packets (multicast reports) go over the wire too.
    assert 0 < len(sent) - len(set(arrived)) <= counters.lost
    assert 0 < len(arrived) - len(set(arrived)) <= counters.duplicated


def drain(receiver: socket.socket) -> Iterator[bytes]:
    """What a non-blocking socket has in its queue."""
    while True:
        try:
            yield receiver.recv(2000)
        except BlockingIOError:
            return


def wait_for(condition: Callable[[], bool]) -> None:
    """Poll until ``condition`` holds."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_healed_wire_lets_a_stuck_connection_go_on(network: Network) -> None:
    with joined(network) as (wire, link):
        client, server = connect(link, 4)
        with client, server:
            wire.impair(LOST)
            before = wire.counters().lost
            client.sendall(b"stuck")
            wait_for(lambda: wire.counters().lost > before)
            wire.impair(Impairment())
            assert server.recv(100) == b"stuck"


def test_a_packet_is_delayed_both_ways(network: Network) -> None:
    with joined(network, Impairment(delay=0.02)) as (_, link):
        client, server = connect(link, 6)
        with client, server:
            begin = time.monotonic()
            client.sendall(b"ping")
            server.sendall(server.recv(100))
            assert client.recv(100) == b"ping"
            assert time.monotonic() - begin >= 0.04


@pytest.mark.parametrize("offload", [False, True])
def test_the_largest_mtu_goes_through_in_one_piece(network: Network, offload: bool) -> None:
    mtu = 65521
    with joined(network, mtu=mtu, offload=offload) as (wire, link):
        before = wire.counters().packets
        receiver, sent = datagrams(link, 3, mtu - 28)
        with receiver:
            assert [receiver.recv(mtu) for _ in sent] == sent
        assert wire.counters().packets < before + 2 * len(sent)
        both_ways(link, 6, 500_000)


def test_a_closed_wire_leaves_no_process_and_no_interface(network: Network) -> None:
    with joined(network) as (wire, link):
        pidfd = os.pidfd_open(wire.pid)
    with os.fdopen(pidfd):
        assert exited(pidfd)
    for node in (link.left, link.right):
        assert node.netlink(lambda netlink: netlink.link_lookup(ifname="wire")) in ([], ())
    with pytest.raises(MycoError, match="wire"):
        wire.counters()


PARENT = """
import signal
from pathlib import Path
from mycoproxy.namespaces import NamespaceWorker
from netlab.syscalls import unshare_network
from netlab.wire.wire import Wire

workers = [NamespaceWorker(Path("/proc/self/ns/net")) for _ in range(2)]
for worker in workers:
    worker.call(unshare_network)
wire = Wire.join(workers[0], "wire", workers[1], "wire")
print(wire.pid, flush=True)
signal.pause()
"""


def test_the_process_in_between_ends_when_its_parent_is_killed() -> None:
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as parent:
        assert parent.stdout
        assert parent.stderr
        pid = parent.stdout.readline()
        assert pid, parent.stderr.read().decode()
        pidfd = os.pidfd_open(int(pid))
        parent.send_signal(signal.SIGKILL)
        with os.fdopen(pidfd):
            assert exited(pidfd)
        assert parent.stderr.read() == b""


def test_an_interface_removed_by_someone_else_ends_the_wire(network: Network) -> None:
    with joined(network) as (wire, link):
        link.left.netlink(lambda netlink: netlink.link("del", ifname="wire"))
        with pytest.raises(MycoError, match=r"has ended|does not answer"):
            wait_for(lambda: wire.counters() is None)


def test_what_arrives_for_an_interface_that_is_down_is_dropped(network: Network) -> None:
    with joined(network) as (wire, link):
        link.right.link_state("wire", "down")
        receiver, _ = datagrams(link, 5)
        receiver.close()
        wait_for(lambda: wire.counters().dropped >= 5)


def test_a_name_that_is_taken_is_an_error_and_leaves_nothing(netns_pair: Link) -> None:
    left, right = netns_pair.left, netns_pair.right
    with pytest.raises(MycoError, match=netns_pair.right_ifname):
        Wire.join(left, "wire", right, netns_pair.right_ifname)
    assert left.netlink(lambda netlink: netlink.link_lookup(ifname="wire")) in ([], ())


def test_an_impossible_impairment_does_not_reach_the_wire(network: Network) -> None:
    with joined(network) as (wire, _):
        with pytest.raises(UsageError, match="loss"):
            wire.impair(Impairment(loss=3))
        assert wire.counters().lost == 0
