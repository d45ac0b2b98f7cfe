"""What an agent knows of the connections that a real move has led elsewhere, and what it counts.

::

    x --- c --- a   where the workload is first
           `--- b   where it goes

``c`` is a client's node, with NAT like a Service's, and the way in for ``x``, which is outside.
"""

import asyncio
import functools
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from agents_lab import AgentsLab
from handover_lab import family
from tcp_lab import DEADLINE, receive_exactly

from mycoproxy.agent.config_source import Source
from mycoproxy.agent.daemon import Daemon
from mycoproxy.agent.logs import Logs
from mycoproxy.agent.move_metrics import MoveMetrics, Seen
from mycoproxy.agent.moved_connections import MovedConnections
from mycoproxy.agent.notify import Notifier
from mycoproxy.netfilter.nft import Nft

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

PORT, NODE_PORT = 7000, 30_000
SERVICE = {4: "10.96.0.10", 6: "fd96::10"}


class ServiceLab(AgentsLab):
    """Its clients dialled the workload, the Service, and the node's port from outside."""

    def __init__(self, network: Any, version: int, directory: Path) -> None:
        super().__init__(network, version, directory)
        self.x = network.node("x")
        link = network.link(self.x, self.c)
        self.x.set_route("default", gateway=link.right_v4)
        self.x.set_route("::/0", gateway=link.right_v6)
        self.entry = link.address("right", version)
        self.c.sysctl("net.ipv4.ip_forward", 1)
        self.c.sysctl("net.ipv6.conf.all.forwarding", 1)
        self.c.set_route("10.96.0.0/16", gateway=self.to_a.right_v4)
        self.c.set_route("fd96::/64", gateway=self.to_a.right_v6)
        self.c.call(self._serve)
        self.source.listen(10, "0.0.0.0" if version == 4 else "::", PORT)
        self.copy.listen(10, "0.0.0.0" if version == 4 else "::", PORT)
        self.clients = {
            "translate": self._dial(self.c, self.address["a"], PORT),
            "rebind": self._dial(self.c, SERVICE[version], PORT),
            "through": self._dial(self.x, self.entry, NODE_PORT),
        }
        for fd in range(20, 20 + len(self.clients)):
            self.source.accept(10, fd)
            self.copy.do(f"closed_as_criu_does({fd}, {family(self)})")

    def _serve(self) -> None:
        ip = "ip" if self.version == 4 else "ip6"
        to = self.address["a"] if self.version == 4 else f"[{self.address['a']}]"
        with Nft() as nft:
            nft.install(
                "service",
                f"""table {ip} service {{
                    chain output {{
                        type nat hook output priority -100;
                        {ip} daddr {SERVICE[self.version]} tcp dport {PORT} dnat to {to}:{PORT}
                    }}
                    chain prerouting {{
                        type nat hook prerouting priority -100;
                        {ip} daddr {self.entry} tcp dport {NODE_PORT} dnat to {to}:{PORT}
                    }}
                }}""",
            )

    def _dial(self, node: Any, address: str, port: int) -> socket.socket:
        sock: socket.socket = node.call(
            functools.partial(socket.create_connection, (address, port), timeout=DEADLINE)
        )
        return self.keep(sock)  # type: ignore[no-any-return]

    def assert_served(self) -> None:
        for fd, client in enumerate(self.clients.values(), start=20):
            client.sendall(b"ping")
            with self.copy.socket(fd) as sock:
                assert receive_exactly(sock, 4) == b"ping"
                sock.sendall(b"pong")
            assert receive_exactly(client, 4) == b"pong"


@pytest.fixture(params=[4, 6])
def lab(network: Any, request: Any, tmp_path: Path) -> Iterator[ServiceLab]:
    made = ServiceLab(network, request.param, tmp_path)
    try:
        yield made
    finally:
        made.close()


@asynccontextmanager
async def knowing(lab: ServiceLab, name: str) -> AsyncIterator[tuple[MovedConnections, Daemon]]:
    """What a real agent has for that beside its engine."""
    environment = {
        "MYCOPROXY_NODE_NAME": name,
        "MYCOPROXY_STATE_DIRECTORY": str(lab.directory),
        "MYCOPROXY_NAMESPACES_NODE": str(lab.agents[name].namespaces.host_path),
        "MYCOPROXY_NAMESPACES_PODS": "/run/netns/mycoproxy-none-*",
    }
    source = Source(None, environment)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    daemon = Daemon(
        source, source.load(), logs=Logs(node=name, stream=nowhere), notifier=Notifier()
    )
    connections = MovedConnections()
    await connections.start(daemon)
    ended = lab.agents[name].engine.acts.ended
    ended += [connections.ended, MoveMetrics(daemon.metrics.registry, Seen).ended]
    try:
        yield connections, daemon
    finally:
        daemon._state = "stopping"
        await daemon._cancel(list(daemon._tasks))
        os.close(nowhere)


def value(daemon: Daemon, name: str, **labels: str) -> float:
    return daemon.metrics.registry.get_sample_value(name, labels) or 0.0


def test_what_a_move_leaves_is_listed_counted_and_known_to_the_next_agent(lab: ServiceLab) -> None:
    def end(port: int) -> str:
        place = lab.address["b"]
        return f"{place}:{port}" if lab.version == 4 else f"[{place}]:{port}"

    async def until(daemon: Daemon, **counts: int) -> None:
        def reached() -> bool:
            return all(
                value(daemon, "mycoproxy_move_connections_total", strategy=way) == count
                for way, count in counts.items()
            )

        await lab.until(reached, "counted")

    async def scenario() -> None:
        async with lab:
            async with knowing(lab, "c") as (connections, daemon), knowing(lab, "a") as (_, source):
                assert await lab.hand_over()
                await lab.until_settled()
                await until(daemon, rebind=2, translate=1)
                rows = (await connections.rows()).rows
                assert [row["move"] for row in rows] == ["move"] * 3
                assert [row["now"] for row in rows] == [end(PORT)] * 3
                assert sorted(
                    (row["strategy"], row["client"].rpartition(":")[2], row["through"])
                    for row in rows
                ) == sorted(
                    (
                        "translate" if name == "translate" else "rebind",
                        str(client.getsockname()[1]),
                        name == "through",
                    )
                    for name, client in lab.clients.items()
                )
                assert value(daemon, "mycoproxy_rehomed_connections", strategy="rebind") == 2
                moved = {"outcome": "moved"}
                assert value(daemon, "mycoproxy_moves_total", role="peer", **moved) == 1
                assert value(source, "mycoproxy_moves_total", role="source", **moved) == 1
                held = "mycoproxy_move_hold_to_release_seconds"
                await lab.until(lambda: value(source, f"{held}_count") == 1, "timed")
                assert value(source, f"{held}_sum") > 0
            lab.assert_served()
            async with knowing(lab, "c") as (connections, _):  # an agent that was restarted
                assert (await connections.rows()).rows == rows
                lab.clients["through"].close()
                with lab.copy.socket(22) as sock:
                    sock.shutdown(socket.SHUT_RDWR)
                lab.copy.do("os.close(22)")
                deadline = asyncio.get_running_loop().time() + DEADLINE
                while any(row["through"] for row in (await connections.rows()).rows):
                    assert asyncio.get_running_loop().time() < deadline
                    await asyncio.sleep(0.05)
                assert len((await connections.rows()).rows) == 2

    asyncio.run(scenario())


def test_a_move_that_is_given_up_leaves_nothing_and_is_counted(lab: ServiceLab) -> None:
    async def scenario() -> None:
        async with lab, knowing(lab, "c") as (connections, daemon):
            await lab.begin()
            await lab.agents["a"].engine.abort("move")
            await lab.until_settled()
            assert (await connections.rows()).rows == []
            assert value(daemon, "mycoproxy_moves_total", role="peer", outcome="returned") == 1

    asyncio.run(scenario())
