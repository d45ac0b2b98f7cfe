"""UDP over a move and back: what was asked is answered, also if it was asked while nobody ran.

Only loss is looked at, never how long anything took. docs/udp.md says what is promised.
"""

import asyncio
import json
import logging
import select
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from migrate.machine.mover import MoveError
from migrate.machine.report import MoveReport
from mycoproxy.handover import HandoverError, LocalTarget
from mycoproxy.namespaces import NamespaceWorker
from netlab import inventory, services, topology
from netlab.agents import LabAgents
from netlab.lab import Lab, running
from netlab.moving import _settle as settle
from netlab.moving import move_pod
from netlab.paths.table import WORKLOAD
from netlab.pods import Pod

DEADLINE = 5.0  # for an answer
BEAT = 0.02
ANY, OWN, DUAL = 7000, 7001, 7002  # the workload's ports: netlab.datagram_end
FAMILIES = (4, 6)


class UdpLab:
    """The lab ``kube-service`` with a workload that speaks UDP, behind Services for UDP."""

    def __init__(self, lab: Lab, logs: Path, agents: LabAgents | None) -> None:
        self.lab = lab
        self.logs = logs
        self.agents = agents
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

    def settle(self, lab: Lab, target: Pod) -> None:
        """The workload is there now: what a move does for netlab's own Services, and for these."""
        settle(lab, target)
        self._lead_services()

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

        moving = move_pod(
            self.lab, WORKLOAD, node, logs=self.logs, progress=progress, agents=self.agents
        )
        report = asyncio.run(moving)
        self.reports.append(report)
        return report

    def report(self) -> dict[str, dict[str, Any]]:
        """What the workload's sockets have seen, by their names."""
        with self.socket("client-gamma", 4) as sock:
            sock.connect((self.address(WORKLOAD, 4), OWN))
            sock.settimeout(DEADLINE)
            sock.send(b"report")
            return {one["name"]: one for one in json.loads(sock.recv(1 << 16))}

    def call(self, host: str, port: int, name: str) -> None:
        """Have the workload call somebody."""
        with self.socket("client-gamma", 4) as sock:
            sock.sendto(f"call {host} {port} {name}".encode(), (self.address(WORKLOAD, 4), ANY))

    def wait_for_answers(self, names: Iterable[str], more: int) -> None:
        """Wait until each of these sockets of the workload has had so many more datagrams."""
        before = {name: one["received"] for name, one in self.report().items()}
        deadline = time.monotonic() + DEADLINE
        while True:
            now = self.report()
            missing = [
                name
                for name in names
                if name not in now or now[name]["received"] < before.get(name, 0) + more
            ]
            if not missing:
                return
            assert time.monotonic() < deadline, f"no answers to {', '.join(missing)}"
            time.sleep(BEAT)

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()
        for worker in self._workers.values():
            worker.close()


@pytest.fixture(params=["mover", "agents"])
def udp(
    request: pytest.FixtureRequest,
    lab_name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[UdpLab]:
    """Twice: what one process does with all namespaces, the agents of the nodes do as well."""
    wanted = topology.load(Path("kube-service")).model_dump(mode="json")
    next(pod for pod in wanted["pods"] if pod["name"] == WORKLOAD)["image"] = "datagrams"
    with running(topology.Topology.model_validate(wanted), lab_name) as lab, ExitStack() as stack:
        agents = stack.enter_context(LabAgents(lab)) if request.param == "agents" else None
        made = UdpLab(lab, tmp_path, agents)
        monkeypatch.setattr("netlab.moving._settle", made.settle)
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


def test_clients_that_nobody_can_tell_go_on_through_the_old_node_and_it_is_said(
    udp: UdpLab,
) -> None:
    rows = [("routed", "any"), ("outside", "local-port alpha")]
    assert there_and_back(udp, askers(udp, rows)) == {}
    first, back = (report.remarks for report in udp.reports)
    assert len(first) == 4
    assert all("goes on through alpha" in remark for remark in first)
    assert back == ()  # alpha goes on leading them, now to its own pod


@pytest.mark.parametrize("dials", ["virtual", "any"])
def test_whoever_asks_for_the_first_time_during_a_move_is_answered(udp: UdpLab, dials: str) -> None:
    """Each with a socket of its own. Of those that dial the pod, who come before it has left."""
    clients: list[Asker] = []
    moved = threading.Event()

    def keep_coming() -> None:
        while not moved.wait(0.01):
            clients.extend(askers(udp, [("client-gamma", dials)]))
            for client in clients[-2:]:
                client.ask()

    coming = threading.Thread(target=keep_coming)
    coming.start()
    leave = udp.settle

    def settled(lab: Lab, target: Pod) -> None:
        if dials == "any":
            moved.set()
        leave(lab, target)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("netlab.moving._settle", settled)
            udp.move("beta")
    finally:
        moved.set()
        coming.join()
    deadline = time.monotonic() + DEADLINE
    for client in clients:
        client.listen(deadline)
    assert len(clients) > 10
    assert [client.name for client in clients if client.unanswered or client.strange] == []


def test_sockets_keep_the_options_that_servers_ask_for(udp: UdpLab) -> None:
    before = udp.report()
    report = udp.move("beta")
    assert report.remarks == ()
    after = udp.report()
    for name in ("any4", "any6", "dual", "own4", "own6"):
        assert (before[name]["pktinfo"], before[name]["tos"]) == (1, 0xB8)
        assert (after[name]["pktinfo"], after[name]["tos"]) == (1, 0xB8), name


class Player:
    """A game: both sides send 50 datagrams a second, with numbers."""

    def __init__(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        sock.connect(peer)
        sock.setblocking(False)
        self.sent = 0
        self.ticks: list[int] = []
        self.refused = 0
        self._sock = sock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._play)
        self._thread.start()

    def _play(self) -> None:
        while not self._stop.wait(BEAT):
            self.sent += 1
            try:
                self._sock.send(f"play {self.sent}".encode())
                while True:
                    word, number, _ = self._sock.recv(1 << 16).decode().split()
                    assert word == "tick"
                    self.ticks.append(int(number))
            except BlockingIOError:
                continue
            except ConnectionRefusedError:
                self.refused += 1

    def wait_for_more(self, count: int) -> None:
        wanted, deadline = len(self.ticks) + count, time.monotonic() + 10
        while len(self.ticks) < wanted:
            assert time.monotonic() < deadline, f"{len(self.ticks)} ticks, {wanted} wanted"
            time.sleep(BEAT)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def test_a_game_goes_on_in_both_directions(udp: UdpLab) -> None:
    players = {
        f"any{family}": Player(udp.socket("client-gamma", family), udp.virtual("workload", family))
        for family in FAMILIES
    }
    try:
        for node in ("beta", "alpha"):
            for player in players.values():
                player.wait_for_more(20)
            udp.move(node)
        for player in players.values():
            player.wait_for_more(20)
    finally:
        for player in players.values():
            player.stop()
    seen = udp.report()
    for name, player in players.items():
        assert len(set(player.ticks)) == len(player.ticks)  # none twice
        assert player.refused == 0
        lost = {
            "sent": player.sent,
            "lost on the way there": player.sent - int(seen[name]["received"]),
            "ticks": len(player.ticks),
            "lost on the way back": max(player.ticks) - len(player.ticks),
        }
        logging.getLogger(__name__).info("%s: %s", name, lost)  # --log-cli-level=info
        # Some are still on their way; of a move, at most what is under way at that moment.
        assert lost["lost on the way there"] <= 6, lost
        assert lost["lost on the way back"] <= 6, lost


class Listener:
    """Somebody whom the workload calls. It answers whoever called first, and nobody else."""

    def __init__(self, sock: socket.socket, address: tuple[str, int]) -> None:
        sock.bind(address)
        sock.settimeout(0.1)
        self.callers: list[tuple[str, int]] = []
        self._sock = sock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()

    def _answer(self) -> None:
        while not self._stop.is_set():
            try:
                data, source = self._sock.recvfrom(1 << 16)
            except TimeoutError:
                continue
            if source[:2] not in self.callers:
                self.callers.append(source[:2])
            self._sock.sendto(b"heard " + data, self.callers[0])

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def test_whom_the_workload_calls_goes_on_seeing_the_same_caller(udp: UdpLab) -> None:
    pods = ("client-alpha", "client-beta", "client-gamma", "backend")
    listeners: dict[str, Listener] = {}
    try:
        for family in FAMILIES:
            for pod in pods:
                port = 7000 if pod == "backend" else 7700
                address = (udp.address(pod, family), port)
                name = f"{pod}-{family}"
                listeners[name] = Listener(udp.socket(pod, family), address)
                dialled = udp.virtual("backend", family) if pod == "backend" else address
                udp.call(*dialled, name)
        udp.wait_for_answers(listeners, 5)
        for node in ("beta", "alpha"):
            report = udp.move(node)
            assert report.remarks == ()
            udp.wait_for_answers(listeners, 5)
    finally:
        for listener in listeners.values():
            listener.stop()
    assert {name: len(one.callers) for name, one in listeners.items()} == dict.fromkeys(
        listeners, 1
    )


def test_a_caller_that_its_node_masqueraded_has_another_address_and_it_is_said(
    udp: UdpLab,
) -> None:
    address = next(
        str(one.ip) for one in udp.lab.topology.link_addresses("outside") if one.version == 4
    )
    listener = Listener(udp.socket("outside", 4), (address, 7700))
    try:
        udp.call(address, 7700, "out")
        udp.wait_for_answers({"out": listener}, 5)
        report = udp.move("beta")
        deadline = time.monotonic() + DEADLINE
        while len(listener.callers) < 2:
            assert time.monotonic() < deadline, "the workload calls nobody any more"
            time.sleep(BEAT)
    finally:
        listener.stop()
    (remark,) = report.remarks
    assert address in remark
    assert "another address" in remark


@pytest.mark.parametrize("udp", ["mover"], indirect=True)
def test_a_move_that_is_undone_loses_no_datagram(
    udp: UdpLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: LocalTarget, *arguments: object) -> None:
        raise HandoverError("injected")

    monkeypatch.setattr(LocalTarget, "_establish", fail)
    rows = [("client-gamma", "virtual"), ("client-beta", "any"), ("client-alpha", "own")]
    clients = askers(udp, rows)

    def ask() -> None:
        for client in clients:
            client.ask()

    ask()
    with pytest.raises(MoveError, match="injected"):
        udp.move("beta", ask)
    ask()
    deadline = time.monotonic() + DEADLINE
    for client in clients:
        client.listen(deadline)
    assert [client.name for client in clients if client.unanswered or client.strange] == []
