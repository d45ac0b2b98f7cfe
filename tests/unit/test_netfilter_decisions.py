"""What becomes of entries and translations, and which node does what: pure functions."""

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.errors import MycoError
from mycoproxy.netfilter import abi
from mycoproxy.netfilter.entry import ConntrackEntry, Direction, TcpTracking
from mycoproxy.netfilter.paths import Path, Standpoint, choose_path
from mycoproxy.netfilter.renamed import moved_entry, plain_entry, renamed_entry, untracked_entry
from mycoproxy.netfilter.translate import Move, compose

CLIENT = Endpoint("192.0.2.1", 40000)
NODE = Endpoint("192.0.2.9", 51000)
VIRTUAL = Endpoint("10.96.0.1", 443)
A, B, C = (Endpoint(f"10.0.{n}.1", 80) for n in range(3))
WSCALE, SACK, LIBERAL, MAXACK = (
    abi.IP_CT_TCP_FLAG_WINDOW_SCALE,
    abi.IP_CT_TCP_FLAG_SACK_PERM,
    abi.IP_CT_TCP_FLAG_BE_LIBERAL,
    0x20,
)

THROUGH_SERVICE = ConntrackEntry(
    orig=Direction(CLIENT, VIRTUAL),
    reply=Direction(A, NODE),
    status=0xFFFF,
    timeout=86000,
    tcp=TcpTracking(abi.TCP_CONNTRACK_ESTABLISHED, (7, 9), (WSCALE | SACK | MAXACK, WSCALE)),
    mark=3,
    zone=4,
    labels=bytes(16),
)
DIRECT = replace(THROUGH_SERVICE, orig=Direction(CLIENT, A), reply=Direction(A, CLIENT))
OUTGOING = replace(THROUGH_SERVICE, orig=Direction(A, CLIENT), reply=Direction(CLIENT, A))


def rebound(entry: ConntrackEntry) -> ConntrackEntry:
    """``entry`` once its workload has gone from A to B."""
    return renamed_entry(entry, FourTuple(A, NODE), FourTuple(B, NODE))


def test_a_rebound_entry_changes_only_who_answers() -> None:
    new = rebound(THROUGH_SERVICE)
    assert new.orig == THROUGH_SERVICE.orig
    assert new.reply == Direction(B, NODE)
    kept = ("mark", "zone", "labels", "timeout")
    assert all(getattr(new, name) == getattr(THROUGH_SERVICE, name) for name in kept)
    assert new.status == abi.IPS_CONFIRMED | abi.IPS_SEEN_REPLY | abi.IPS_ASSURED
    assert new.tcp == TcpTracking(
        abi.TCP_CONNTRACK_ESTABLISHED, (7, 9), (WSCALE | SACK | LIBERAL, WSCALE | LIBERAL)
    )


@pytest.mark.parametrize(
    ("state", "wanted"), [(1, 3), (2, 3), (3, 3), (4, 4), (5, 5), (7, 7), (8, 3), (9, 3)]
)
def test_half_closed_states_are_kept_and_embryonic_ones_are_not(state: int, wanted: int) -> None:
    new = rebound(replace(THROUGH_SERVICE, tcp=TcpTracking(state)))
    assert new.tcp is not None
    assert new.tcp.state == wanted


def test_an_entry_about_to_expire_outlives_the_move() -> None:
    assert rebound(replace(THROUGH_SERVICE, timeout=1)).timeout >= 60


def test_a_mapped_new_address_is_ipv4_in_the_entry() -> None:
    mapped = FourTuple(Endpoint("::ffff:10.0.1.1", 80), NODE)
    assert renamed_entry(THROUGH_SERVICE, FourTuple(A, NODE), mapped).reply.source == B


def test_an_entry_of_another_connection_is_not_renamed() -> None:
    with pytest.raises(MycoError, match="is not the workload's side"):
        renamed_entry(THROUGH_SERVICE, FourTuple(C, NODE), FourTuple(B, NODE))


def test_what_the_workload_opened_through_nat_gets_another_beginning() -> None:
    opened = replace(OUTGOING, orig=Direction(A, VIRTUAL), reply=Direction(C, NODE))
    anchored = renamed_entry(opened, FourTuple(A, VIRTUAL), FourTuple(B, NODE))
    assert (anchored.orig, anchored.reply) == (Direction(B, NODE), Direction(C, NODE))


def test_a_carried_entry_has_the_new_address_wherever_the_old_one_was() -> None:
    opened = replace(OUTGOING, orig=Direction(A, VIRTUAL), reply=Direction(C, A))
    carried = moved_entry(opened, {A.address: B.address})
    assert (carried.orig, carried.reply) == (Direction(B, VIRTUAL), Direction(C, B))
    to_itself = replace(OUTGOING, orig=Direction(A, VIRTUAL), reply=Direction(A, NODE))
    carried = moved_entry(to_itself, {A.address: B.address})
    assert (carried.orig, carried.reply) == (Direction(B, VIRTUAL), Direction(B, NODE))


def test_a_plain_entry_knows_who_opened_the_connection() -> None:
    old, new = FourTuple(A, CLIENT), FourTuple(B, CLIENT)
    inbound = plain_entry(DIRECT, old, new)
    assert inbound.orig == Direction(CLIENT, B)
    assert not inbound.has_nat
    outbound = plain_entry(OUTGOING, old, new)
    assert outbound.orig == Direction(B, CLIENT)
    assert not outbound.has_nat


def test_an_untracked_connection_gets_an_entry_that_lasts() -> None:
    entry = untracked_entry(FourTuple(A, CLIENT))
    assert (entry.orig, entry.has_nat) == (Direction(CLIENT, A), False)
    anchored = renamed_entry(entry, FourTuple(A, CLIENT), FourTuple(B, NODE))
    assert (anchored.orig, anchored.reply) == (Direction(CLIENT, A), Direction(B, NODE))
    assert anchored.timeout > 24 * 3600


ELSEWHERE = B._replace(port=B.port + 1)


def _name(local: Endpoint, remote: Endpoint = CLIENT) -> FourTuple:
    return FourTuple(local, remote)


def test_moves_of_one_connection_become_one_translation() -> None:
    once = compose({}, [Move(_name(A), B)])
    assert once == {_name(A): B}
    twice = compose(once, [Move(_name(B), C)])
    assert twice == {_name(A): C}
    assert compose(twice, [Move(_name(C), A)]) == {}


def test_several_moves_at_once_follow_each_other() -> None:
    moves = [Move(_name(A), B), Move(_name(B), C)]
    assert compose({}, moves) == {_name(A): C}


def test_other_connections_are_left_alone() -> None:
    other = _name(A, Endpoint("192.0.2.2", 40000))
    current = {other: B}
    assert compose(current, [Move(_name(A), C)]) == {
        other: B,
        _name(A): C,
    }
    assert current == {other: B}


def test_moving_to_where_it_is_changes_nothing() -> None:
    assert compose({}, [Move(_name(A), A)]) == {}
    assert compose({_name(A): B}, [Move(_name(B), B)]) == {_name(A): B}


def test_mapped_addresses_are_translated_as_ipv4() -> None:
    mapped = FourTuple(
        Endpoint("::ffff:10.0.0.1", 80), Endpoint(f"::ffff:{CLIENT.address}", CLIENT.port)
    )
    assert compose({}, [Move(mapped, Endpoint("::ffff:10.0.1.1", 80))]) == {_name(A): B}


def test_a_port_may_change_with_the_address_and_alone() -> None:
    once = compose({}, [Move(_name(A), ELSEWHERE)])
    assert once == {_name(A): ELSEWHERE}
    assert compose(once, [Move(_name(ELSEWHERE), B)]) == {_name(A): B}
    assert compose(once, [Move(_name(B), C)]) == {_name(A): ELSEWHERE, _name(B): C}
    assert compose(once, [Move(_name(ELSEWHERE), A)]) == {}


@given(st.lists(st.sampled_from([A, B, C, ELSEWHERE])))
def test_any_journey_is_one_translation_and_can_be_undone(stops: list[Endpoint]) -> None:
    translations: dict[FourTuple, Endpoint] = {}
    here, moves = A, []
    for stop in stops:
        moves.append(Move(_name(here), stop))
        translations = compose(translations, moves[-1:])
        here = stop
        assert translations == ({} if here == A else {_name(A): here})
    for move in reversed(moves):
        translations = compose(translations, [move.reversed()])
    assert translations == {}


AT_SERVICE = _name(A, NODE)  # what the workload sees behind this entry's source NAT
LOCAL_POLICY = replace(THROUGH_SERVICE, reply=Direction(A, CLIENT))  # no source NAT
OPENED_VIRTUAL = replace(OUTGOING, orig=Direction(A, VIRTUAL), reply=Direction(C, A))
MASQUERADED = replace(OUTGOING, orig=Direction(A, CLIENT), reply=Direction(CLIENT, NODE))
TO_ITSELF = replace(OUTGOING, orig=Direction(A, VIRTUAL), reply=Direction(A, NODE))
HOME = Standpoint(home=True, behind=())
STRANGER = Standpoint(behind=())
POD_HOST = Standpoint(behind=(ipaddress.ip_network("192.0.2.0/24"),))


@pytest.mark.parametrize(
    ("connection", "entry", "addresses", "standpoint", "wanted"),
    [
        pytest.param(AT_SERVICE, THROUGH_SERVICE, [], STRANGER, Path.REBIND, id="masquerade"),
        pytest.param(
            AT_SERVICE, THROUGH_SERVICE, [NODE.address], STRANGER, Path.REBIND, id="nat wins"
        ),
        pytest.param(_name(A), LOCAL_POLICY, [], STRANGER, Path.ANCHOR, id="client outside"),
        pytest.param(_name(A), LOCAL_POLICY, [], POD_HOST, Path.REBIND, id="client behind"),
        pytest.param(_name(A), LOCAL_POLICY, [], Standpoint(), Path.REBIND, id="router"),
        pytest.param(_name(A), LOCAL_POLICY, [], HOME, Path.ANCHOR, id="entered at home"),
        pytest.param(_name(A), None, [CLIENT.address], STRANGER, Path.TRANSLATE, id="client"),
        pytest.param(
            _name(A), DIRECT, [CLIENT.address], HOME, Path.TRANSLATE, id="tracked client at home"
        ),
        pytest.param(_name(A), DIRECT, ["192.0.2.77"], STRANGER, Path.ADMIT, id="forwarder"),
        pytest.param(_name(A), OUTGOING, [], STRANGER, Path.ADMIT, id="opened by workload"),
        pytest.param(_name(A), DIRECT, [], HOME, Path.NOTHING, id="home, not on the new path"),
        pytest.param(_name(A), None, ["192.0.2.77"], STRANGER, Path.NOTHING, id="stranger"),
        pytest.param(_name(A), THROUGH_SERVICE, [], STRANGER, Path.NOTHING, id="another's entry"),
        pytest.param(_name(A, VIRTUAL), OPENED_VIRTUAL, [], HOME, Path.CARRY, id="to a Service"),
        pytest.param(
            _name(A, VIRTUAL), OPENED_VIRTUAL, [], STRANGER, Path.REBIND, id="anchored here"
        ),
        pytest.param(_name(A), MASQUERADED, [], HOME, Path.ANCHOR, id="masqueraded at home"),
        pytest.param(_name(A, VIRTUAL), TO_ITSELF, [], HOME, Path.CARRY, id="to itself, opener"),
        pytest.param(AT_SERVICE, TO_ITSELF, [], HOME, Path.CARRY, id="to itself, listener"),
    ],
)
def test_a_node_does_what_its_place_on_the_path_allows(
    connection: FourTuple,
    entry: ConntrackEntry | None,
    addresses: list[str],
    standpoint: Standpoint,
    wanted: Path,
) -> None:
    found = choose_path(
        connection,
        addresses={A.address: B.address},
        entry=entry,
        local_addresses=addresses,
        standpoint=standpoint,
    )
    assert found is wanted


@pytest.mark.parametrize("new", [A.address, "203.0.113.1"])
def test_an_address_that_is_kept_needs_nothing_elsewhere(new: str) -> None:
    addresses = {A.address if new == A.address else "203.0.113.9": new}
    found = choose_path(
        _name(A), addresses=addresses, entry=DIRECT, local_addresses=[CLIENT.address]
    )
    assert found is Path.NOTHING


def test_a_mapped_client_is_recognized_by_its_ipv4_address() -> None:
    mapped = FourTuple(
        Endpoint("::ffff:10.0.0.1", 80), Endpoint(f"::ffff:{CLIENT.address}", CLIENT.port)
    )
    chosen = choose_path(
        mapped, addresses={A.address: B.address}, entry=None, local_addresses=[CLIENT.address]
    )
    assert chosen is Path.TRANSLATE
