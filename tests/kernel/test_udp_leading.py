"""UDP flows are led to another server by conntrack entries; the client notices nothing."""

import select
import socket
from typing import Any

import pytest
from netfilter_lab import PORT, VIRTUAL, Lab, service_lab

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.netfilter.conntrack import Conntrack
from mycoproxy.netfilter.datagram_flows import TABLE, DatagramFlows, forget, led_entry

pytestmark = [pytest.mark.root, pytest.mark.timeout(30), pytest.mark.parametrize("version", [4, 6])]

SECONDS = 5.0


def server(lab: Lab, name: str, version: int) -> socket.socket:
    sock = lab.on(name, socket.socket, family(version), socket.SOCK_DGRAM)
    sock.bind(lab.endpoint(name, version))
    sock.settimeout(SECONDS)
    return sock  # type: ignore[no-any-return]


def client(lab: Lab, address: str, version: int) -> socket.socket:
    sock = lab.on("client", socket.socket, family(version), socket.SOCK_DGRAM)
    sock.connect((address, PORT))
    sock.settimeout(SECONDS)
    return sock  # type: ignore[no-any-return]


def family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def ask(one: socket.socket, other: socket.socket) -> Any:
    """There and back; the client's address as the server sees it."""
    one.send(b"question")
    data, source = other.recvfrom(100)
    assert data == b"question"
    other.sendto(b"answer", source)
    assert one.recv(100) == b"answer"
    return source


def flow(lab: Lab, name: str, version: int, source: Any) -> FourTuple:
    return FourTuple(lab.endpoint(name, version), Endpoint(*source[:2]))


def with_udp(lab: Lab) -> None:
    for version in (4, 6):
        ip = "ip" if version == 4 else "ip6"
        there = lab.address["a", version]
        where = there if version == 4 else f"[{there}]"
        lab.run(
            "router",
            f"add rule inet service prerouting {ip} daddr {VIRTUAL[version]} "
            f"udp dport {PORT} dnat {ip} to {where}:{PORT}",
        )


@pytest.mark.parametrize("masquerade", [False, True])
def test_a_client_of_a_service_is_led_by_the_node_that_nats_it(
    network: Any, version: int, masquerade: bool
) -> None:
    with service_lab(network, masquerade=masquerade) as lab:
        with_udp(lab)
        a, b = server(lab, "a", version), server(lab, "b", version)
        one = client(lab, VIRTUAL[version], version)
        source = ask(one, a)
        flows = lab.on("router", DatagramFlows)
        before = flow(lab, "a", version, source)
        addresses = {lab.address["a", version]: lab.address["b", version]}
        found = lab.router.call(flows.of_workload, addresses, [PORT])
        assert list(found) == [before]
        assert lab.router.call(flows.of_workload, addresses, [PORT + 1]) == {}
        again = lab.router.call(flows.find, [before])
        assert again[before].orig == found[before].orig
        after = FourTuple(lab.endpoint("b", version), before.remote)
        lab.router.call(flows.lead, [led_entry(found[before], before, after)])
        assert ask(one, b) == source
        assert TABLE not in lab.ruleset("router")  # NAT was there


def test_a_client_without_conntrack_is_led_in_its_own_namespace_and_back(
    network: Any, version: int
) -> None:
    with service_lab(network, nat=False) as lab:
        a, b = server(lab, "a", version), server(lab, "b", version)
        one = client(lab, lab.address["a", version], version)
        source = ask(one, a)
        flows = lab.on("client", DatagramFlows)
        there = flow(lab, "a", version, source)
        here = flow(lab, "b", version, source)
        lab.client.call(flows.lead, [led_entry(None, there, here)])
        assert ask(one, b) == source
        assert not select.select([a], [], [], 0)[0]
        assert not lab.client.call(forget)
        found = lab.client.call(flows.find, [here])
        lab.client.call(flows.lead, [led_entry(found[here], here, there)])
        assert ask(one, a) == source
        assert lab.client.call(forget)
        assert TABLE not in lab.ruleset("client")


def test_what_was_made_for_nothing_is_removed(network: Any, version: int) -> None:
    with service_lab(network, nat=False) as lab:
        flows = lab.client.call(DatagramFlows)
        lab.client.call(flows.install)
        assert TABLE in lab.ruleset("client")
        assert lab.client.call(flows.of_workload, {lab.address["a", version]: "x"}, [PORT]) == {}
        lab.client.call(flows.close)
        assert TABLE not in lab.ruleset("client")


def test_whom_the_workload_called_sees_its_old_address(network: Any, version: int) -> None:
    with service_lab(network, nat=False) as lab:
        a, b = server(lab, "a", version), server(lab, "b", version)
        called = lab.on("client", socket.socket, family(version), socket.SOCK_DGRAM)
        called.bind((lab.address["client", version], 4321))
        called.settimeout(SECONDS)
        a.connect(called.getsockname())
        source = ask(a, called)
        there = flow(lab, "a", version, called.getsockname())
        here = flow(lab, "b", version, called.getsockname())
        flows = lab.on("client", DatagramFlows)
        lab.client.call(flows.lead, [led_entry(None, there, here)])
        b.connect(called.getsockname())
        assert ask(b, called) == source


def test_an_entry_that_is_in_the_way_is_replaced(network: Any, version: int) -> None:
    """The new server has spoken first, and its node has an entry for that."""
    with service_lab(network) as lab:
        with_udp(lab)
        a, b = server(lab, "a", version), server(lab, "b", version)
        one = client(lab, VIRTUAL[version], version)
        source = ask(one, a)
        b.sendto(b"too early", source[:2])
        assert not select.select([one], [], [], 0.1)[0]
        flows = lab.on("router", DatagramFlows)
        before, after = (flow(lab, name, version, source) for name in ("a", "b"))
        found = lab.router.call(flows.find, [before])
        lab.router.call(flows.lead, [led_entry(found[before], before, after)])
        assert ask(one, b) == source
        with lab.router.call(Conntrack) as conntrack:
            entries = lab.router.call(conntrack.dump_datagrams, version=version)
        assert [entry.workload for entry in entries] == [after]
