"""A node and the pods on it, surveyed as one: who of them leads a connection."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from netfilter_lab import PORT, VIRTUAL, Lab, service_lab, tuple_of

from mycoproxy.addresses import FourTuple
from mycoproxy.handover import LocalNode, LocalPeer
from mycoproxy.netfilter.paths import Path as Way
from mycoproxy.sockdiag import SocketLookup

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

CLIENTS_PORT = 45678


@pytest.fixture
def lab(network: Any) -> Iterator[Lab]:
    with service_lab(network) as made:
        yield made


def dial_from_one_port(lab: Lab, address: str, version: int) -> socket.socket:
    family = socket.AF_INET if version == 4 else socket.AF_INET6

    def dial() -> socket.socket:
        sock = socket.socket(family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((lab.address["client", version], CLIENTS_PORT))
        sock.connect((address, PORT))
        return sock

    made: socket.socket = lab.keep(lab.client.call(dial))
    return made


async def survey(lab: Lab, names: list[FourTuple], version: int) -> dict[FourTuple, list[Way]]:
    host = LocalPeer("router", lab.router.worker, "test")
    node = LocalNode(host, [LocalPeer("router", lab.client.worker, "test")])
    await node.prepare()
    try:
        addresses = {lab.address["a", version]: lab.address["b", version]}
        offers = await node.survey(names, addresses, home=False)
    finally:
        await node.close()
    return {
        name: [
            offer.path
            for offer in offers
            if offer.connection == name and offer.path not in (Way.NOTHING, Way.ADMIT)
        ]
        for name in names
    }


def test_a_peer_that_is_closed_while_it_is_made_ready_leaves_nothing_open(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slowly() -> SocketLookup:
        begun.set()
        assert go_on.wait(10)
        return SocketLookup()

    monkeypatch.setattr("mycoproxy.handover.peer.SocketLookup", slowly)

    async def scenario() -> None:
        await asyncio.to_thread(int)  # has its thread, and the loop its descriptors
        before = len(list(Path("/proc/self/fd").iterdir()))
        peer = LocalPeer("router", lab.router.worker, "test")
        preparing = asyncio.create_task(peer.prepare())
        await asyncio.to_thread(begun.wait, 10)
        preparing.cancel()
        await asyncio.wait({preparing})
        closing = asyncio.create_task(peer.close())
        await asyncio.sleep(0)
        go_on.set()
        await closing
        await lab.router.worker.run(int)  # what was under way is done
        assert len(list(Path("/proc/self/fd").iterdir())) == before

    asyncio.run(scenario())


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("service_first", [True, False])
def test_a_port_that_a_client_uses_twice_is_no_reason_to_take_one_connection_for_the_other(
    lab: Lab, version: int, service_first: bool
) -> None:
    """Both lead to the workload: NAT gives the second one another port, which the client does not
    know. So the first one's name at the workload is what the client calls the second, if that is
    the one to the workload's own address."""
    listener = lab.listen("a", version)
    dialled = [VIRTUAL[version], lab.address["a", version]]
    servers = []
    for address in dialled if service_first else reversed(dialled):
        dial_from_one_port(lab, address, version)
        servers.append(lab.keep(listener.accept()[0]))
    service, direct = map(tuple_of, servers if service_first else reversed(servers))
    first = service if service_first else direct
    assert first.remote.port == CLIENTS_PORT
    assert service != direct
    ways = asyncio.run(survey(lab, [service, direct], version))
    assert ways == {
        service: [Way.REBIND],
        direct: [Way.REBIND] if service_first else [Way.TRANSLATE],
    }
