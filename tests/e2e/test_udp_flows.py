"""UDP over a move and back: what was asked is answered, also if it was asked while nobody ran.

Only loss is looked at, never how long anything took. docs/udp.md says what is promised.
"""

import asyncio
import json
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from migrate.machine.report import MoveReport
from mycoproxy.namespaces import NamespaceWorker
from netlab import inventory, services, topology
from netlab.lab import Lab, running
from netlab.moving import move_pod
from netlab.paths.table import WORKLOAD

DEADLINE = 5.0  # for an answer
BEAT = 0.02
ANY, OWN, DUAL = 7000, 7001, 7002  # the workload's ports: netlab.datagram_end
FAMILIES = (4, 6)


class UdpLab:
    """The lab ``kube-service`` with a workload that speaks UDP, behind Services for UDP."""

    def __init__(self, lab: Lab, logs: Path) -> None:
        self.lab = lab
        self.logs = logs
        self.reports: list[MoveReport] = []
        self._workers: dict[str, NamespaceWorker] = {}
        self._sockets: list[socket.socket] = []
        self._lead_services(create=True)

    def _lead_services(self, *, create: bool = False) -> None:
        """netlab's Services are TCP: the same rules once more, for UDP."""
        table = f"{self.lab.layout.nft_table}-udp"
        pods = {WORKLOAD: ANY, "backend": 7000}
        for node in ("alpha", "beta", "gamma"):
            text = ""
            if create:
                text = services.ruleset(
                    table,
                    self.lab.topology,
                    node,
                    {
                        one.name: (self.lab.pod(one.pod).addresses, pods[one.pod])
                        for one in self.lab.topology.services
                    },
                )
            else:
                for one in self.lab.topology.services:
                    text += services.target_rules(
                        table,
                        self.lab.topology,
                        node,
                        one,
                        addresses=self.lab.pod(one.pod).addresses,
                        port=pods[one.pod],
                    )
            text = text.replace("tcp dport", "udp dport")
            self.lab.node(node).worker.call(services.apply, text)

    def worker(self, place: str) -> NamespaceWorker:
        if place not in self._workers:
            pods = {pod.name for pod in self.lab.topology.pods}
            there = self.lab.pod(place) if place in pods else self.lab.node(place)
            self._workers[place] = NamespaceWorker(there.netns)
        return self._workers[place]

    def socket(self, place: str, family: int) -> socket.socket:
        made = self.worker(place).call(
            socket.socket, socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM
        )
        self._sockets.append(made)
        return made

    def address(self, pod: str, family: int) -> str:
        return self.lab.pod(pod).addresses[family == 6]

    def virtual(self, service: str, family: int) -> tuple[str, int]:
        spec = self.lab.topology.service(service)
        return str(spec.addresses[family == 6]), spec.port

    def move(self, node: str, frozen: Any = None) -> MoveReport:
        """``frozen`` is called when the workload stands."""

        def progress(step: str) -> None:
            if step == "dump" and frozen is not None:
                frozen()

        report = asyncio.run(move_pod(self.lab, WORKLOAD, node, logs=self.logs, progress=progress))
        self._lead_services()
        self.reports.append(report)
        return report

    def report(self) -> dict[str, dict[str, Any]]:
        """What the workload's sockets have seen, by their names."""
        with self.socket("client-gamma", 4) as sock:
            sock.connect((self.address(WORKLOAD, 4), ANY))
            sock.settimeout(DEADLINE)
            sock.send(b"report")
            return {one["name"]: one for one in json.loads(sock.recv(1 << 16))}

    def call(self, host: str, port: int, name: str) -> None:
        """Have the workload call somebody."""
        with self.socket("client-gamma", 4) as sock:
            sock.sendto(f"call {host} {port} {name}".encode(), (self.address(WORKLOAD, 4), ANY))

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()
        for worker in self._workers.values():
            worker.close()


@pytest.fixture
def udp(lab_name: str, tmp_path: Path) -> Iterator[UdpLab]:
    wanted = topology.load(Path("kube-service")).model_dump(mode="json")
    next(pod for pod in wanted["pods"] if pod["name"] == WORKLOAD)["image"] = "datagrams"
    with running(topology.Topology.model_validate(wanted), lab_name) as lab:
        made = UdpLab(lab, tmp_path)
        try:
            yield made
        finally:
            made.close()
    assert inventory.leftovers(lab_name) == []


@dataclass
class Asker:
    """A client with one socket for its whole life. It never asks twice."""

    name: str
    sock: socket.socket
    peer: tuple[str, int]
    connected: bool = True
    asked: int = 0
    unanswered: list[int] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.connected:
            self.sock.connect(self.peer)

    def ask(self) -> None:
        self.asked += 1
        text = f"echo {self.asked}".encode()
        if self.connected:
            self.sock.send(text)
        else:
            self.sock.sendto(text, self.peer)
        self.unanswered.append(self.asked)

    def listen(self, deadline: float) -> None:
        """Take the answers to all that was asked."""
        while self.unanswered:
            wait = max(deadline - time.monotonic(), 0)
            if not select.select([self.sock], [], [], wait)[0]:
                return
            data, source = self.sock.recvfrom(1 << 16)
            word, number, _ = data.decode().split()
            assert word == "echo"
            if source[:2] == self.peer:
                self.unanswered.remove(int(number))
            else:
                self.strange.append(f"{number} from {source[0]}")


def askers(udp: UdpLab, rows: list[tuple[str, str]]) -> list[Asker]:
    """One for each row (place, what is dialled) and family."""
    found = []
    for place, dials in rows:
        for family in FAMILIES:
            address = udp.address(WORKLOAD, family)
            node_port = udp.lab.topology.link_addresses
            peer = {
                "virtual": udp.virtual("workload", family),
                "any": (address, ANY),
                "any, unconnected": (address, ANY),
                "own": (address, OWN),
                "dual": (address, DUAL),
            }.get(dials)
            if peer is None:  # a node port: "node-port gamma"
                kind, node = dials.split()
                port = {"node-port": 30080, "local-port": 30081}[kind]
                version = {str(one.ip) for one in node_port(node) if one.version == family}
                peer = (version.pop(), port)
            name = f"{place} {dials} IPv{family}"
            connected = "unconnected" not in dials
            found.append(Asker(name, udp.socket(place, family), peer, connected))
    return found


def there_and_back(udp: UdpLab, clients: list[Asker]) -> dict[str, object]:
    """Ask before, in and after each move; returns what was not answered as it should, by client."""

    def ask() -> None:
        for client in clients:
            client.ask()

    def listen() -> None:
        deadline = time.monotonic() + DEADLINE
        for client in clients:
            client.listen(deadline)

    ask()
    listen()
    for node in ("beta", "alpha"):
        udp.move(node, ask)
        listen()
        ask()
        listen()
    return {
        client.name: (client.unanswered, client.strange)
        for client in clients
        if client.unanswered or client.strange
    }


def test_a_request_is_answered_through_the_service_whenever_it_was_asked(udp: UdpLab) -> None:
    rows = [(f"client-{node}", "virtual") for node in ("alpha", "beta", "gamma")]
    rows += [(node, "virtual") for node in ("alpha", "beta", "gamma")]
    rows += [("outside", f"node-port {node}") for node in ("alpha", "beta", "gamma")]
    assert there_and_back(udp, askers(udp, rows)) == {}
    assert [report.warnings for report in udp.reports] == [[], []]
    assert [report.remarks for report in udp.reports] == [(), ()]


def test_a_request_to_the_pods_own_address_is_answered_from_it(udp: UdpLab) -> None:
    rows = [
        (place, dials)
        for place in ("client-alpha", "client-beta", "client-gamma", "alpha", "beta", "gamma")
        for dials in ("any", "any, unconnected", "own", "dual")
    ]
    assert there_and_back(udp, askers(udp, rows)) == {}
