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
from mycoproxy.peering.bodies import Outgoing
from mycoproxy.pki import CredentialsError, CredentialsWatch

log = logging.getLogger(__name__)

LOOK: Final = 5.0
"""Seconds between two looks at the certificate's files."""


class PeerLinks(Part):
    """Other parts ask other nodes with ``call``, and are asked through ``handler``."""

    name: ClassVar[str] = "peers"

    def __init__(self) -> None:
        self.handler: Handler = _nobody
        self.addresses: PeerAddresses
        self._config: Config
        self._watch: CredentialsWatch | None = None
        self._missing = ""
        self._server: PeerServer | None = None
        self._peers: Peers | None = None

    async def start(self, agent: Agent) -> None:
        """Listen, as soon as there is a certificate. Raises ``MycoError``: it is another node's,
        or an address cannot be had."""
        self._config = agent.config
        self.addresses = PeerAddresses(agent.config.peers)
        await self._begin()
        agent.spawn(self, self._follow())

    async def _begin(self) -> None:
        config = self._config
        try:
            self._watch = watch = CredentialsWatch(config.pki.directory)
        except CredentialsError as error:
            if not self._missing:
                log.warning("no other agent can be reached yet: %s", error)
            self._missing = str(error)
            return
        current = watch.current
        if current.node != config.node.name:
            raise MycoError(
                f"{config.pki.directory} is the certificate of {current.node}, and node.name is "
                f"{config.node.name}: they have to be the same"
            )
        local = Local(config.node.name, identify=self._identify)
        self._server = server = PeerServer(local, current.server_context(), self._handle)
        self._peers = Peers(local, current.client_context(), self.addresses.resolve)
        try:
            for host, port in config.peers.listen:
                await server.listen(host, port)
        except OSError as error:
            await server.close(0)
            raise MycoError(f"peers.listen: {error}") from error

    async def reload(self, config: Config) -> None:
        """Other addresses of other nodes."""
        self.addresses.apply(config.peers)

    async def stop(self) -> None:
        """Close all links."""
        if self._server is not None and self._peers is not None:
            await asyncio.gather(self._server.close(1.0), self._peers.close(1.0))

    def ready(self) -> Sequence[str]:
        """Nothing is in the way of new links?"""
        problems = []
        if self._watch is None:
            problems.append(f"no certificate: {self._missing}")
        elif self._watch.error is not None:
            problems.append(f"the certificate's files: {self._watch.error}")
        if self.addresses.problem:
            problems.append(f"peers.file: {self.addresses.problem}")
        return problems

    def status(self) -> dict[str, Any]:
        """Links, and until when the certificate is good."""
        if self._watch is None or self._server is None or self._peers is None:
            return {"known": len(self.addresses.all())}
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
        body: Outgoing = b"",
        *,
        deadline: float,
    ) -> Answer:
        """See ``mycoproxy.peering.Peers.call``."""
        if self._peers is None:
            raise MycoError(f"no other agent can be reached: {self._missing}")
        return await self._peers.call(node, method, args, body, deadline=deadline)

    def _identify(self, tls: Any) -> str:  # noqa: ANN401 - an ssl.SSLObject, or what stands for one
        assert self._watch is not None
        return self._watch.current.peer_identity(tls).node

    async def _handle(self, peer: str, method: str, args: dict[str, Any], body: Body) -> Reply:
        return await self.handler(peer, method, args, body)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            if self._watch is None or self._server is None or self._peers is None:
                await self._begin()
                continue
            # A few milliseconds if there is something new, and rare.
            if self._watch.refresh():
                current = self._watch.current
                self._server.set_context(current.server_context())
                self._peers.set_context(current.client_context())
                log.info("a new certificate is in use, valid until %s", current.not_after)


async def _nobody(*_: object) -> Reply:
    raise MycoError("the agent is starting")
