"""Holding connections and shielding namespaces, with real connections and real data."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from netfilter_lab import (
    PORT,
    VIRTUAL,
    Lab,
    assert_talks,
    attempts,
    readable,
    receive,
    service_lab,
    total_retransmissions,
    tuple_of,
    wait_until,
)

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.netfilter.hold import Hold
from mycoproxy.netfilter.shield import Shield

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

VERSIONS = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture
def lab(network: Any) -> Iterator[Lab]:
    with service_lab(network) as made:
        yield made


def _hold(lab: Lab, name: str) -> Hold:
    hold = Hold(lab.nft[name], "test")
    lab.node(name).call(hold.install)
    return hold


def _arrives_not(sender: socket.socket, receiver: socket.socket, data: bytes) -> None:
    """``data`` is sent again, so it was lost, and nothing has come."""
    before = attempts(sender)
    sender.sendall(data)
    wait_until(lambda: attempts(sender) > before, "data is sent again")
    assert not readable(receiver)


@VERSIONS
@pytest.mark.parametrize("where", ["a", "router"])
def test_a_held_connection_is_silent_both_ways_and_others_go_on(
    lab: Lab, version: int, where: str
) -> None:
    listener = lab.listen("a", version)
    client, server = lab.connect(listener, lab.address["a", version])
    other_client, other_server = lab.connect(listener, lab.address["a", version])
    hold = _hold(lab, where)
    assert_talks(client, server)

    lab.node(where).call(hold.hold, [tuple_of(server)])
    _arrives_not(client, server, b"in")
    _arrives_not(server, client, b"out")
    assert_talks(other_client, other_server)

    lab.node(where).call(hold.release)
    assert receive(server, 2) == b"in"
    assert receive(client, 3) == b"out"
    assert_talks(client, server)
    assert "mycoproxy" not in lab.ruleset(where)


def test_a_mapped_address_is_held_as_ipv4(lab: Lab) -> None:
    listener = lab.a.call(
        socket.create_server, ("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True
    )
    lab.keep(listener)
    client, server = lab.connect(listener, lab.address["a", 4])
    assert server.getpeername()[0].startswith("::ffff:")
    hold = _hold(lab, "a")
    lab.a.call(hold.hold, [tuple_of(server)])
    _arrives_not(client, server, b"x")
    lab.a.call(hold.release)
    assert receive(server, 1) == b"x"


def test_connections_of_both_families_are_held_at_once(lab: Lab) -> None:
    pairs = [lab.connect(lab.listen("a", version), lab.address["a", version]) for version in (4, 6)]
    hold = _hold(lab, "a")
    flows = [tuple_of(server) for _, server in pairs]
    assert lab.a.call(hold.hold, flows) == flows
    assert lab.a.call(hold.hold, flows) == []
    for client, server in pairs:
        _arrives_not(client, server, b"x")
    lab.a.call(hold.let_go, flows[:1])
    assert receive(pairs[0][1], 1) == b"x"
    assert not readable(pairs[1][1])
    lab.a.call(hold.release)
    assert receive(pairs[1][1], 1) == b"x"


def test_release_may_be_called_again_and_after_a_crash(lab: Lab) -> None:
    hold = _hold(lab, "a")
    lab.a.call(hold.hold_new, [Endpoint("0.0.0.0", 6)])
    again = Hold(lab.nft["a"], "test")  # a new process knows nothing of the old one's sets
    lab.a.call(again.install)
    assert "elements" not in lab.run("a", f"list set inet {again.table} newport")
    lab.a.call(again.release)
    lab.a.call(again.release)
    lab.a.call(again.release_new)
    assert lab.ruleset("a") == ""


@VERSIONS
@pytest.mark.parametrize("wanted", ["address", "unspecified"])
def test_all_of_a_listener_is_held_and_the_rest_goes_on(
    lab: Lab, version: int, wanted: str
) -> None:
    listener = lab.listen("a", version)
    client, server = lab.connect(listener, lab.address["a", version])
    outside = lab.listen("client", version)
    hold = _hold(lab, "a")
    at = lab.endpoint("a", version)
    if wanted == "unspecified":
        at = Endpoint("0.0.0.0" if version == 4 else "::", PORT)
    lab.a.call(lambda: hold.hold([], listeners=[at, at]))

    _arrives_not(client, server, b"x")
    _arrives_not(server, client, b"y")
    # What the workload opens itself is none of this.
    lab.dial(lab.address["client", version], name="a")
    outside.accept()[0].close()

    lab.a.call(hold.let_go_listeners)
    assert receive(server, 1) == b"x"
    assert receive(client, 1) == b"y"


@VERSIONS
@pytest.mark.parametrize("wanted", ["address", "unspecified"])
def test_new_connections_wait_and_live_ones_go_on(lab: Lab, version: int, wanted: str) -> None:
    listener = lab.listen("a", version)
    client, server = lab.connect(listener, lab.address["a", version])
    outside = lab.listen("client", version)
    hold = _hold(lab, "a")
    ports = {
        "address": [lab.endpoint("a", version)],
        "unspecified": [Endpoint("0.0.0.0" if version == 4 else "::", PORT)],
    }[wanted]
    lab.a.call(hold.hold_new, ports)

    late = lab.client.call(socket.socket, listener.family, socket.SOCK_STREAM)
    lab.keep(late)
    late.setblocking(False)
    late.connect_ex((lab.address["a", version], PORT))
    wait_until(lambda: total_retransmissions(late) > 0, "the SYN is sent again")
    assert not readable(listener)
    assert_talks(client, server)
    # What the workload opens itself is none of this.
    lab.dial(lab.address["client", version], name="a")
    outside.accept()[0].close()

    lab.a.call(hold.release_new)
    assert readable(listener, 10)
    listener.accept()[0].close()
    lab.a.call(hold.release)
    assert lab.ruleset("a") == ""


@VERSIONS
def test_a_shield_lets_nothing_in_or_out_and_no_tcp_over_loopback(lab: Lab, version: int) -> None:
    listener = lab.listen("b", version)
    loopback = "127.0.0.1" if version == 4 else "::1"
    inside = lab.listen("b", version, address=loopback)
    client, server = lab.connect(listener, lab.address["b", version])
    shield = Shield(lab.nft["b"], "test")
    lab.b.call(shield.raise_)
    lab.b.call(shield.raise_)
    _arrives_not(client, server, b"in")
    _arrives_not(server, client, b"out")
    own = lab.keep(lab.b.call(socket.socket, inside.family))
    own.setblocking(False)
    own.connect_ex(inside.getsockname())
    wait_until(lambda: total_retransmissions(own) > 0, "the SYN is sent again")
    assert not readable(inside)
    lab.b.call(shield.lift)
    lab.b.call(shield.lift)
    assert receive(server, 2) == b"in"
    assert receive(client, 3) == b"out"
    assert readable(inside, 10)
    inside.accept()[0].close()
    assert lab.ruleset("b") == ""


@VERSIONS
def test_a_shielded_namespace_answers_no_segment_with_a_reset(lab: Lab, version: int) -> None:
    shield = Shield(lab.nft["b"], "test")
    lab.b.call(shield.raise_)
    late = lab.client.call(
        socket.socket, socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_STREAM
    )
    lab.keep(late)
    late.setblocking(False)
    late.connect_ex((lab.address["b", version], PORT))  # nobody listens: a reset without shield
    wait_until(lambda: total_retransmissions(late) > 0, "the SYN is sent again")
    assert late.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_a_hold_on_the_router_takes_the_names_before_nat(lab: Lab) -> None:
    client, server = lab.connect(lab.listen("a", 4), VIRTUAL[4])
    hold = _hold(lab, "router")
    seen = tuple_of(server)
    lab.router.call(hold.hold, [FourTuple(Endpoint(VIRTUAL[4], PORT), seen.remote)])
    _arrives_not(client, server, b"in")
    lab.router.call(hold.hold, [seen])
    _arrives_not(server, client, b"out")
    lab.router.call(hold.release)
    assert receive(server, 2) == b"in"
    assert receive(client, 3) == b"out"
