"""Makes this node's parts in moves, new ones and from what the journal has of them."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from mycoproxy.agreement import MoveId
from mycoproxy.handover.datagram_ends import LocalDatagramSource
from mycoproxy.moves.driver import Channel
from mycoproxy.moves.entries import Entry
from mycoproxy.moves.namespaces import NodeNamespaces
from mycoproxy.moves.node_datagrams import NodeDatagrams
from mycoproxy.moves.peer import PeerPart
from mycoproxy.moves.remote import Call, RemotePeer, RemoteTarget
from mycoproxy.moves.remote_datagrams import RemoteDatagramPeer, RemoteDatagramTarget
from mycoproxy.moves.source import SourcePart, SourcePlace
from mycoproxy.moves.source_datagrams import SourceDatagrams
from mycoproxy.moves.target import TargetPart, TargetPlace
from mycoproxy.netfilter.paths import Network

NAME = "name"
"""What a peer's move is called, among what is written down with it."""


class Parts:
    """``name`` is this node's; ``deadline`` is for one request to another agent, in seconds.

    ``behind``: the networks whose packets can only come by this node, see ``Standpoint``.
    """

    def __init__(
        self,
        name: str,
        call: Call,
        namespaces: NodeNamespaces,
        *,
        behind: Sequence[Network] | None,
        deadline: float,
    ) -> None:
        self.name = name
        self._call = call
        self._namespaces = namespaces
        self._behind = behind
        self._deadline = deadline
        self._channels: dict[str, Channel] = {}

    def channel(self, name: str) -> Channel:
        """The orders to the driver of a move on this node."""
        return self._channels.setdefault(name, Channel())

    def forget_channel(self, name: str) -> None:
        """Its driver is not needed any more."""
        self._channels.pop(name, None)

    def peer(self, name: str) -> PeerPart:
        """As a node that others come by."""
        return PeerPart(self.name, name, self._namespaces, behind=self._behind)

    def datagrams(self, workload: Path | None) -> NodeDatagrams:
        """For UDP flows. ``workload``: its own namespace on this node."""
        return NodeDatagrams(self.name, self._namespaces, behind=self._behind, workload=workload)

    def source(self, place: SourcePlace, nodes: Collection[str]) -> SourcePart:
        """As the source. ``nodes``: all others that may have a part in it."""
        call, move, deadline = self._call, place.move, self._deadline
        return SourcePart(
            place,
            self.peer(move),
            RemoteTarget(call, place.target, move, deadline=deadline),
            peers=[RemotePeer(call, node, move, deadline=deadline) for node in nodes],
            namespaces=self._namespaces,
            orders=self.channel(move),
            datagrams=lambda worker: SourceDatagrams(
                LocalDatagramSource(worker, place.init_pid),
                RemoteDatagramTarget(call, place.target, move),
                self.datagrams(Path(place.netns)),
                [RemoteDatagramPeer(call, node, move) for node in nodes],
                addresses=place.addresses,
            ),
        )

    def target(self, place: TargetPlace) -> TargetPart:
        """As the target."""
        return TargetPart(place, self.peer(place.move), self._namespaces, self.channel(place.move))

    async def recall(self, move: MoveId, attachments: Mapping[str, bytes]) -> Entry | None:
        """What another process had written down of its part. None: it had changed nothing.

        Raises ``MycoError``, ``OSError``.
        """
        if move.source == self.name:
            where = SourcePart.place_of(attachments)
            if where is None:
                return None
            source = await self.source(where, ()).recall(attachments)
            return Entry(where.move, move.source, source, move)
        place = TargetPart.place_of(attachments)
        if place is not None:
            target = await self.target(place).recall(attachments)
            return Entry(place.move, move.source, target, move)
        if NAME not in attachments:
            return None
        name = attachments[NAME].decode()
        peer = self.peer(name)
        await peer.prepare()
        await peer.recall(attachments)
        return Entry(name, move.source, peer, move)
