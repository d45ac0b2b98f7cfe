"""What a node's agent does for UDP flows, in real namespaces: finds them, leads them, tidies up."""

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from netfilter_lab import PORT, Lab, service_lab

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.handover.datagram_ends import LocalDatagramSource, LocalDatagramTarget
from mycoproxy.handover.datagram_peer import LocalDatagramPeer
from mycoproxy.handover.datagrams import DatagramEnd, Datagrams
from mycoproxy.handover.leading import Nodes
from mycoproxy.sockets.datagram import Datagram

pytestmark = [pytest.mark.root, pytest.mark.timeout(30), pytest.mark.parametrize("version", [4, 6])]

SECONDS = 5.0


class Ends(LocalDatagramSource):
    """The workload is this test: one socket at ``a``, and whatever is to have come there."""

    def __init__(self, lab: Lab, version: int) -> None:
        super().__init__(lab.a.worker, 1)
        self.local = lab.endpoint("a", version)
        self.waiting: list[Datagram] = []

    async def collect(self) -> list[DatagramEnd]:
        return [DatagramEnd(self.local)]

    async def arrived(self) -> list[Datagram]:
        arrived, self.waiting = self.waiting, []
        return arrived


@pytest.fixture
def lab(network: Any) -> Iterator[Lab]:
    with service_lab(network, nat=False) as made:
        yield made


def udp(lab: Lab, name: str, version: int) -> socket.socket:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    sock = lab.on(name, socket.socket, family, socket.SOCK_DGRAM)
    sock.settimeout(SECONDS)
    return sock  # type: ignore[no-any-return]


def moving(lab: Lab, source: Ends, peer: LocalDatagramPeer, version: int) -> Datagrams:
    return Datagrams(
        source,
        LocalDatagramTarget(lab.b.worker),
        [peer],
        addresses={lab.address["a", version]: lab.address["b", version]},
        nodes=Nodes("a", "b"),
    )


def test_a_client_that_nobody_tracks_is_found_by_its_connected_socket(
    lab: Lab, version: int
) -> None:
    async def move() -> Datagrams:
        peer = LocalDatagramPeer("client", lab.client.worker)
        await peer.prepare()
        made = moving(lab, Ends(lab, version), peer, version)
        await made.survey()
        await made.collect()
        await made.deliver()
        await peer.close()
        return made

    b = udp(lab, "b", version)
    b.bind(lab.endpoint("b", version))
    silent = udp(lab, "client", version)
    silent.connect(lab.endpoint("a", version))
    made = asyncio.run(move())
    assert (made.flows, made.remarks) == (1, ())
    silent.send(b"after it")
    data, source = b.recvfrom(100)
    assert data == b"after it"
    b.sendto(b"answer", source)
    assert silent.recv(100) == b"answer"


def test_what_waits_is_delivered_and_its_sender_is_led_but_no_group_is_sent_to(
    lab: Lab, version: int
) -> None:
    group = Endpoint("239.1.2.3" if version == 4 else "ff05::1:3", PORT)
    source = Ends(lab, version)

    async def move(client: Endpoint) -> Datagrams:
        peer = LocalDatagramPeer("client", lab.client.worker)
        await peer.prepare()
        made = moving(lab, source, peer, version)
        await made.survey()
        source.waiting = [
            Datagram(FourTuple(source.local, client), b"waited"),
            Datagram(FourTuple(group, client), b"for many"),
        ]
        assert await made.deliver() == 1
        source.waiting = [Datagram(FourTuple(source.local, client), b"late")]
        assert await made.deliver() == 1
        await peer.close()
        return made

    b = udp(lab, "b", version)
    b.bind(lab.endpoint("b", version))
    one = udp(lab, "client", version)
    one.bind((lab.address["client", version], 0))
    made = asyncio.run(move(Endpoint(*one.getsockname()[:2])))
    assert [b.recvfrom(100)[0] for _ in range(2)] == [b"waited", b"late"]
    (remark,) = made.remarks
    assert group.address in remark
    b.sendto(b"answer", one.getsockname())
    data, answered_by = one.recvfrom(100)
    assert (data, answered_by[:2]) == (b"answer", lab.endpoint("a", version))
