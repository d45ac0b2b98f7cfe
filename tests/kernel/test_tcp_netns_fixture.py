"""The namespaces that the kernel tests stand on carry TCP in both families."""

import socket
from typing import Any

import pytest

pytestmark = [pytest.mark.root, pytest.mark.timeout(20)]


@pytest.mark.parametrize("version", [4, 6])
def test_a_pair_carries_tcp(netns_pair: Any, version: int) -> None:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    address = netns_pair.address("right", version)
    with (
        netns_pair.right.call(socket.create_server, (address, 0), family=family) as server,
        netns_pair.left.call(socket.socket, family, socket.SOCK_STREAM) as client,
    ):
        client.settimeout(5)
        client.connect(server.getsockname())
        assert client.getsockname()[0] == netns_pair.address("left", version)
