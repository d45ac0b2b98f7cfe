"""Takes links from other nodes, and stays within bounds whoever connects.

A connection is a stranger until its certificate has been checked and it has said hello. Strangers
are few (``ServerLimits.strangers``) and cost little; when one more comes, the oldest of the
address that has most of them goes. So a flood of connections takes room from itself: a peer from
another address is served meanwhile, as long as its handshake is done before the deadline. IPv6
addresses count by their /64, which one host can have all of.
"""

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
from collections.abc import Iterator

from mycoproxy.peering.connection import Local
from mycoproxy.peering.limits import ServerLimits
from mycoproxy.peering.serving import Handler, ServerLink
from mycoproxy.peering.tls import check_context

log = logging.getLogger(__name__)


class PeerServer:
    """Listens; each request of each link goes to ``handler``. For one event loop."""

    def __init__(
        self,
        local: Local,
        context: ssl.SSLContext,
        handler: Handler,
        limits: ServerLimits | None = None,
    ) -> None:
        check_context(context)
        self._local = local
        self._context = context
        self._handler = handler
        self._limits = limits or ServerLimits()
        self._listening: list[asyncio.Server] = []
        # By address, oldest first (a dict keeps its order).
        self._strangers: dict[str, dict[ServerLink, None]] = {}
        self._links: dict[str, dict[ServerLink, None]] = {}
        self._connections: set[ServerLink] = set()
        self._closing = False

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens."""
        return [
            sock.getsockname()[:2] for server in self._listening for sock in server.sockets or ()
        ]

    @property
    def strangers(self) -> int:
        """Connections that are no link yet."""
        return sum(map(len, self._strangers.values()))

    @property
    def links(self) -> dict[str, int]:
        """How many links each node has."""
        return {node: len(links) for node, links in self._links.items()}

    async def listen(self, host: str, port: int) -> None:
        """Listen on an address too (IPv4 or IPv6, no names). ``OSError`` if that cannot be."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        await self.listen_on(
            socket.create_server((host, port), family=family, backlog=self._limits.backlog)
        )

    async def listen_on(self, sock: socket.socket) -> None:
        """Listen on a socket that is bound; it belongs to the server from now on."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(self._connection, sock=sock, backlog=self._limits.backlog)
        self._listening.append(server)

    def set_context(self, context: ssl.SSLContext) -> None:
        """Use another certificate or authority for links that come from now on."""
        check_context(context)
        self._context = context

    def drop(self, node: str) -> None:
        """End the links of a node that is none of the cluster any more."""
        for link in list(self._links.get(node, ())):
            link.refuse("dropped", f"{node} is not taken any more")

    async def close(self, grace: float) -> None:
        """Take nothing new; what runs may end within ``grace`` seconds. All is gone afterwards."""
        self._closing = True
        for server in self._listening:
            server.close()
        for link in list(self._all(self._strangers)):
            link.abort("the server closes")
        links = list(self._all(self._links))
        tasks = [task for link in links for task in link.tasks]
        await asyncio.gather(*(link.close(grace) for link in links))
        # The links are gone, and with them what the handlers were for.
        if tasks:
            await asyncio.wait(tasks, timeout=max(grace, 1.0))
        while self._connections:
            await asyncio.wait([link.closed for link in self._connections])
        for server in self._listening:
            await server.wait_closed()

    # Of the links.

    def _connection(self) -> ServerLink:
        return ServerLink(
            self._local,
            self._context,
            self._handler,
            on_connected=self._connected,
            on_up=self._up,
            on_closed=self._closed,
        )

    def _connected(self, link: ServerLink) -> None:
        self._local.counters.accepted += 1
        self._connections.add(link)
        self._strangers.setdefault(_host(link.address), {})[link] = None
        if self._closing:
            link.abort("the server closes")
        elif self.strangers > self._limits.strangers:
            most = max(self._strangers.values(), key=len)
            oldest = next(iter(most))
            self._forget(oldest)
            oldest.abort("newer connections came", refused="crowded")

    def _up(self, link: ServerLink) -> None:
        self._forget(link)
        links = self._links.setdefault(link.peer, {})
        links[link] = None
        if sum(map(len, self._links.values())) > self._limits.links:
            link.refuse("busy", f"{self._local.node} has {self._limits.links} links already")
        elif len(links) > self._limits.links_per_node:
            next(iter(links)).refuse("replaced", f"{link.peer} has opened newer links")

    def _closed(self, link: ServerLink) -> None:
        self._connections.discard(link)
        self._forget(link)
        links = self._links.get(link.peer, {})
        links.pop(link, None)
        if not links:
            self._links.pop(link.peer, None)
        if link.error is not None:
            # A flood of strangers must not become one of lines.
            level = logging.INFO if link.peer else logging.DEBUG
            log.log(level, "%s (%s): %s", link.peer or "stranger", link.address, link.error)

    def _forget(self, link: ServerLink) -> None:
        host = _host(link.address)
        strangers = self._strangers.get(host, {})
        strangers.pop(link, None)
        if not strangers:
            self._strangers.pop(host, None)

    @staticmethod
    def _all(table: dict[str, dict[ServerLink, None]]) -> Iterator[ServerLink]:
        for links in table.values():
            yield from links


def _host(address: str) -> str:
    """What is one host as far as can be told: an IPv4 address, the /64 of an IPv6 one."""
    if ":" not in address:
        return address
    with contextlib.suppress(ValueError):
        parsed = ipaddress.IPv6Address(address)
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(int(parsed) >> 64)
    return address
