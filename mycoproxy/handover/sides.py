"""What a handover needs of the nodes it happens on: three roles, each a small interface.

In one process they are objects that work in the network namespaces of this machine
(``source.py``, ``target.py``, ``peer.py``). Agents put a connection to another agent behind them.
Every method is called in the order in which the state machine names its action, and every undoing
method may be called after a step that was done in part, or not at all.
"""

import ipaddress
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from mycoproxy.addresses import Endpoint, FourTuple, wire_address
from mycoproxy.netfilter.elements import on_the_wire
from mycoproxy.netfilter.entry import ConntrackEntry
from mycoproxy.netfilter.paths import Path
from mycoproxy.sockets import DescriptorName
from mycoproxy.tcp import Segment, TcpConnectionState, TcpState


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection out of the source: what its socket is called in the workload, and its state.

    One that no task had accepted has no name, but that of its ``listener``; ``handshake``: its
    client may not know yet that it is open.
    """

    names: tuple[DescriptorName, ...]
    state: TcpState
    listener: tuple[DescriptorName, ...] = ()
    handshake: bool = False

    @property
    def four_tuple(self) -> FourTuple:
        """Its name on the source."""
        return self.state.connection

    @property
    def is_only_copy(self) -> bool:
        """Is its state nowhere else any more, once it was captured? All others are in sockets."""
        return bool(self.listener) or self.state.state is TcpConnectionState.CLOSE

    def has_path(self, addresses: Mapping[str, str]) -> bool:
        """Do packets of it travel, so that somebody may have to lead them to the new address?

        Not if it has ended, begins anew (SYN_SENT), or has both its ends in the workload.
        """
        return self.state.state not in _NO_PATH and not is_inside(self.four_tuple, addresses)


_NO_PATH = (TcpConnectionState.CLOSE, TcpConnectionState.SYN_SENT)


def is_inside(connection: FourTuple, addresses: Mapping[str, str]) -> bool:
    """Has it both its ends in the workload, whose old addresses are the keys of ``addresses``?"""
    local, remote = (wire_address(end.address) for end in connection)
    return remote == local or remote in addresses or ipaddress.ip_address(remote).is_loopback


@dataclass(frozen=True, slots=True)
class WentLive:
    """How many segments were delivered that were dropped meanwhile, and what could not be kept of
    the connections, in words."""

    delivered: int
    remarks: tuple[str, ...]


class Known(NamedTuple):
    """A connection of the workload by its name.

    ``via``: what its packets have as their other end once they have left the workload's namespace,
    if that is not what the socket has: it was moved before, and is anchored at that node.
    """

    name: FourTuple
    via: Endpoint | None = None

    @property
    def on_the_wire(self) -> FourTuple:
        """Its name in packets, just outside of the workload's namespace."""
        local, remote = self.name.local, self.via or self.name.remote
        return FourTuple(on_the_wire(local), on_the_wire(remote))


@dataclass(frozen=True, slots=True)
class Offer:
    """What a node can do for a connection, which is ``connection`` on the wire there.

    ``entry``: what conntrack there knows of it. ``anchor``: the end that the workload's packets
    have to go to if it is to be anchored there; None if it cannot be.
    """

    connection: FourTuple
    path: Path
    entry: ConntrackEntry | None = None
    anchor: Endpoint | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """What a node is to do for a connection: ``path``.

    ``after`` is the connection's new name on the wire there, on the workload's side of any NAT.
    ``entry`` is to be inserted as it is, by a node that has none itself (CARRY, ADMIT).
    """

    connection: FourTuple
    path: Path
    after: FourTuple
    entry: ConntrackEntry | None = None


@dataclass(frozen=True, slots=True)
class Rehomed:
    """What one peer node did for one connection."""

    peer: str
    connection: FourTuple
    path: Path


class Source(Protocol):
    """The node that the workload leaves."""

    async def hold(self) -> None:
        """Drop the connections' packets from now on, both directions, and keep new ones out."""

    async def capture(self) -> Sequence[Connection]:
        """Take every connection's state. The sockets stay behind in repair mode; what nobody had
        accepted is taken out of its accept queue."""

    async def lost_segments(self) -> Sequence[Segment]:
        """What came in during the hold and is in no captured state."""

    async def newcomers(self) -> Sequence[Segment]:
        """The SYNs that came since the last call, of connections that nobody has answered.

        From ``hold`` on, and until the source is removed.
        """

    async def resume(self) -> None:
        """Undo ``capture``: the sockets go on as they were, the accept queues are filled again.
        What they say at once has to get out, so the hold on them ends here already."""

    async def release_hold(self, lost: Sequence[Segment]) -> None:
        """Undo ``hold``; what came in meanwhile is delivered, and ``lost``, which peers kept.

        Newcomers too, unless they were asked for.
        """


class Peer(Protocol):
    """A node that sees the other end of some of the connections, or forwards them."""

    name: str

    async def survey(
        self, connections: Sequence[FourTuple], addresses: Mapping[str, str], *, home: bool
    ) -> Sequence[Offer]:
        """Find out what can be done here for which of the connections; changes nothing.

        ``connections`` are named as on the wire. ``addresses`` maps the workload's addresses to its
        new ones. ``home``: this is the workload's own node. While the workload already stands,
        ahead of the handover, so that it does not add to it.
        """

    async def stage(self, tasks: Sequence[Task]) -> None:
        """Make ready for a ``rehome`` that will do these. No packet meets any of it: at most names
        that nothing has yet are made known. All were surveyed.

        Ahead of the handover, like ``survey``.
        """

    async def rehome(self, tasks: Sequence[Task], without: Collection[FourTuple] = ()) -> None:
        """Make the paths that lead through here lead to the new addresses. All were surveyed.

        What was staged, but for connections named ``without`` (as in their tasks), and ``tasks``.
        """

    async def lost_segments(self) -> Sequence[Segment]:
        """What was dropped here meanwhile, by the connections' names in their tasks."""

    async def undo(self) -> None:
        """Make them lead back."""

    async def finish(self) -> None:
        """The workload runs on the target: forget what only its old place needed."""


class Target(Protocol):
    """The node that the workload goes to. Its shield is up before a handover begins."""

    async def establish(
        self,
        connections: Sequence[Connection],
        addresses: Mapping[str, str],
        via: Mapping[FourTuple, Endpoint],
    ) -> None:
        """Put every connection into its restored socket, which stays in repair mode.

        ``via`` has those that are anchored elsewhere, by their names on the source, with the end
        that their packets go to and come from (see ``Known``).
        """

    async def go_live(self, lost: Sequence[Segment]) -> WentLive:
        """Lift the shield, leave repair mode, and deliver what was lost meanwhile.

        ``lost`` has the connections' names on the source. What the shield itself has kept away is
        delivered as well.
        """

    async def welcome(
        self,
        syns: Sequence[Segment],
        addresses: Mapping[str, str],
        via: Mapping[FourTuple, Endpoint],
    ) -> None:
        """Deliver SYNs that came to the source; named and meant as in ``establish``. When live."""

    async def discard(self) -> None:
        """Undo ``establish``: the sockets are closed, silently."""
