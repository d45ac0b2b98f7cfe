"""The checkpoint's connection: made between two nodes, or refused in time."""

import os
import socket

import pytest
from conftest import Link, Network

from migrate.runtime.channel import connect
from mycoproxy.errors import RefusedError

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]


@pytest.mark.parametrize("version", [4, 6])
def test_a_connection_is_made_between_two_nodes(netns_pair: Link, version: int) -> None:
    address = netns_pair.address("right", version)
    ours, theirs = connect(netns_pair.left.worker, netns_pair.right.worker, address)
    with ours, theirs:
        assert ours.getpeername()[0] == address
        assert theirs.getpeername()[0] == netns_pair.address("left", version)
        assert ours.getsockname()[1] == theirs.getpeername()[1]
        for end in (ours, theirs):
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert end.gettimeout() is None


def test_without_a_route_the_target_is_unreachable(network: Network) -> None:
    a, b, c = network.node("a"), network.node("b"), network.node("c")
    network.link(a, b)
    other = network.link(b, c)
    with pytest.raises(RefusedError, match=f"unreachable.*{other.right_v4}") as refused:
        connect(a.worker, c.worker, other.right_v4, timeout=0.5)
    assert refused.value.exit_status == 3


def test_over_a_link_that_is_down_the_target_is_unreachable(netns_pair: Link) -> None:
    netns_pair.right.link_state(netns_pair.right_ifname, "down")
    # The address stays on the interface, so the target can listen; nobody gets there.
    with pytest.raises(RefusedError, match="unreachable"):
        connect(netns_pair.left.worker, netns_pair.right.worker, netns_pair.right_v4, timeout=0.5)


def test_an_address_of_another_node_is_refused(netns_pair: Link) -> None:
    with pytest.raises(RefusedError, match="no address of the target node"):
        connect(netns_pair.left.worker, netns_pair.right.worker, netns_pair.left_v4, timeout=0.5)


def test_a_refused_connection_leaves_no_descriptor_open(netns_pair: Link) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    netns_pair.right.link_state(netns_pair.right_ifname, "down")
    before = count()
    with pytest.raises(RefusedError):
        connect(netns_pair.left.worker, netns_pair.right.worker, netns_pair.right_v4, timeout=0.2)
    assert count() == before


def test_whoever_else_connects_is_not_taken_for_the_source(netns_pair: Link) -> None:
    """A stranger's connection that is first in the queue is passed over."""
    listening = socket.create_server

    def with_a_stranger(address: tuple[str, int], **options: int) -> socket.socket:
        listener = listening(address, family=options["family"], backlog=5)
        strangers.append(socket.create_connection(listener.getsockname()[:2]))
        return listener

    strangers: list[socket.socket] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "create_server", with_a_stranger)
        ours, theirs = connect(netns_pair.left.worker, netns_pair.right.worker, netns_pair.right_v4)
    with ours, theirs, strangers[0]:
        assert theirs.getpeername() == ours.getsockname()
