"""A client that cannot be told goes on speaking to the old address: the node there passes it on."""

import asyncio
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from netfilter_lab import Lab, assert_talks, service_lab, tuple_of, wait_until

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.moves.caretaker import Caretaker
from mycoproxy.netfilter.anchor import TABLE, Anchors
from mycoproxy.netfilter.anchor_lifetimes import AnchorLifetimes
from mycoproxy.netfilter.conntrack import Conntrack
from mycoproxy.netfilter.hold import Hold
from mycoproxy.netfilter.rebind import Rebound, rebind, undo
from mycoproxy.netfilter.renamed import renamed_entry, untracked_entry
from mycoproxy.netfilter.translate import Move, Translate

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

VERSIONS = pytest.mark.parametrize("version", [4, 6])
CLOSE_TIMEOUT = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close")


@pytest.fixture
def lab(network: Any) -> Iterator[Lab]:
    """Nothing NATs in it, and nothing tracks connections."""
    with service_lab(network, nat=False) as made:
        yield made


@dataclass
class Anchored:
    """A client's connection that the router passes on to ``b``."""

    lab: Lab
    client: socket.socket
    server: socket.socket
    conntrack: Conntrack
    hold: Hold
    change: Rebound

    def reset(self) -> None:
        """The client resets it; soon conntrack knows it no more."""
        self.lab.router.call(CLOSE_TIMEOUT.write_text, "1")
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.client.close()
        wait_until(lambda: not self.entries(), "conntrack has forgotten it")

    def entries(self) -> object:
        return self.lab.router.call(self.conntrack.get, self.change.new.orig)


def _anchored(lab: Lab, version: int) -> Anchored:
    client, server = lab.connect(lab.listen("a", version), lab.address["a", version])
    assert_talks(client, server)
    name = tuple_of(server)
    new = lab.endpoint("b", version)
    anchors = Anchors(lab.nft["router"])
    own = lab.router.call(anchors.address_toward, new.address)
    assert own is not None
    anchor = Endpoint(own, name.remote.port)
    hold = Hold(lab.nft["router"], "anchor")
    conntrack = lab.on("router", Conntrack)
    lab.router.call(anchors.add, [name])
    lab.router.call(hold.install)
    entry = renamed_entry(untracked_entry(name), name, FourTuple(new, anchor))
    change = Rebound(None, entry)
    lab.router.call(rebind, conntrack, hold, [change])
    # In the workload's place it is the other end that is translated.
    there = Translate(lab.nft["b"])
    lab.b.call(there.add, [Move(FourTuple(name.remote, new), anchor)])
    return Anchored(lab, client, lab.move(server, "a", "b"), conntrack, hold, change)


@VERSIONS
def test_a_client_goes_on_through_its_anchor_also_where_nothing_was_tracked(
    lab: Lab, version: int
) -> None:
    anchored = _anchored(lab, version)
    client, moved = anchored.client, anchored.server
    assert moved.getpeername()[:2] == client.getsockname()[:2]
    assert_talks(client, moved, 1_000_000)
    assert client.getpeername()[0] == lab.address["a", version]
    lab.router.call(anchored.hold.release)
    assert TABLE in lab.ruleset("router")


async def _swept(lifetimes: AnchorLifetimes) -> int:
    await lifetimes.open()
    try:
        await lifetimes.sweep()
    finally:
        await lifetimes.close()
    return lifetimes.remaining


@VERSIONS
def test_what_anchoring_needs_stays_with_the_last_anchored_connection_and_then_goes(
    lab: Lab, version: int
) -> None:
    first, last = _anchored(lab, version), _anchored(lab, 10 - version)
    names = Anchors(lab.nft["router"])
    assert asyncio.run(_swept(AnchorLifetimes(lab.router.worker))) == 2
    first.reset()
    assert asyncio.run(_swept(AnchorLifetimes(lab.router.worker))) == 1
    assert lab.router.call(names.list) == [FourTuple(*reversed(last.change.new.orig))]
    assert_talks(last.client, last.server, 1_000_000)
    last.reset()
    moving = AnchorLifetimes(lab.router.worker, moving=lambda: frozenset({"10.9.9.9"}))
    assert asyncio.run(_swept(moving)) > 0
    assert TABLE in lab.ruleset("router")
    assert asyncio.run(_swept(AnchorLifetimes(lab.router.worker))) == 0
    assert TABLE not in lab.ruleset("router")
    assert asyncio.run(_swept(AnchorLifetimes(lab.router.worker))) == 0


def test_what_is_anchored_no_more_needs_nothing(lab: Lab) -> None:
    """It was undone: the connection is as it was."""
    anchored = _anchored(lab, 4)
    lab.router.call(undo, anchored.conntrack, anchored.hold, [anchored.change])
    assert asyncio.run(_swept(AnchorLifetimes(lab.router.worker))) == 0
    assert TABLE not in lab.ruleset("router")


def test_a_node_is_looked_after_until_nothing_is_anchored_there(lab: Lab) -> None:
    anchored = _anchored(lab, 4)

    async def scenario() -> None:
        caretaker = Caretaker(frozenset)
        caretaker.look_after(lab.router.path)
        await asyncio.sleep(2.5)  # longer than it looks at once
        assert caretaker.places == [lab.router.path]
        await asyncio.to_thread(assert_talks, anchored.client, anchored.server)
        await asyncio.to_thread(anchored.reset)
        caretaker.look_after(lab.router.path)  # as after another move
        async with asyncio.timeout(20):
            while caretaker.places:
                await asyncio.sleep(0.01)
        await caretaker.stop()

    asyncio.run(scenario())
    assert TABLE not in lab.ruleset("router")
