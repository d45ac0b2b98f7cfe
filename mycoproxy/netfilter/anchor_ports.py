"""Which port an anchor node speaks from for each connection. Pure.

To the workload's new place all that are anchored at a node come from that node's address. What
tells them apart is the port: mostly the other end's own one, so that only addresses have to be
translated there. It is another one where that is taken, by another anchored connection or by one
of the node itself.

A name here is the connection's as it is to be on the wire next to the workload: its new place, and
the anchor.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from mycoproxy.addresses import Endpoint, FourTuple

LEAST_PORT = 1024  # privileged ports are taken for no one
MOST_PORT = 0xFFFF
_COUNT = MOST_PORT - LEAST_PORT + 1


def choose_ports(
    wanted: Sequence[FourTuple], taken: AbstractSet[FourTuple], *, first: int
) -> list[FourTuple | None]:
    """For each wanted name that one, or one that differs in the anchor's port.

    No name is given twice, and none that is ``taken``; None: no port is left. A name that several
    want is the first one's. Ports that nobody wants are looked for from ``first`` on: chosen at
    random, what two nodes choose for one workload hardly ever has a port in common (``translate``).
    """
    given: list[FourTuple | None] = []
    unavailable = set(taken)
    for name in wanted:
        given.append(None if name in unavailable else name)
        unavailable.add(name)
    port = first
    for index, name in enumerate(wanted):
        if given[index] is None:
            given[index] = other = _free_name(name, unavailable, port)
            if other is not None:
                unavailable.add(other)
                port = other.remote.port + 1  # what was found taken is not looked at again
    return given


def _free_name(
    name: FourTuple, unavailable: AbstractSet[FourTuple], first: int
) -> FourTuple | None:
    for more in range(_COUNT):
        port = LEAST_PORT + (first - LEAST_PORT + more) % _COUNT
        other = name._replace(remote=Endpoint(name.remote.address, port))
        if other not in unavailable:
            return other
    return None
