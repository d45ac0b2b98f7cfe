"""Links with a delay in a real lab: the delay is there, nothing is lost or changes places, and the
process in between goes with the lab, whoever dies first."""

import hashlib
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from netlab import check, icmp, inventory, links, listing
from netlab.lab import Lab
from netlab.topology import Topology, delayed, load, parse
from netlab.wire import delayed as wire

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

DEADLINE = 20.0
DELAY = 0.02
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
TWO_NODES = """
name: two
nodes: [{name: left}, {name: right}]
links:
  - delay_ms: 20
    ends:
      - {node: left, device: eth0, addresses: [192.0.2.1/30, "2001:db8::1/64"]}
      - {node: right, device: eth7, addresses: [192.0.2.2/30, "2001:db8::2/64"]}
"""
RIGHT = {4: "192.0.2.2", 6: "2001:db8::2"}
VERSIONS = pytest.mark.parametrize("version", [4, 6])


def two_nodes(delay_ms: float | None = 20) -> Topology:
    return delayed(parse(TWO_NODES, origin="two"), delay_ms)


@pytest.fixture
def name() -> Iterator[str]:
    """A lab's name, of which there is nothing left in the end."""
    own = f"d{os.getpid()}"
    yield own
    found = inventory.remove(own)
    assert inventory.leftovers(own) == []
    assert not [line for line in found if line.startswith("process")], "the test's lab was not down"


@pytest.fixture
def lab(name: str) -> Iterator[Lab]:
    """Two nodes with 20 ms between them."""
    made = Lab.up(two_nodes(), name)
    yield made
    made.down()


def wire_of(lab: Lab) -> wire.Answer:
    answer = wire.ask(lab.layout.wire)
    assert answer is not None
    return answer


def connect(lab: Lab, version: int) -> tuple[socket.socket, socket.socket]:
    """A TCP connection over the link: the left socket, the right one."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    right = lab.node("right").worker
    with right.call(socket.create_server, (RIGHT[version], 0), family=family) as listener:
        listener.settimeout(DEADLINE)
        address = listener.getsockname()[:2]
        client = lab.node("left").worker.call(socket.create_connection, address, timeout=DEADLINE)
        server = listener.accept()[0]
    server.settimeout(DEADLINE)
    return client, server


@VERSIONS
def test_a_round_trip_takes_twice_the_delay_at_least(lab: Lab, version: int) -> None:
    left = lab.node("left").worker
    assert left.call(icmp.ping, RIGHT[version], timeout=DEADLINE) is None  # finds the neighbour
    begin = time.monotonic()
    assert left.call(icmp.ping, RIGHT[version], timeout=DEADLINE) is None
    assert time.monotonic() - begin >= 2 * DELAY
    client, server = connect(lab, version)
    with client, server:
        begin = time.monotonic()
        client.sendall(b"ping")
        server.sendall(server.recv(100))
        assert client.recv(100) == b"ping"
        assert time.monotonic() - begin >= 2 * DELAY


@VERSIONS
def test_100_mb_arrive_whole_in_big_frames(name: str, version: int) -> None:
    size = 100_000_000
    block = random.Random(version).randbytes(1_000_000)
    with Lab.up(two_nodes(1), name) as lab:
        client, server = connect(lab, version)

        def send() -> None:
            for number in range(size // len(block)):
                client.sendall(number.to_bytes(4, "big") + block[4:])
            client.shutdown(socket.SHUT_WR)

        wanted = hashlib.sha256()
        for number in range(size // len(block)):
            wanted.update(number.to_bytes(4, "big") + block[4:])
        found = hashlib.sha256()
        with client, server:
            sending = Thread(target=send)
            sending.start()
            while data := server.recv(1 << 20):
                found.update(data)
            sending.join(DEADLINE)
            assert not sending.is_alive()
        assert found.digest() == wanted.digest()
        (counters,) = wire_of(lab).links
        assert counters.dropped == 0
        assert (
            counters.packets < size // 1500
        )  # segments of up to 64 KiB, acknowledgements included
        lab.down()


def test_datagrams_keep_their_order_and_none_is_lost(lab: Lab) -> None:
    receiver = lab.node("right").worker.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    sender = lab.node("left").worker.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    lab.node("left").worker.call(icmp.ping, RIGHT[4], timeout=DEADLINE)
    sent = [number.to_bytes(4, "big") for number in range(500)]
    with receiver, sender:
        receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 22)
        receiver.bind((RIGHT[4], 0))
        receiver.settimeout(DEADLINE)
        for each in sent:
            sender.sendto(each, receiver.getsockname())
        assert [receiver.recv(100) for _ in sent] == sent


def test_frames_that_found_no_room_before_the_wire_are_counted(lab: Lab) -> None:
    left, pid = lab.node("left").worker, wire_of(lab).pid
    assert left.call(icmp.ping, RIGHT[4], timeout=DEADLINE) is None
    assert left.call(links.overflow, "eth0") == 0
    os.kill(pid, signal.SIGSTOP)
    with left.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(20_100):
            sender.sendto(b"x", (RIGHT[4], 9))
    lost = left.call(links.overflow, "eth0")
    os.kill(pid, signal.SIGCONT)
    assert lost >= 100
    found = {item.name: item.found for item in check.check(lab)}
    assert found["left: eth0"].startswith("up, 20 ms, no room for ")


def test_check_and_ps_show_the_delay_and_its_process(lab: Lab) -> None:
    items = list(check.check(lab))
    assert [item for item in items if not item.ok] == []
    pid = wire_of(lab).pid
    assert f"answers (pid {pid}, 0 frames dropped)" in {item.found for item in items}
    assert {item.found for item in items if item.name == "left: eth0"} == {"up, 20 ms"}
    entry = listing.entry(lab.name)
    assert entry["state"] == "up"
    assert entry["wire"] == {"pid": pid, "links": 1, "dropped": 0}
    assert f"process {pid} netlab-wire" in inventory.leftovers(lab.name)
    assert os.getpgid(pid) != os.getpgid(0)


def test_a_lab_with_delays_everywhere_works_and_goes(name: str) -> None:
    peers = delayed(load(Path("peers")), 1)
    with Lab.up(peers, name) as lab:
        assert [item for item in check.check(lab) if not item.ok] == []
        pid = wire_of(lab).pid
        pidfd = os.pidfd_open(pid)
        with os.fdopen(pidfd):
            lab.down()
            assert select.select([pidfd], [], [], DEADLINE)[0]


def test_a_delayed_link_is_like_a_veth_but_for_its_delay(name: str) -> None:
    def attributes() -> list[object]:
        with links.rtnetlink("cannot look") as netlink:
            (link,) = netlink.get_links(ifname="eth0")
            wanted = ("IFLA_MTU", "IFLA_OPERSTATE", "IFLA_CARRIER", "IFLA_GSO_MAX_SIZE")
            mac = link.get_attr("IFLA_ADDRESS")
            assert int(mac[:2], 16) & 3 == 2  # locally administered, unicast
            return [link.get_attr(each) for each in wanted]

    found = []
    for delay in (None, 20):
        with Lab.up(two_nodes(delay), name) as lab:
            found.append(lab.node("left").worker.call(attributes))
            lab.down()
    assert found[0] == found[1]


def test_a_wire_that_was_killed_is_seen_and_the_lab_goes_without_a_trace(lab: Lab) -> None:
    pid = wire_of(lab).pid
    pidfd = os.pidfd_open(pid)
    with os.fdopen(pidfd):
        os.kill(pid, signal.SIGKILL)
        assert select.select([pidfd], [], [], DEADLINE)[0]
    entry = listing.entry(lab.name)
    assert entry["state"] == "remains"
    assert entry["wire"] == {"pid": None, "links": 1, "dropped": 0}
    failed = {item.name for item in check.check(lab) if not item.ok}
    assert {"wire of the delayed links", "left: eth0", "right: eth7"} <= failed
    lab.down()
    assert inventory.leftovers(lab.name) == []


def test_the_wire_outlives_who_made_the_lab_and_goes_with_the_lab(name: str) -> None:
    program = (
        "import os, signal, sys\n"
        "from netlab.lab import Lab\n"
        "from netlab.topology import parse\n"
        "Lab.up(parse(sys.argv[1], origin='two'), sys.argv[2])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", program, TWO_NODES, name]
    ended = subprocess.run(command, timeout=DEADLINE, check=False, stderr=subprocess.PIPE)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    with Lab.attach(name) as lab:
        pid = wire_of(lab).pid
        assert lab.node("left").worker.call(icmp.ping, RIGHT[6], timeout=DEADLINE) is None
    pidfd = os.pidfd_open(pid)
    with os.fdopen(pidfd):
        assert f"process {pid} netlab-wire" in inventory.remove(name)
        assert select.select([pidfd], [], [], DEADLINE)[0]
    assert inventory.leftovers(name) == []


def test_an_end_that_is_removed_takes_its_link_and_no_other(name: str) -> None:
    with Lab.up(delayed(load(Path("peers")), 1), name) as lab:
        pid = wire_of(lab).pid
        lab.node("p1").worker.call(links.remove, "eth0")
        deadline = time.monotonic() + DEADLINE
        router = lab.node("router").worker
        while "p1" in router.call(links.states):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert wire_of(lab).pid == pid
        assert lab.node("p2").worker.call(icmp.ping, "192.0.2.1", timeout=DEADLINE) is None
        lab.down()
