"""Every path of topology ``kube-service``: it works, and goes the way that its row claims."""

import ipaddress
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from mycoproxy.addresses import Endpoint
from mycoproxy.netfilter.conntrack import Conntrack
from mycoproxy.netfilter.entry import ConntrackEntry, Direction
from netlab import inventory
from netlab.check import check
from netlab.lab import Lab
from netlab.paths.clients import Connection, PathClients
from netlab.paths.result import PathResult
from netlab.paths.table import PATHS, WORKLOAD, ClientPath, path
from netlab.topology import Topology, load

pytestmark = [pytest.mark.root, pytest.mark.timeout(90)]

_numbers = count()

KUBE = load(Path("kube-service"))
NODES = ("alpha", "beta", "gamma")


@pytest.fixture
def name() -> Iterator[str]:
    lab = f"k{os.getpid()}_{next(_numbers)}"
    yield lab
    inventory.remove(lab)
    assert inventory.leftovers(lab) == []


def up(name: str, topology: Topology = KUBE) -> Lab:
    lab = Lab.up(topology, name)
    for pod in topology.pods:
        lab.start_pod(pod.name)
    return lab


def rows(*names: str) -> list[ClientPath]:
    return [path(name) for name in names]


def wait_for_bytes(clients: PathClients, wanted: int, seconds: float = 20) -> None:
    """Until every end of every connection that sends by itself, and lives, received so many."""
    deadline = time.monotonic() + seconds
    busy = [each.number for each in clients.connections if each.activity != "idle"]
    while True:
        reports = clients.reports()
        ends = [end for number in busy for end in reports[number]]
        if all(end["received"] >= wanted or end["error"] for end in ends):
            return
        assert time.monotonic() < deadline, "nothing goes on"
        time.sleep(0.05)


def endpoint(text: str) -> Endpoint:
    """Of a report: ``192.0.2.1:80``, ``[2001:db8::1]:80``."""
    host, _, port = text.rpartition(":")
    return Endpoint(host.strip("[]"), int(port))


def addresses_of(lab: Lab, node: str) -> set[str]:
    own = [*lab.topology.link_addresses(node), *lab.topology.node(node).pod_bridge]
    return {str(interface.ip) for interface in own}


def nat_node(row: ClientPath) -> str | None:
    """The node whose rules say where the connection goes."""
    if row.entry is not None:
        return row.entry
    if row.dials != "virtual":
        return row.seen_as
    is_pod = any(row.opener == pod.name for pod in KUBE.pods)
    return KUBE.pod(row.opener).node if is_pod else row.opener


def tracked(lab: Lab, node: str, direction: Direction) -> ConntrackEntry | None:
    def get() -> ConntrackEntry | None:
        with Conntrack() as conntrack:
            return conntrack.get(direction)

    return lab.node(node).worker.call(get)


def assert_goes_its_way(
    lab: Lab, clients: PathClients, wanted: Connection, result: PathResult
) -> None:
    """By what both ends' sockets say, and by the conntrack entry of the node that has the NAT.

    ``result`` has the ends' names as they were while the connection lived.
    """
    row = wanted.path
    opener, acceptor = result.ends
    client, dialled = endpoint(opener["local"]), endpoint(opener["peer"])
    server, seen = endpoint(acceptor["local"]), endpoint(acceptor["peer"])
    assert dialled == Endpoint(*clients.dialled(wanted))
    assert (server == dialled) is (row.dials in ("address", "loopback"))
    if row.seen_as is None:
        assert seen.address == client.address
        assert (seen.port != client.port) is row.port_is_taken
    else:
        assert seen.address in addresses_of(lab, row.seen_as)
        assert seen != client
    node = nat_node(row)
    if node is None:
        return
    entry = tracked(lab, node, Direction(client, dialled))
    assert entry is not None, f"{row.name}: {node} does not know {client} -> {dialled}"
    assert entry.reply == Direction(server, seen)
    for other in NODES:
        if other != node and (there := tracked(lab, other, Direction(client, dialled))):
            assert not there.has_nat, f"{row.name}: NAT on {other} too"


def test_every_path_works_with_every_activity_and_goes_the_way_it_claims(name: str) -> None:
    lab = up(name)
    with PathClients(lab) as clients:
        clients.start()
        clients.wait_until_open(30)
        wait_for_bytes(clients, 400)
        results = clients.finish()
        assert [result for result in results if not result.ok] == []
        assert len(results) == len(PATHS) * 2 * 3
        for wanted, result in zip(clients.connections, results, strict=True):
            assert (result.path, result.family) == (wanted.path.name, wanted.family)
            assert_goes_its_way(lab, clients, wanted, result)
            if result.activity == "idle":
                assert result.bytes == 128
    lab.down()


def test_lab_is_what_its_topology_says_and_nothing_is_left_of_it(name: str) -> None:
    lab = up(name)
    with PathClients(lab, rows("pod-beta-virtual", "outside-local-alpha")) as clients:
        clients.start()
        clients.wait_until_open(20)
        assert [item for item in check(lab) if not item.ok] == []
        # The clients are still there: they end with the lab.
        removed = lab.down()
    assert f"namespace nl-{name}-beta.client-beta" in removed
    assert inventory.leftovers(name) == []


def test_second_round_of_clients_in_a_lab_is_not_disturbed_by_the_first(name: str) -> None:
    lab = up(name)
    for _ in range(2):
        with PathClients(lab, rows("pod-gamma-virtual", "to-node-beta")) as clients:
            clients.start()
            clients.wait_until_open(20)
            assert all(result.ok for result in clients.finish())
    lab.down()


@pytest.mark.parametrize("at", ["opener", "acceptor"])
def test_wrong_byte_and_reset_are_told_of_the_connection_they_happened_to(
    name: str, at: str
) -> None:
    lab = up(name)
    with PathClients(lab, rows("host-beta-virtual", "to-pod-beta"), (4,)) as clients:
        clients.start()
        clients.wait_until_open(20)
        spoiled, reset = 0, 4
        clients.disturb("spoil", spoiled, at=at)  # type: ignore[arg-type]
        clients.disturb("reset", reset, at=at)  # type: ignore[arg-type]
        wait_for_bytes(clients, 100)
        results = clients.finish()
        for number, result in enumerate(results):
            assert result.wrong == (number == spoiled), result
            assert result.resets == (number == reset), result
            assert result.ok is (number not in (spoiled, reset))
        assert results[reset].activity == "receiving"
    lab.down()


def test_path_that_leads_nowhere_is_named(name: str) -> None:
    lab = up(name)
    for service in ("workload", "workload-local"):
        lab.service(service).point_to(["10.244.2.99"])
    with PathClients(lab, rows("pod-gamma-virtual", "to-virtual"), (4,), ("idle",)) as clients:
        clients.start()
        with pytest.raises(Exception, match=r"not open after 1 s: pod-gamma-virtual IPv4 idle$"):
            clients.wait_until_open(1)
    lab.down()


@pytest.mark.parametrize("egress", ["none", "outside"])
def test_pods_keep_their_address_towards_nodes_if_the_plugin_spares_them(
    name: str, egress: str
) -> None:
    assert KUBE.cluster is not None
    cluster = KUBE.cluster.model_copy(update={"egress": egress})
    lab = up(name, KUBE.model_copy(update={"cluster": cluster}))
    with PathClients(lab, rows("to-node-beta", "to-node-alpha"), activities=("idle",)) as clients:
        clients.start()
        clients.wait_until_open(20)
        for result in clients.finish():
            assert result.ok, result
            opener, acceptor = result.ends
            assert acceptor["peer"] == opener["local"]
    lab.down()


def accepted_by(lab: Lab, node: str, host: str, port: int) -> str | None:
    """Who sees the connection: the address of its client there; None if it leads nowhere."""
    worker = lab.node(node).worker
    try:
        connection = worker.call(socket.create_connection, (host, port), timeout=0.5)
    except TimeoutError:
        return None
    with closing(connection):
        return connection.recv(100).decode()


#: Tells each client the address that it comes by.
TELL = """\
import socket, sys
listener = socket.create_server(("", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
while True:
    connection, address = listener.accept()
    connection.sendall(address[0].removeprefix("::ffff:").encode())
    connection.close()
"""


@pytest.mark.parametrize("family", [4, 6])
def test_repointed_service_is_local_to_the_new_node_and_dropped_by_the_others(
    name: str, family: int
) -> None:
    lab = Lab.up(KUBE, name)
    target = lab.make_sandbox(WORKLOAD, "beta")
    lab.record_pod(target)
    child = lab.popen(
        WORKLOAD, [sys.executable, "-c", TELL, str(target.port)], stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        for service in ("workload", "workload-local"):
            lab.service(service).point_to(target.addresses)
        client = next(
            str(each.ip) for each in KUBE.link_addresses("outside") if each.version == family
        )
        for entry in NODES:
            own = [each.ip for each in KUBE.link_addresses(entry) if each.version == family]
            masqueraded = accepted_by(lab, "outside", str(own[0]), 30080)
            assert masqueraded in addresses_of(lab, entry)
            local = accepted_by(lab, "outside", str(own[0]), 30081)
            assert local == (client if entry == "beta" else None)
            # From a node of the cluster a local node port leads there all the same.
            virtual = next(a for a in KUBE.service("workload").addresses if a.version == family)
            assert accepted_by(lab, entry, str(virtual), 80) in addresses_of(lab, entry)
            assert accepted_by(lab, entry, str(own[0]), 30081) in addresses_of(lab, entry)
        child.kill()
    lab.down()


def test_program_in_a_bare_sandbox_has_the_pods_address_and_ends_with_the_lab(name: str) -> None:
    lab = Lab.up(KUBE, name)
    pod = lab.start_pod("client-gamma")
    child = lab.popen("client-gamma", ["sleep", "1000"])
    assert Path(f"/proc/{child.pid}/ns/net").stat().st_ino == pod.netns.stat().st_ino
    assert not pod.running
    assert pod.addresses == tuple(map(str, KUBE.pod("client-gamma").addresses))
    assert all(ipaddress.ip_address(each) in _pods_of("gamma") for each in pod.addresses[:1])
    lab.down()
    assert child.poll() is not None


def _pods_of(node: str) -> ipaddress.IPv4Network:
    network = KUBE.node(node).pod_bridge[0].network
    assert isinstance(network, ipaddress.IPv4Network)
    return network
