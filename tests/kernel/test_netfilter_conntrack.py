"""The conntrack codec against the kernel's own table."""

import errno
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from netfilter_lab import PORT, VIRTUAL, Lab, service_lab, tuple_of

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.netfilter import abi
from mycoproxy.netfilter.conntrack import Conntrack
from mycoproxy.netfilter.entry import ConntrackEntry, Direction, TcpTracking

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

VERSIONS = pytest.mark.parametrize("version", [4, 6])

STATUS = abi.IPS_CONFIRMED | abi.IPS_SEEN_REPLY | abi.IPS_ASSURED
BOTH_FLAGS = abi.IP_CT_TCP_FLAG_WINDOW_SCALE | abi.IP_CT_TCP_FLAG_BE_LIBERAL


@pytest.fixture
def lab(network: Any) -> Iterator[Lab]:
    with service_lab(network) as made:
        yield made


@pytest.fixture
def conntrack(lab: Lab) -> Conntrack:
    found: Conntrack = lab.on("router", Conntrack)
    return found


def _made_up(version: int, number: int = 0, **changes: Any) -> ConntrackEntry:
    prefix = "10.1.0." if version == 4 else "fd01::"
    client = Endpoint(f"{prefix}1", 40000 + number)
    orig = Direction(client, Endpoint(f"{prefix}2", 80))
    reply = Direction(Endpoint(f"{prefix}3", 8080), client)
    entry = ConntrackEntry(
        orig=orig,
        reply=reply,
        status=STATUS,
        timeout=3000,
        tcp=TcpTracking(abi.TCP_CONNTRACK_ESTABLISHED, (7, 9), (BOTH_FLAGS, BOTH_FLAGS)),
    )
    return replace(entry, **changes)


@VERSIONS
def test_a_connection_through_a_service_is_found_by_the_workloads_name(
    lab: Lab, conntrack: Conntrack, version: int
) -> None:
    client, server = lab.connect(lab.listen("a", version), VIRTUAL[version])
    name = tuple_of(server)
    stranger = name._replace(remote=Endpoint(name.remote.address, 1))
    found = lab.router.call(conntrack.find, [name, stranger])
    assert list(found) == [name]
    entry = found[name]
    assert entry.has_nat
    assert entry.workload == name
    assert entry.orig == Direction(
        Endpoint(*client.getsockname()[:2]), Endpoint(VIRTUAL[version], PORT)
    )
    assert entry.tcp is not None
    assert entry.tcp.state == abi.TCP_CONNTRACK_ESTABLISHED
    assert all(flags & abi.IP_CT_TCP_FLAG_WINDOW_SCALE for flags in entry.tcp.flags)
    assert all(entry.tcp.wscale)
    assert entry.status & STATUS == STATUS
    assert entry.timeout > 3600
    assert lab.router.call(conntrack.get, entry.orig) is not None
    assert lab.router.call(conntrack.get, entry.reply) is None


@VERSIONS
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mark": 0x1234},
        {"zone": 7},
        {"labels": b"\x05" + bytes(15)},
        {"tcp": TcpTracking(4, (0, 0), (abi.IP_CT_TCP_FLAG_BE_LIBERAL,) * 2)},
    ],
    ids=["plain", "mark", "zone", "labels", "half closed"],
)
def test_an_inserted_entry_comes_back_as_it_went_in(
    lab: Lab, conntrack: Conntrack, version: int, changes: dict[str, Any]
) -> None:
    if "labels" in changes:  # labels exist only where a rule uses them
        lab.run("router", "add table inet l\nadd chain inet l c\nadd rule inet l c ct label set 1")
    wanted = _made_up(version, **changes)
    assert lab.router.call(conntrack.insert, [wanted]) == [0]
    found = lab.router.call(conntrack.get, wanted.orig, zone=wanted.zone)
    assert found is not None
    assert found.status & abi.IPS_DST_NAT
    assert abs(found.timeout - wanted.timeout) <= 2
    assert replace(found, status=STATUS, timeout=wanted.timeout) == wanted
    assert lab.router.call(conntrack.delete, [wanted]) == [0]
    assert lab.router.call(conntrack.get, wanted.orig, zone=wanted.zone) is None
    assert lab.router.call(conntrack.delete, [wanted]) == [errno.ENOENT]


@VERSIONS
def test_source_and_destination_nat_are_inserted_together(
    lab: Lab, conntrack: Conntrack, version: int
) -> None:
    plain = _made_up(version)
    outside = Endpoint("10.1.0.9" if version == 4 else "fd01::9", 50000)
    wanted = replace(plain, reply=Direction(plain.reply.source, outside))
    assert lab.router.call(conntrack.insert, [wanted]) == [0]
    found = lab.router.call(conntrack.get, wanted.orig)
    assert found is not None
    assert found.reply == wanted.reply
    assert found.status & abi.IPS_DST_NAT
    assert found.status & abi.IPS_SRC_NAT


def test_inserting_twice_is_refused_and_replacing_is_not(lab: Lab, conntrack: Conntrack) -> None:
    entry = _made_up(4)
    assert lab.router.call(conntrack.insert, [entry, entry]) == [0, errno.EEXIST]
    new = replace(entry, reply=Direction(Endpoint("10.1.0.4", 8080), entry.reply.destination))
    assert lab.router.call(conntrack.replace, [(entry, new)]) == [0]
    found = lab.router.call(conntrack.get, entry.orig)
    assert found is not None
    assert found.reply == new.reply
    gone = _made_up(4, number=1)
    assert lab.router.call(conntrack.replace, [(gone, gone)]) == [0]


@VERSIONS
def test_many_entries_are_found_and_listed(lab: Lab, conntrack: Conntrack, version: int) -> None:
    wanted = [_made_up(version, number) for number in range(2000)]
    assert set(lab.router.call(conntrack.insert, wanted)) == {0}
    names = [entry.workload for entry in wanted]
    found = lab.router.call(conntrack.find, names)
    assert list(found) == names
    workload = wanted[0].reply.source
    other = Endpoint("10.1.0.3" if version == 4 else "fd01::4", 8081)
    assert len(lab.router.call(conntrack.dump, version=version)) == 2000
    assert len(lab.router.call(conntrack.dump, version=version, workload=workload)) == 2000
    assert lab.router.call(conntrack.dump, version=version, workload=other) == []
    assert lab.router.call(conntrack.dump, version=10 - version) == []
    assert lab.router.call(conntrack.dump, version=version, zone=3) == []


def test_a_mapped_name_is_found_as_ipv4(lab: Lab, conntrack: Conntrack) -> None:
    entry = _made_up(4)
    lab.router.call(conntrack.insert, [entry])
    local, remote = entry.workload
    mapped = FourTuple(
        Endpoint(f"::ffff:{local.address}", local.port),
        Endpoint(f"::ffff:{remote.address}", remote.port),
    )
    assert list(lab.router.call(conntrack.find, [mapped])) == [mapped]
