"""Which port an anchor node speaks from: the client's own, unless that is taken."""

from hypothesis import given
from hypothesis import strategies as st

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.netfilter.anchor_ports import LEAST_PORT, MOST_PORT, choose_ports

WORKLOAD = Endpoint("10.244.2.7", 6379)
NODE = "192.0.2.1"


def name(port: int, workload: Endpoint = WORKLOAD) -> FourTuple:
    return FourTuple(workload, Endpoint(NODE, port))


names = st.builds(
    name,
    st.integers(LEAST_PORT, LEAST_PORT + 5),
    st.sampled_from([WORKLOAD, WORKLOAD._replace(port=80)]),
)


def test_what_nobody_uses_is_given_as_it_is() -> None:
    wanted = [name(40000), name(22), name(40000, WORKLOAD._replace(port=80))]
    assert choose_ports(wanted, frozenset(), first=5000) == wanted


def test_what_is_taken_gets_another_port() -> None:
    assert choose_ports([name(40000)], {name(40000)}, first=5000) == [name(5000)]
    taken = {name(40000), name(5000), name(5001)}
    assert choose_ports([name(40000)], taken, first=5000) == [name(5002)]


def test_of_those_with_one_port_the_first_keeps_it() -> None:
    wanted = [name(40000), name(40000), name(40000)]
    assert choose_ports(wanted, frozenset(), first=5000) == [name(40000), name(5000), name(5001)]


def test_another_port_is_nobodys_own() -> None:
    wanted = [name(40000), name(40000), name(40001)]
    given_names = choose_ports(wanted, frozenset(), first=40000)
    assert given_names == [name(40000), name(40002), name(40001)]


def test_after_the_last_port_comes_the_first_that_is_not_privileged() -> None:
    taken = {name(40000), name(MOST_PORT)}
    assert choose_ports([name(40000)], taken, first=MOST_PORT) == [name(LEAST_PORT)]


def test_when_all_ports_are_taken_there_is_none() -> None:
    taken = {name(port) for port in range(LEAST_PORT, MOST_PORT + 1)}
    wanted = [name(40000), name(40000, WORKLOAD._replace(port=80))]
    assert choose_ports(wanted, taken, first=40000) == [None, wanted[1]]


@given(st.lists(names, max_size=12), st.frozensets(names), st.integers(LEAST_PORT, MOST_PORT))
def test_no_name_is_given_twice_and_none_that_is_taken(
    wanted: list[FourTuple], taken: frozenset[FourTuple], first: int
) -> None:
    chosen = choose_ports(wanted, taken, first=first)
    assert len(set(chosen)) == len(wanted)
    assert taken.isdisjoint(chosen)
    for before, after in zip(wanted, chosen, strict=True):
        assert after is not None
        assert (after.local, after.remote.address) == (before.local, before.remote.address)
    own = {one for one, other in zip(wanted, chosen, strict=True) if one == other}
    assert own == set(wanted) - taken
