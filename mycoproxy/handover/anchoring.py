"""Under which name a node anchors which connections of a move: its own address, and a free port.

To the workload's new place an anchored connection comes from the anchor node. Names that are in use
there are those that conntrack and this namespace's sockets know, those of connections that were
translated here by earlier moves, and those that other connections of this move will have.

Time passes until the connections are re-homed. What takes a name meanwhile is found then, by
conntrack (EEXIST), and ends the move with everything as it was.
"""

import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.handover.routes import moved_address
from mycoproxy.netfilter.anchor import Anchors
from mycoproxy.netfilter.anchor_ports import LEAST_PORT, MOST_PORT, choose_ports
from mycoproxy.netfilter.conntrack import Conntrack
from mycoproxy.netfilter.translate import Translate, present_name
from mycoproxy.sockdiag import SocketLookup

# Names are asked for again until none of them is in use, which is mostly the second time.
_ATTEMPTS = 8


class Anchoring:
    """The names that are given in one move, in one namespace. Used on its thread."""

    def __init__(
        self, anchors: Anchors, translate: Translate, conntrack: Conntrack, sockets: SocketLookup
    ) -> None:
        self._anchors = anchors
        self._translate = translate
        self._conntrack = conntrack
        self._sockets = sockets
        self._taken: set[FourTuple] = set()

    def ends(
        self,
        wanted: Iterable[FourTuple],
        connections: Iterable[FourTuple],
        addresses: Mapping[str, str],
        own_addresses: Collection[str],
    ) -> dict[FourTuple, Endpoint]:
        """What the workload's packets have to go to if ``wanted`` are anchored here.

        Those that cannot be are left out. ``connections``: all that move, some of them wanted, by
        their names on the wire.
        ``addresses`` maps the workload's addresses to its new ones.
        """
        names = {}
        for connection in wanted:
            place = _moved(connection.local, addresses)
            own = self._anchors.address_toward(place.address)
            if own is not None:
                names[connection] = FourTuple(place, Endpoint(own, connection.remote.port))
        if not names:
            return {}
        self._taken |= {present_name(*one) for one in self._translate.list().items()}
        self._taken |= {
            FourTuple(_moved(one.local, addresses), one.remote)
            for one in connections
            if one.remote.address in own_addresses
        }
        chosen = dict(zip(names, self._free([*names.values()]), strict=True))
        given = {connection: name for connection, name in chosen.items() if name is not None}
        self._taken |= {*given.values()}
        return {connection: name.remote for connection, name in given.items()}

    def _free(self, wanted: Sequence[FourTuple]) -> list[FourTuple | None]:
        """The names, each once, and with another port where it is in use; None: none was found."""
        taken = set(self._taken)
        first = LEAST_PORT + secrets.randbelow(MOST_PORT - LEAST_PORT + 1)
        for _ in range(_ATTEMPTS):
            chosen = choose_ports(wanted, taken, first=first)
            used = self._in_use([name for name in chosen if name is not None])
            if not used:
                return chosen
            taken |= used
        return [None if name in used else name for name in chosen]

    def _in_use(self, names: Sequence[FourTuple]) -> set[FourTuple]:
        reverse = {FourTuple(local=name.remote, remote=name.local): name for name in names}
        found = {reverse[name] for name in self._sockets.connected(reverse)}
        return found | self._conntrack.find(names).keys()


def _moved(end: Endpoint, addresses: Mapping[str, str]) -> Endpoint:
    return Endpoint(moved_address(end.address, addresses), end.port)
