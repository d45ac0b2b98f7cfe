"""What becomes of entries and translations, and which node does what: pure functions."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.errors import MycoError
from mycoproxy.netfilter import abi
from mycoproxy.netfilter.entry import ConntrackEntry, Direction, TcpTracking
from mycoproxy.netfilter.paths import Path, choose_path
from mycoproxy.netfilter.rebind import admitted_entry, rebound_entry
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


def test_a_rebound_entry_changes_only_who_answers() -> None:
    new = rebound_entry(THROUGH_SERVICE, B)
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
    new = rebound_entry(replace(THROUGH_SERVICE, tcp=TcpTracking(state)), B)
    assert new.tcp is not None
    assert new.tcp.state == wanted


def test_an_entry_about_to_expire_outlives_the_move() -> None:
    assert rebound_entry(replace(THROUGH_SERVICE, timeout=1), B).timeout >= 60


def test_a_mapped_new_address_is_ipv4_in_the_entry() -> None:
    new = rebound_entry(THROUGH_SERVICE, Endpoint("::ffff:10.0.1.1", 80))
    assert new.reply.source == B


def test_an_admitted_entry_has_the_new_address_on_the_workloads_side() -> None:
    inbound = admitted_entry(DIRECT, {A: B})
    assert inbound.orig == Direction(CLIENT, B)
    assert not inbound.has_nat
    outbound = admitted_entry(OUTGOING, {A: B})
    assert outbound.orig == Direction(B, CLIENT)
    assert not outbound.has_nat
    with pytest.raises(MycoError, match=r"no new address was given for 10\.0\.0\.1:80"):
        admitted_entry(DIRECT, {C: B})


def _name(local: Endpoint, remote: Endpoint = CLIENT) -> FourTuple:
    return FourTuple(local, remote)


def test_moves_of_one_connection_become_one_translation() -> None:
    once = compose({}, [Move(_name(A), B.address)])
    assert once == {_name(A): B.address}
    twice = compose(once, [Move(_name(B), C.address)])
    assert twice == {_name(A): C.address}
    assert compose(twice, [Move(_name(C), A.address)]) == {}


def test_several_moves_at_once_follow_each_other() -> None:
    moves = [Move(_name(A), B.address), Move(_name(B), C.address)]
    assert compose({}, moves) == {_name(A): C.address}


def test_other_connections_are_left_alone() -> None:
    other = _name(A, Endpoint("192.0.2.2", 40000))
    current = {other: B.address}
    assert compose(current, [Move(_name(A), C.address)]) == {
        other: B.address,
        _name(A): C.address,
    }
    assert current == {other: B.address}


def test_moving_to_where_it_is_changes_nothing() -> None:
    assert compose({}, [Move(_name(A), A.address)]) == {}
    assert compose({_name(A): B.address}, [Move(_name(B), B.address)]) == {_name(A): B.address}


def test_mapped_addresses_are_translated_as_ipv4() -> None:
    mapped = FourTuple(
        Endpoint("::ffff:10.0.0.1", 80), Endpoint(f"::ffff:{CLIENT.address}", CLIENT.port)
    )
    assert compose({}, [Move(mapped, "::ffff:10.0.1.1")]) == {_name(A): B.address}


@given(st.lists(st.sampled_from([A, B, C])))
def test_any_journey_is_one_translation_and_can_be_undone(stops: list[Endpoint]) -> None:
    translations: dict[FourTuple, str] = {}
    here, moves = A, []
    for stop in stops:
        moves.append(Move(_name(here), stop.address))
        translations = compose(translations, moves[-1:])
        here = stop
        assert translations == ({} if here == A else {_name(A): here.address})
    for move in reversed(moves):
        translations = compose(translations, [move.reversed()])
    assert translations == {}


AT_SERVICE = _name(A, NODE)  # what the workload sees behind this entry's source NAT


@pytest.mark.parametrize(
    ("connection", "new", "entry", "addresses", "wanted"),
    [
        pytest.param(AT_SERVICE, "10.0.1.1", THROUGH_SERVICE, [], Path.REBIND, id="nat here"),
        pytest.param(
            AT_SERVICE, "10.0.1.1", THROUGH_SERVICE, [NODE.address], Path.REBIND, id="nat wins"
        ),
        pytest.param(_name(A), "10.0.1.1", None, [CLIENT.address], Path.TRANSLATE, id="client"),
        pytest.param(
            _name(A), "10.0.1.1", DIRECT, [CLIENT.address], Path.TRANSLATE, id="tracked client"
        ),
        pytest.param(_name(A), "10.0.1.1", DIRECT, ["192.0.2.77"], Path.ADMIT, id="forwarder"),
        pytest.param(_name(A), "10.0.1.1", OUTGOING, [], Path.ADMIT, id="opened by workload"),
        pytest.param(_name(A), "10.0.1.1", None, ["192.0.2.77"], Path.NOTHING, id="stranger"),
        pytest.param(_name(A), "10.0.1.1", THROUGH_SERVICE, [], Path.NOTHING, id="another's entry"),
        pytest.param(_name(A), A.address, DIRECT, [CLIENT.address], Path.NOTHING, id="kept"),
        pytest.param(_name(A), f"::ffff:{A.address}", DIRECT, [], Path.NOTHING, id="kept, mapped"),
        pytest.param(
            _name(NODE, A),
            "10.0.1.1",
            replace(THROUGH_SERVICE, orig=Direction(NODE, A), reply=Direction(B, NODE)),
            [],
            Path.NOTHING,
            id="opened by workload through nat",
        ),
    ],
)
def test_a_node_does_what_its_place_on_the_path_allows(
    connection: FourTuple,
    new: str,
    entry: ConntrackEntry | None,
    addresses: list[str],
    wanted: Path,
) -> None:
    found = choose_path(connection, new_address=new, entry=entry, local_addresses=addresses)
    assert found is wanted


def test_a_mapped_client_is_recognized_by_its_ipv4_address() -> None:
    mapped = FourTuple(
        Endpoint("::ffff:10.0.0.1", 80), Endpoint(f"::ffff:{CLIENT.address}", CLIENT.port)
    )
    chosen = choose_path(
        mapped, new_address="10.0.1.1", entry=None, local_addresses=[CLIENT.address]
    )
    assert chosen is Path.TRANSLATE
