"""The rows of ``netlab run rehome-matrix``, judged by what ends, agents and a capture saw. Pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from mycoproxy.addresses import Endpoint, FourTuple, wire_address
from mycoproxy.handover import Rehomed
from mycoproxy.netfilter.paths import Path as Way
from netlab.capture import Packets
from netlab.capture.packets import RST
from netlab.paths.clients import Connection
from netlab.paths.end.stream import Report
from netlab.paths.result import PathResult
from netlab.paths.table import WORKLOAD


@dataclass(frozen=True, slots=True)
class Row:
    """One connection. ``family`` is 4 or 6.

    ``strategy`` is what the agents did for it in the first move; None: there was none. ``gap_ms``
    is the longest wait for a byte at either end, ``freeze_ms`` that of the move in which it was.
    ``resets``: those that crossed the router, and ends that were told by one.
    """

    path: str
    family: int
    activity: str
    strategy: str | None
    ok: bool
    gap_ms: float
    freeze_ms: float | None
    resets: int


@dataclass(frozen=True, slots=True)
class Moved:
    """A move that was done: when the workload stood still, in CLOCK_MONOTONIC seconds.

    ``strategies`` has what was done for each connection, by its number.
    """

    begin: float
    end: float
    strategies: Mapping[int, str]


def strategy_of(ways: Collection[Way]) -> str:
    """What a connection's re-homing is called, by what all the nodes did for it.

    An entry that is carried along may need a translation at the other end, too. Admitting is no
    way to a new place.
    """
    for way in (Way.CARRY, Way.ANCHOR, Way.REBIND, Way.TRANSLATE):
        if way in ways:
            return str(way.value)
    return str(Way.NOTHING.value)


def strategies(
    connections: Sequence[Connection],
    before: Mapping[int, Sequence[Report]],
    rehomed: Sequence[Rehomed],
) -> dict[int, str]:
    """The strategy of each connection in a move, by its number.

    ``before`` is what the ends knew right before the move: the movers' reports call a connection
    what the workload's socket was called then.
    """
    ways: dict[FourTuple, set[Way]] = {}
    for one in rehomed:
        ways.setdefault(_on_the_wire(one.connection), set()).add(one.path)
    found = {}
    for each in connections:
        done: set[Way] = set()
        for end in before[each.number]:
            if (each.path.opener if end["opener"] else each.path.acceptor) == WORKLOAD:
                name = FourTuple(_endpoint(end["local"]), _endpoint(end["peer"]))
                done |= ways.get(name, set())
        found[each.number] = strategy_of(done)
    return found


def pairs_of(ends: Sequence[Report]) -> set[frozenset[Endpoint]]:
    """Every pair of endpoints that a connection's packets can have, by what its ends know.

    NAT and translation may change either end, so it is each name of the one with each of the other.
    """
    opener: set[str] = set()
    acceptor: set[str] = set()
    for end in ends:
        own, other = (opener, acceptor) if end["opener"] else (acceptor, opener)
        own.add(end["local"])
        other.add(end["peer"])
    return {
        frozenset((_endpoint(one), _endpoint(other)))
        for one, other in product(opener - {""}, acceptor - {""})
    }


def judge_row(
    connection: Connection, result: PathResult, moves: Sequence[Moved], resets: int
) -> tuple[Row, str]:
    """The row of a connection, and why it is not ok ("" if it is).

    ``resets``: how many of its packets that crossed the router were such.
    """
    strategy = moves[0].strategies.get(connection.number) if moves else None
    problems = [result.error] if result.error else []
    if result.wrong:
        problems.append(f"{result.wrong} wrong bytes")
    if result.resets or resets:
        problems.append(f"{resets} resets crossed the router, {result.resets} ends were told")
    if strategy != connection.path.strategy:
        wanted, found = connection.path.strategy, strategy or "no move"
        problems.append(f"strategy {wanted} expected, {found} found")
    row = Row(
        path=connection.path.name,
        family=connection.family,
        activity=connection.activity,
        strategy=strategy,
        ok=not problems,
        gap_ms=result.gap_ms,
        freeze_ms=_freeze_ms(result, moves),
        resets=result.resets + resets,
    )
    return row, "; ".join(problems)


def _freeze_ms(result: PathResult, moves: Sequence[Moved]) -> float | None:
    """Of the move that the gap shares most time with; of one in no move, of the last before it."""
    if not moves:
        return None
    begin, end = result.gap_at, result.gap_at + result.gap_ms / 1e3

    def nearness(move: Moved) -> tuple[float, float]:
        shared = min(end, move.end) - max(begin, move.begin)
        return max(shared, 0.0), move.begin if move.begin <= begin else -move.begin

    move = max(moves, key=nearness)
    return round((move.end - move.begin) * 1e3, 3)


def _endpoint(name: str) -> Endpoint:
    host, _, port = name.rpartition(":")
    return Endpoint(wire_address(host.strip("[]")), int(port)) if host else Endpoint("", 0)


def _on_the_wire(name: FourTuple) -> FourTuple:
    return FourTuple(*(Endpoint(wire_address(each.address), each.port) for each in name))


def resets_in(packets: Packets) -> set[tuple[Endpoint, Endpoint, int, int]]:
    """The resets: source, destination, sequence and acknowledgement number."""
    found = set()
    for row in (packets.flags & RST).nonzero()[0].tolist():
        source = packets.addresses[packets.source[row]]
        destination = packets.addresses[packets.destination[row]]
        found.add(
            (
                Endpoint(source, int(packets.source_port[row])),
                Endpoint(destination, int(packets.destination_port[row])),
                int(packets.seq[row]),
                int(packets.ack[row]),
            )
        )
    return found
