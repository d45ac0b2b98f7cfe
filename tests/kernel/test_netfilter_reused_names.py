"""Conntrack entries of moved connections collide with nobody, and end by themselves.

The workload moved from a to b, and ``a`` goes on listening at its address, as a new pod does that
was given it.
"""

import asyncio
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from netfilter_lab import (
    PORT,
    VIRTUAL,
    Lab,
    assert_talks,
    readable,
    service_lab,
    tuple_of,
    wait_until,
)

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.netfilter.anchor import Anchors
from mycoproxy.netfilter.conntrack import Conntrack
from mycoproxy.netfilter.endings import Ending
from mycoproxy.netfilter.hold import Hold
from mycoproxy.netfilter.lifetimes import TranslationLifetimes
from mycoproxy.netfilter.rebind import Rebound, rebind
from mycoproxy.netfilter.renamed import renamed_entry, untracked_entry
from mycoproxy.netfilter.translate import Move, Translate

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

VERSIONS = pytest.mark.parametrize("version", [4, 6])
ANCHORS = ["anchor", "anchor with another port"]
PATHS = pytest.mark.parametrize("path", ["rebind", *ANCHORS])
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
# nf_conntrack_tcp_timeout_time_wait; close, last_ack and the like are shorter
LONGEST_REMAINDER_SECONDS = 120


@pytest.fixture
def lab(network: Any) -> Iterator[Lab]:
    with service_lab(network) as made:
        yield made


def _dial(lab: Lab, node: str, address: str, *, from_port: int = 0) -> socket.socket:
    """Dial PORT from a port of choice, or any, which another socket may bind as well."""
    family = FAMILY[6 if ":" in address else 4]
    sock: socket.socket = lab.keep(lab.node(node).call(socket.socket, family))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.settimeout(10)
    sock.bind(("", from_port))
    sock.connect((address, PORT))
    return sock


@dataclass
class Moved:
    client: socket.socket
    server: socket.socket
    dialled: str
    listener: socket.socket
    name: FourTuple
    """As the new node has it."""

    @property
    def port(self) -> int:
        found: int = self.client.getsockname()[1]
        return found

    def reset(self) -> int:
        """The client resets it. Returns its port."""
        port = self.port
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.client.close()
        wait_until(lambda: readable(self.server), "the server is told")
        self.server.close()
        return port


def _moved(lab: Lab, path: str, version: int) -> Moved:
    """A client of a Service, or one that dialled the workload from outside, after a move."""
    dialled = VIRTUAL[version] if path == "rebind" else lab.address["a", version]
    listener = lab.listen("a", version)
    client = _dial(lab, "client", dialled)
    server = lab.keep(listener.accept()[0])
    old = tuple_of(server)
    new = FourTuple(lab.endpoint("b", version), old.remote)
    if path in ANCHORS:
        port = old.remote.port + ANCHORS.index(path)
        new = new._replace(remote=_anchor(lab, version, old, port))
    conntrack = lab.on("router", Conntrack)
    entry = lab.router.call(conntrack.find, [old]).get(old, untracked_entry(old))
    hold = Hold(lab.nft["router"], "rebind")
    lab.router.call(hold.install)
    lab.router.call(rebind, conntrack, hold, [Rebound(entry, renamed_entry(entry, old, new))])
    moved = lab.move(server, "a", "b")
    lab.router.call(hold.release)
    return Moved(client, moved, dialled, listener, new)


def _anchor(lab: Lab, version: int, old: FourTuple, port: int) -> Endpoint:
    """The router's own address and ``port`` are the client's at ``b``, by translation there."""
    anchors = Anchors(lab.nft["router"])
    lab.router.call(anchors.install)
    address = lab.router.call(anchors.address_toward, lab.address["b", version])
    assert address is not None
    workload = FourTuple(local=old.remote, remote=lab.endpoint("b", version))
    anchor = Endpoint(address, port)
    lab.b.call(Translate(lab.nft["b"]).add, [Move(workload, anchor)])
    return anchor


@VERSIONS
@PATHS
def test_the_old_address_is_reached_from_any_port(lab: Lab, version: int, path: str) -> None:
    moved = _moved(lab, path, version)
    old = lab.address["a", version]
    port = moved.port if moved.dialled != old else 0  # else the client's own kernel refuses
    client = _dial(lab, "client", old, from_port=port)
    assert_talks(client, lab.keep(moved.listener.accept()[0]))
    assert_talks(moved.client, moved.server)


@VERSIONS
@pytest.mark.parametrize(
    ("path", "node"),
    [("rebind", "client"), ("rebind", "router"), *((path, "router") for path in ANCHORS)],
)
def test_the_new_address_is_reached_from_any_port(
    lab: Lab, version: int, path: str, node: str
) -> None:
    """From that of the moved connection: where both come by, it gets another one by NAT."""
    moved = _moved(lab, path, version)
    listener = lab.listen("b", version)
    client = _dial(lab, node, lab.address["b", version], from_port=moved.port)
    server = lab.keep(listener.accept()[0])
    assert tuple_of(server) != moved.name
    assert_talks(client, server)
    assert_talks(moved.client, moved.server)


@VERSIONS
@pytest.mark.parametrize("path", ANCHORS)
def test_a_client_that_has_the_name_of_its_anchored_connection_is_refused_and_told(
    lab: Lab, version: int, path: str
) -> None:
    """To the workload's socket it still has the address from which it dials the new place."""
    moved = _moved(lab, path, version)
    listener = lab.listen("b", version)
    with pytest.raises(ConnectionRefusedError):
        _dial(lab, "client", lab.address["b", version], from_port=moved.port)
    assert_talks(moved.client, moved.server)
    client = _dial(lab, "client", lab.address["b", version])
    assert_talks(client, lab.keep(listener.accept()[0]))


@VERSIONS
@PATHS
def test_what_was_dialled_is_dialled_anew_from_the_same_port(
    lab: Lab, version: int, path: str
) -> None:
    """The old entry is still there, and gives way to a SYN."""
    moved = _moved(lab, path, version)
    at_b = lab.listen("b", version)
    port = moved.reset()
    client = _dial(lab, "client", moved.dialled, from_port=port)
    assert_talks(client, lab.keep(moved.listener.accept()[0]))
    assert not readable(at_b)


@VERSIONS
@PATHS
@pytest.mark.parametrize("by", ["reset", "client", "server"])
def test_an_entry_ends_soon_after_its_connection(
    lab: Lab, version: int, path: str, by: str
) -> None:
    moved = _moved(lab, path, version)
    conntrack = lab.on("router", Conntrack)
    assert lab.router.call(conntrack.find, [moved.name])[moved.name].timeout > 1000
    if by == "reset":
        moved.reset()
    else:
        ends = (moved.client, moved.server)
        first, second = ends if by == "client" else reversed(ends)
        first.shutdown(socket.SHUT_WR)
        second.settimeout(10)
        assert second.recv(1) == b""
        second.close()
        assert first.recv(1) == b""
        first.close()

    def has_noticed() -> bool:
        entry = lab.router.call(conntrack.find, [moved.name]).get(moved.name)
        return entry is None or entry.timeout <= LONGEST_REMAINDER_SECONDS

    wait_until(has_noticed, "conntrack has noticed")


@VERSIONS
@pytest.mark.parametrize("path", ANCHORS)
def test_the_workloads_own_translation_goes_with_an_anchored_connection(
    lab: Lab, version: int, path: str
) -> None:
    moved = _moved(lab, path, version)
    still = _dial(lab, "client", moved.dialled)
    accepted = lab.keep(moved.listener.accept()[0])

    async def attend() -> TranslationLifetimes:
        lifetimes = TranslationLifetimes(lab.b.worker)
        await lifetimes.open()
        task = asyncio.create_task(lifetimes.attend(every_seconds=1000))
        try:
            async with asyncio.timeout(20):
                while lifetimes.remaining != 1:
                    await asyncio.sleep(0.005)
                await asyncio.to_thread(assert_talks, moved.client, moved.server)
                await asyncio.to_thread(moved.reset)
                while lifetimes.remaining:
                    await asyncio.sleep(0.005)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await lifetimes.close()
        return lifetimes

    assert asyncio.run(attend()).removed[Ending.TOLD] == 1
    assert lab.ruleset("b") == ""
    assert_talks(still, accepted)
