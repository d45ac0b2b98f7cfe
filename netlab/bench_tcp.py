"""``netlab bench tcp``: what it costs to move connections, and what is left of their speed.

``measure`` is the command, ``compare_twins`` is it with ``--twin``.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import median

from netlab import twin
from netlab.tcp_bench import cost, throughput
from netlab.tcp_bench.child import Child, descriptors
from netlab.tcp_bench.handover import Handover, Handovers
from netlab.tcp_bench.peer import Peer
from netlab.tcp_bench.places import Places
from netlab.tcp_bench.throughput import RATE, Windows
from netlab.tcp_bench.twins import Twins

Progress = Callable[[str], None]

MOST = 10_000
"""Connections in the largest handover, unless another number is asked for."""

_IDLE = 1_000  # connections whose capture and establish is timed
_MEASURED = 500  # connections whose memory is counted
_SMALL = 1_000  # a handover that takes no time to repeat
_OTHER_DESCRIPTORS = 200


def sizes(most: int) -> list[int]:
    """10, 100, ... below ``most``, and ``most``."""
    found = []
    size = 10
    while size < most:
        found.append(size)
        size *= 10
    return [*found, most]


def measure(
    rounds: int,
    progress: Progress,
    *,
    most: int = MOST,
    rate: float = RATE,
    windows: Windows | None = None,
) -> dict[str, object]:
    """All figures, as ``netlab bench tcp --json`` prints them. Medians of ``rounds`` rounds.

    The handovers have up to ``most`` connections; for throughput the links are limited to ``rate``
    Gbit/s (0: not limited). Raises ``MycoError``: a step failed, or a
    connection did not work afterwards.
    """
    windows = windows or Windows()
    idle = min(_IDLE, most)
    with (
        descriptors(max(most, 2 * idle) + _OTHER_DESCRIPTORS),
        Places() as places,
        Child(places.client, Peer) as peer,
    ):
        times = []
        cost.capture_and_establish(places, peer, idle)  # the first of all runs into cold memory
        for number in range(rounds):
            times.append(cost.capture_and_establish(places, peer, idle))
            parts = ", ".join(f"{name} {us:.1f} us" for name, us in times[-1]._asdict().items())
            progress(f"round {number + 1}: {parts}")
        memory = cost.memory(places, peer, min(_MEASURED, most))
        progress(f"memory: {memory.heap:.0f} bytes a connection, {memory.encoded:.0f} encoded")
        by_size = _handovers(places, peer, rounds, sizes(most), progress)
        with places.limited(rate):
            rates = _throughput(places, peer, rounds, windows, progress)
    largest = by_size[most]
    directions = {
        name: {
            "ratio": round(median(each.ratio for each in found), 3),
            "before_mbit_s": round(median(each.before for each in found) * 8e-6),
            "after_mbit_s": round(median(each.after for each in found) * 8e-6),
            "each": [round(each.ratio, 3) for each in found],
        }
        for name, found in rates.items()
    }
    return {
        "rounds": rounds,
        "capture_establish_us": round(median(map(sum, times)), 1),
        "options_us": round(median(each.options for each in times), 1),
        "capture_us": round(median(each.capture for each in times), 1),
        "establish_us": round(median(each.establish for each in times), 1),
        "idle_connections": idle,
        f"handover_{most}_s": round(largest.total_s, 3),
        f"handover_{most}_parts": largest.parts(),
        "per_connection_us": {
            str(size): round(found.per_connection_us, 1) for size, found in by_size.items()
        },
        "parts_s": {str(size): found.parts() for size, found in by_size.items()},
        "not_kept": sorted(set().union(*(found.not_kept for found in by_size.values()))),
        "bytes_per_connection": round(memory.heap),
        "encoded_bytes": round(memory.encoded),
        "throughput_ratio_after_move": round(
            min(median(each.ratio for each in found) for found in rates.values()), 3
        ),
        "link_gbit_s": rate or None,
        "throughput": directions,
    }


def compare_twins() -> dict[str, object]:
    """A moved connection and its unmoved twin, field by field, as ``--twin --json`` prints them.

    ``server`` and ``client`` are the rows of either end (see ``netlab.twin``); ``differences`` says
    what is wrong, and is empty if the move left the connection as good as its twin. Raises
    ``MycoError``.
    """
    with Places() as places, Twins(places) as twins:
        twins.traffic()
        twins.move()
        twins.traffic()
        ends = {"server": twins.server_rows(), "client": twins.client_rows()}
    return {
        **{end: [asdict(row) for row in rows] for end, rows in ends.items()},
        "differences": [
            f"{end}: {text}" for end, rows in ends.items() for text in twin.differences(rows)
        ],
    }


def _handovers(
    places: Places, peer: Child, rounds: int, counts: Sequence[int], progress: Progress
) -> dict[int, Handover]:
    """Of each size the handover that took the median time."""
    found = {}
    with Handovers(places, peer) as handovers:
        handovers.run(counts[0])  # here, too
        for count in counts:
            # The smaller one is, the more other work on the machine matters to it.
            times = rounds if count > _SMALL else rounds * 5
            each = [handovers.run(count) for _ in range(times)]
            each.sort(key=lambda one: one.total_s)
            found[count] = each[(times - 1) // 2]
            milliseconds = [f"{one.total_s * 1e3:.1f}" for one in (each[0], found[count], each[-1])]
            progress(
                f"handover of {count} connections, {times} rounds: "
                f"{milliseconds[1]} ms ({milliseconds[0]} to {milliseconds[2]})"
            )
    places.lead_to_source()
    return found


def _throughput(
    places: Places, peer: Child, rounds: int, windows: Windows, progress: Progress
) -> dict[str, list[throughput.Rates]]:
    """The rates of each direction, by its name."""
    found: dict[str, list[throughput.Rates]] = {"to_client": [], "to_server": []}
    for number in range(rounds):
        found["to_client"].append(throughput.to_client(places, peer, windows))
        found["to_server"].append(throughput.to_server(places, peer, windows))
        ratios = [f"{name} {each[-1].ratio:.3f}" for name, each in found.items()]
        progress(f"round {number + 1}: throughput after by before: {', '.join(ratios)}")
    return found
