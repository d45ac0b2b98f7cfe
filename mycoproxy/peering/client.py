"""The links to other nodes: one to each, opened when it is wanted and kept.

After a dial that failed the node is not dialled again for a moment (it doubles, with jitter, up
to a limit); calls in that time fail at once. Nothing is called twice: whether a call that failed
may be made again depends on what it does, and is the caller's to know (``may_have_run``).
"""

import asyncio
import inspect
import random
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mycoproxy.errors import MycoError
from mycoproxy.peering.bodies import Outgoing
from mycoproxy.peering.connection import Local
from mycoproxy.peering.errors import DeadlineError, HandshakeError, LinkLost, PeeringError
from mycoproxy.peering.link import Answer, ClientLink
from mycoproxy.peering.tls import check_context

Address = tuple[str, int]
Resolve = Callable[[str], Address | Awaitable[Address]]
"""Where a node's agent listens. ``MycoError``: not known."""

CONNECT: Final = 5.0
"""Seconds for TCP's handshake."""

FIRST_DELAY: Final = 0.1
LONGEST_DELAY: Final = 5.0
"""Seconds after a failed dial until the next, the first time and at most."""


@dataclass(slots=True)
class _Node:
    link: ClientLink | None = None
    dialling: asyncio.Task[ClientLink] | None = None
    delay: float = 0.0
    not_before: float = 0.0
    last_error: str = ""


class Peers:
    """Calls to other nodes. For one event loop."""

    def __init__(self, local: Local, context: ssl.SSLContext, resolve: Resolve) -> None:
        check_context(context)
        self._local = local
        self._context = context
        self._resolve = resolve
        self._nodes: dict[str, _Node] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._closing = False

    @property
    def connected(self) -> list[str]:
        """The nodes to which there is a link."""
        return [name for name, node in self._nodes.items() if node.link and node.link.usable]

    async def call(
        self,
        node: str,
        method: str,
        args: Mapping[str, Any] | None = None,
        body: Outgoing = b"",
        *,
        deadline: float,
    ) -> Answer:
        """``ClientLink.call`` on the link to ``node``; dialling counts against the deadline.

        Raises in addition ``HandshakeError``: the node refused, or is not the one that was wanted.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline
        try:
            async with asyncio.timeout_at(end):
                link = await self._link(node)
        except TimeoutError:
            raise DeadlineError(
                f"{node}: no link within {deadline:g} s", may_have_run=False
            ) from None
        return await link.call(method, args, body, deadline=end - loop.time())

    def set_context(self, context: ssl.SSLContext) -> None:
        """Use another certificate or authority: links are opened anew, calls that run go on."""
        check_context(context)
        self._context = context
        for name in list(self._nodes):
            self.forget(name)

    def forget(self, node: str) -> None:
        """Close the link to a node when its calls have ended; the next call dials anew."""
        known = self._nodes.pop(node, None)
        if known is None:
            return
        if known.dialling is not None:
            known.dialling.cancel()
        if known.link is not None:
            ending = asyncio.get_running_loop().create_task(_drain(known.link))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def close(self, grace: float) -> None:
        """Calls that run may end within ``grace`` seconds. Returns when all links are closed."""
        self._closing = True
        links = [node.link for node in self._nodes.values() if node.link is not None]
        for node in self._nodes.values():
            if node.dialling is not None:
                node.dialling.cancel()
        self._nodes.clear()
        ending = list(self._ending)
        await asyncio.gather(*(link.close(grace) for link in links))
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def _link(self, name: str) -> ClientLink:
        if self._closing:
            raise LinkLost(f"{name}: this node closes", may_have_run=False)
        node = self._nodes.setdefault(name, _Node())
        if node.link is not None and node.link.usable:
            return node.link
        loop = asyncio.get_running_loop()
        if node.dialling is None:
            wait = node.not_before - loop.time()
            if wait > 0:
                raise LinkLost(
                    f"{name}: {node.last_error}; not tried again for {wait:.2f} s",
                    may_have_run=False,
                    retry_after=wait,
                )
            node.dialling = loop.create_task(self._dial(name, node), name=f"dial {name}")
            node.dialling.add_done_callback(_looked_at)
        # Others wait for the same dial: it must outlive this call's deadline.
        dialling = node.dialling
        try:
            return await asyncio.shield(dialling)
        except asyncio.CancelledError:
            if dialling.cancelled():
                raise LinkLost(f"{name}: the dial was given up", may_have_run=False) from None
            raise

    async def _dial(self, name: str, node: _Node) -> ClientLink:
        loop = asyncio.get_running_loop()
        try:
            link = await self._connect(name)
        except (OSError, MycoError) as error:
            node.delay = min(node.delay * 2 or FIRST_DELAY, LONGEST_DELAY)
            pause = node.delay * random.uniform(0.5, 1.0)  # noqa: S311 - spreads, hides nothing
            node.not_before = loop.time() + pause
            node.last_error = str(error)
            if isinstance(error, HandshakeError):
                raise
            raise LinkLost(f"{name}: {error}", may_have_run=False, retry_after=pause) from error
        else:
            node.link, node.delay, node.not_before = link, 0.0, 0.0
            return link
        finally:
            node.dialling = None

    async def _connect(self, name: str) -> ClientLink:
        self._local.counters.dialled += 1
        found = self._resolve(name)
        host, port = await found if inspect.isawaitable(found) else found
        try:
            async with asyncio.timeout(CONNECT):
                _, link = await asyncio.get_running_loop().create_connection(
                    lambda: ClientLink(self._local, self._context, name), host, port
                )
        except TimeoutError:
            raise PeeringError(f"{host} port {port} took no connection in {CONNECT:g} s") from None
        try:
            await link.up
        except asyncio.CancelledError:
            link.abort("the dial was given up")
            raise
        return link


def _looked_at(dialling: asyncio.Task[ClientLink]) -> None:
    """A dial may fail when nobody waits for it any more."""
    if not dialling.cancelled():
        dialling.exception()


async def _drain(link: ClientLink) -> None:
    """Calls have deadlines of their own: the link ends when the last one has."""
    try:
        await link.close(grace=24 * 3600)
    except asyncio.CancelledError:
        link.abort("this side closed the link")
        raise
