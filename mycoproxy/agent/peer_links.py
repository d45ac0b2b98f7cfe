"""The part that speaks with other agents: certificates that follow their files, links."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from mycoproxy.agent.config import Config
from mycoproxy.agent.part import Agent, Part
from mycoproxy.agent.peer_addresses import PeerAddresses
from mycoproxy.errors import MycoError
from mycoproxy.peering import Answer, Body, Handler, Local, Peers, PeerServer, Reply
from mycoproxy.pki import CredentialsWatch

log = logging.getLogger(__name__)

LOOK: Final = 5.0
"""Seconds between two looks at the certificate's files."""


class PeerLinks(Part):
    """Other parts ask other nodes with ``call``, and are asked through ``handler``."""

    name: ClassVar[str] = "peers"

    def __init__(self) -> None:
        self.handler: Handler = _nobody
        self.addresses: PeerAddresses
        self._watch: CredentialsWatch
        self._server: PeerServer
        self._peers: Peers

    async def start(self, agent: Agent) -> None:
        """Listen. Raises ``CredentialsError``, ``MycoError``: an address that cannot be had."""
        config = agent.config
        self._watch = CredentialsWatch(config.pki.directory)
        if self._watch.current.node != config.node.name:
            raise MycoError(
                f"{config.pki.directory} is the certificate of {self._watch.current.node}, and "
                f"node.name is {config.node.name}: they have to be the same"
            )
        self.addresses = PeerAddresses(config.peers)
        local = Local(config.node.name, identify=self._identify)
        self._server = PeerServer(local, self._watch.current.server_context(), self._handle)
        self._peers = Peers(local, self._watch.current.client_context(), self.addresses.resolve)
        try:
            for host, port in config.peers.listen:
                await self._server.listen(host, port)
        except OSError as error:
            await self._server.close(0)
            raise MycoError(f"peers.listen: {error}") from error
        agent.spawn(self, self._follow())

    async def reload(self, config: Config) -> None:
        """Other addresses of other nodes."""
        self.addresses.apply(config.peers)

    async def stop(self) -> None:
        """Close all links."""
        await asyncio.gather(self._server.close(1.0), self._peers.close(1.0))

    def ready(self) -> Sequence[str]:
        """Nothing is in the way of new links?"""
        problems = []
        if self._watch.error is not None:
            problems.append(f"the certificate's files: {self._watch.error}")
        if self.addresses.problem:
            problems.append(f"peers.file: {self.addresses.problem}")
        return problems

    def status(self) -> dict[str, Any]:
        """Links, and until when the certificate is good."""
        return {
            "known": len(self.addresses.all()),
            "links_in": self._server.links,
            "links_out": self._peers.connected,
            "certificate_until": self._watch.current.not_after.isoformat(),
        }

    async def call(
        self,
        node: str,
        method: str,
        args: Mapping[str, Any] | None = None,
        body: bytes | Sequence[bytes] = b"",
        *,
        deadline: float,
    ) -> Answer:
        """See ``mycoproxy.peering.Peers.call``."""
        return await self._peers.call(node, method, args, body, deadline=deadline)

    def _identify(self, tls: Any) -> str:  # noqa: ANN401 - an ssl.SSLObject, or what stands for one
        return self._watch.current.peer_identity(tls).node

    async def _handle(self, peer: str, method: str, args: dict[str, Any], body: Body) -> Reply:
        return await self.handler(peer, method, args, body)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            # A few milliseconds if there is something new, and rare.
            if self._watch.refresh():
                current = self._watch.current
                self._server.set_context(current.server_context())
                self._peers.set_context(current.client_context())
                log.info("a new certificate is in use, valid until %s", current.not_after)


async def _nobody(*_: object) -> Reply:
    raise MycoError("the agent is starting")
