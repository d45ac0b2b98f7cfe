"""The exact lookup of a socket by its 4-tuple."""

import socket

import pytest

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.sockdiag import SocketLookup


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_connection_is_found_by_either_of_its_ends_and_a_listener_is_not(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server((host, 0), family=family) as listener,
        socket.create_connection(listener.getsockname()[:2]) as client,
        SocketLookup() as lookup,
    ):
        near, far = Endpoint(*client.getsockname()[:2]), Endpoint(*listener.getsockname()[:2])
        name, mirrored = FourTuple(near, far), FourTuple(far, near)
        nobody = FourTuple(far, Endpoint(host, 1))
        assert lookup.connected([name, mirrored, nobody]) == {name, mirrored}


def test_an_ipv4_mapped_name_is_looked_up_as_ipv4() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        SocketLookup() as lookup,
    ):
        mapped = FourTuple(
            Endpoint("::ffff:127.0.0.1", client.getsockname()[1]),
            Endpoint("::ffff:127.0.0.1", listener.getsockname()[1]),
        )
        assert lookup.connected([mapped]) == {mapped}
