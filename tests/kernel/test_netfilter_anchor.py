"""A client that cannot be told goes on speaking to the old address: the node there passes it on."""

from collections.abc import Iterator
from typing import Any

import pytest
from netfilter_lab import Lab, assert_talks, service_lab, tuple_of

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.netfilter.anchor import TABLE, Anchors
from mycoproxy.netfilter.conntrack import Conntrack
from mycoproxy.netfilter.hold import Hold
from mycoproxy.netfilter.rebind import Rebound, rebind
from mycoproxy.netfilter.renamed import renamed_entry, untracked_entry
from mycoproxy.netfilter.translate import Move, Translate

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]


@pytest.fixture
def lab(network: Any) -> Iterator[Lab]:
    """Nothing NATs in it, and nothing tracks connections."""
    with service_lab(network, nat=False) as made:
        yield made


@pytest.mark.parametrize("version", [4, 6])
def test_a_client_goes_on_through_its_anchor_also_where_nothing_was_tracked(
    lab: Lab, version: int
) -> None:
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
    lab.router.call(anchors.install)
    lab.router.call(hold.install)
    entry = renamed_entry(untracked_entry(name), name, FourTuple(new, anchor))
    lab.router.call(rebind, conntrack, hold, [Rebound(None, entry)])
    # In the workload's place it is the other end that is translated.
    there = Translate(lab.nft["b"])
    lab.b.call(there.add, [Move(FourTuple(name.remote, new), anchor)])
    moved = lab.move(server, "a", "b")
    assert moved.getpeername()[:2] == tuple(name.remote)
    assert_talks(client, moved, 1_000_000)
    assert client.getpeername()[0] == lab.address["a", version]
    lab.router.call(hold.release)
    assert TABLE in lab.ruleset("router")
