"""What a handover needs of the nodes it happens on: three roles, each a small interface.

In one process they are objects that work in the network namespaces of this machine
(``source.py``, ``target.py``, ``peer.py``). Agents put a connection to another agent behind them.
Every method is called in the order in which the state machine names its action, and every undoing
method may be called after a step that was done in part, or not at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mycoproxy.addresses import FourTuple
from mycoproxy.netfilter.paths import Path
from mycoproxy.sockets import DescriptorName
from mycoproxy.tcp import Segment, TcpState


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection out of the source: what its socket is called in the workload, and its state."""

    names: tuple[DescriptorName, ...]
    state: TcpState

    @property
    def four_tuple(self) -> FourTuple:
        """Its name on the source."""
        return FourTuple(self.state.local, self.state.remote)


@dataclass(frozen=True, slots=True)
class Rehomed:
    """What one peer node did for one connection."""

    peer: str
    connection: FourTuple
    path: Path


class Source(Protocol):
    """The node that the workload leaves."""

    async def hold(self) -> Sequence[FourTuple]:
        """Drop the connections' packets from now on, both directions; returns their names."""

    async def capture(self) -> Sequence[Connection]:
        """Take every connection's state. The sockets stay behind in repair mode."""

    async def lost_segments(self) -> Sequence[Segment]:
        """What came in during the hold and is in no captured state."""

    async def resume(self) -> None:
        """Undo ``capture``: the sockets go on as they were. What they say at once has to get out,
        so the hold on them ends here already."""

    async def release_hold(self, lost: Sequence[Segment]) -> None:
        """Undo ``hold``; what came in meanwhile is delivered, and ``lost``, which peers kept."""


class Peer(Protocol):
    """A node that sees the other end of some of the connections."""

    name: str

    async def survey(self, connections: Sequence[FourTuple], addresses: Mapping[str, str]) -> None:
        """Find out what there is to do here; changes nothing. While the workload already stands,
        ahead of the handover, so that it does not add to it."""

    async def rehome(
        self, connections: Sequence[Connection], addresses: Mapping[str, str]
    ) -> Sequence[Rehomed]:
        """Make the paths that lead through here lead to the new addresses (old -> new)."""

    async def lost_segments(self) -> Sequence[Segment]:
        """What was dropped here meanwhile, by the connections' names on the source."""

    async def undo(self) -> None:
        """Make them lead back."""


class Target(Protocol):
    """The node that the workload goes to. Its shield is up before a handover begins."""

    async def establish(
        self, connections: Sequence[Connection], addresses: Mapping[str, str]
    ) -> None:
        """Put every connection into its restored socket, which stays in repair mode."""

    async def go_live(self, lost: Sequence[Segment]) -> int:
        """Lift the shield, leave repair mode, and deliver what was lost meanwhile.

        ``lost`` has the connections' names on the source. Returns how many were delivered, with
        those that the shield itself had kept away.
        """

    async def discard(self) -> None:
        """Undo ``establish``: the sockets are closed, silently."""
