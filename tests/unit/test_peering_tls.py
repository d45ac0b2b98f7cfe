"""Who gets a link: certificates and identities, over real TLS on loopback.

The other tests of the peering take their certificates and their loop from here.
"""

import asyncio
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mycoproxy.errors import MycoError, UsageError
from mycoproxy.peering import (
    Body,
    HandshakeError,
    LinkLimits,
    LinkLost,
    Local,
    Peers,
    PeerServer,
    Reply,
    ServerLimits,
)
from mycoproxy.peering.serving import Handler
from mycoproxy.peering.tls import check_context

HOUR = timedelta(hours=1)
DEADLINE = 10.0


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def key_pem(self) -> str:
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode()


def issue(name: str, issuer: Certificate | None = None, *, ends: timedelta = HOUR) -> Certificate:
    """A certificate for ``name``, or an authority's if there is no issuer."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 2 * HOUR)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    return Certificate(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


@cache
def authority(name: str) -> Certificate:
    return issue(f"authority of {name}")


@cache
def certificate(name: str, cluster: str = "cluster") -> Certificate:
    return issue(name, authority(cluster))


def context(
    side: str, own: Certificate | None, trusted: Certificate | None = None
) -> ssl.SSLContext:
    """As agents have them. ``side``: "server" or "client"."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if side == "server" else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(cadata=(trusted or authority("cluster")).pem)
    if own is not None:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "node.pem")
            path.write_text(own.pem + own.key_pem)
            made.load_cert_chain(path)
    return made


def identify(peer: ssl.SSLObject) -> str:
    """The name in the certificate; a node called ``banned`` is not let in."""
    subject: Any = (peer.getpeercert() or {})["subject"]
    name = str(dict(pair[0] for pair in subject)["commonName"])
    if name == "banned":
        raise MycoError("banned was revoked")
    return name


async def echo(peer: str, method: str, args: dict[str, Any], body: Body) -> Reply:
    """A handler: says what it was asked."""
    return Reply({"peer": peer, "method": method, "args": args}, await body.read())


def run(main: Coroutine[Any, Any, None], *, timeout: float = 60) -> None:
    """On the loop that agents use, and not longer than ``timeout`` seconds."""
    uvloop.run(asyncio.wait_for(main, timeout))


@asynccontextmanager
async def serving(
    handler: Handler = echo,
    *,
    node: str = "b",
    server_context: ssl.SSLContext | None = None,
    limits: LinkLimits | None = None,
    server_limits: ServerLimits | None = None,
    features: frozenset[str] = frozenset(),
    address: str = "127.0.0.1",
    port: int = 0,
) -> AsyncIterator[PeerServer]:
    """A server of node b on loopback."""
    server = PeerServer(
        Local(node, identify, features, limits or LinkLimits()),
        server_context or context("server", certificate(node)),
        handler,
        server_limits,
    )
    await server.listen(address, port)
    try:
        yield server
    finally:
        await server.close(grace=0.1)


@asynccontextmanager
async def peers(
    server: PeerServer | tuple[str, int],
    *,
    node: str = "a",
    client_context: ssl.SSLContext | None = None,
    limits: LinkLimits | None = None,
    features: frozenset[str] = frozenset(),
) -> AsyncIterator[Peers]:
    """Node a's links; every other node is at that server."""
    address = server.addresses[0] if isinstance(server, PeerServer) else server
    pool = Peers(
        Local(node, identify, features, limits or LinkLimits()),
        client_context or context("client", certificate(node)),
        lambda _: address,
    )
    try:
        yield pool
    finally:
        await pool.close(grace=0.1)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_two_nodes_of_one_cluster_talk(address: str) -> None:
    async def main() -> None:
        async with serving(address=address) as server, peers(server) as pool:
            answer = await pool.call("b", "m", {"k": 1}, b"body", deadline=DEADLINE)
            assert answer.result == {"peer": "a", "method": "m", "args": {"k": 1}}
            assert await answer.body.read() == b"body"
            assert server.links == {"a": 1}

    run(main())


@pytest.mark.parametrize(
    ("client_context", "reason"),
    [
        (context("client", None), "certificate required"),
        (context("client", certificate("a", "other")), "unknown ca"),
        (context("client", issue("a", authority("cluster"), ends=-HOUR)), "certificate expired"),
    ],
    ids=["none", "another authority's", "expired"],
)
def test_a_client_without_a_valid_certificate_gets_nothing(
    client_context: ssl.SSLContext, reason: str
) -> None:
    async def main() -> None:
        async with serving() as server, peers(server, client_context=client_context) as pool:
            with pytest.raises((HandshakeError, LinkLost), match=reason) as caught:
                await pool.call("b", "m", deadline=DEADLINE)
            assert not caught.value.may_have_run
            assert server.links == {}
            assert server._local.counters.refused["tls"] == 1
            assert server._local.counters.requests_in == 0

    run(main())


@pytest.mark.parametrize(
    ("server_certificate", "message"),
    [
        (certificate("c"), "b was wanted; the certificate is that of c"),
        (certificate("banned"), "banned was revoked"),
        (certificate("b", "other"), "self-signed|unable to get local issuer"),
        (issue("b", authority("cluster"), ends=-HOUR), "expired"),
    ],
)
def test_a_client_refuses_a_server_that_is_not_the_node_it_wanted(
    server_certificate: Certificate, message: str
) -> None:
    async def main() -> None:
        made = context("server", server_certificate)
        async with serving(server_context=made) as server, peers(server) as pool:
            with pytest.raises(HandshakeError, match=message):
                await pool.call("b", "m", deadline=DEADLINE)
            assert server.links == {}

    run(main())


def test_a_node_that_is_not_let_in_gets_nothing() -> None:
    async def main() -> None:
        async with serving() as server, peers(server, node="banned") as pool:
            with pytest.raises((HandshakeError, LinkLost)):
                await pool.call("b", "m", deadline=DEADLINE)
            assert server._local.counters.refused["identity"] == 1
            assert server._local.counters.requests_in == 0

    run(main())


def test_a_node_cannot_say_hello_as_another() -> None:
    async def main() -> None:
        stolen = context("client", certificate("c"))
        async with serving() as server, peers(server, client_context=stolen) as pool:
            with pytest.raises(HandshakeError, match="certificate of c says hello as 'a'"):
                await pool.call("b", "m", deadline=DEADLINE)
            assert server.links == {}

    run(main())


def test_a_link_ends_when_its_peer_is_no_longer_let_in() -> None:
    async def main() -> None:
        limits = LinkLimits(idle=0.2)
        async with serving(limits=limits) as server, peers(server) as pool:
            await pool.call("b", "m", deadline=DEADLINE)

            def refuse(_: ssl.SSLObject) -> str:
                raise MycoError("a was revoked")

            server._local.identify = refuse
            async with asyncio.timeout(DEADLINE):
                while pool.connected:
                    await asyncio.sleep(0.01)
            with pytest.raises(LinkLost, match="before its hello"):
                await pool.call("b", "m", deadline=DEADLINE)

    run(main())


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\nHost: b\r\n\r\n", bytes(range(256)) * 20])
def test_what_is_no_tls_is_refused(sent: bytes) -> None:
    async def main() -> None:
        async with serving() as server:
            reader, writer = await asyncio.open_connection(*server.addresses[0])
            writer.write(sent)
            async with asyncio.timeout(DEADLINE):
                answer = await reader.read()
            writer.close()
            assert len(answer) <= 7  # an alert, and the end
            assert server._local.counters.refused == {"tls": 1}

    run(main())


def test_an_older_tls_is_refused() -> None:
    async def main() -> None:
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        old.check_hostname = False
        old.verify_mode = ssl.CERT_NONE
        async with serving() as server:
            with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
                await asyncio.open_connection(*server.addresses[0], ssl=old)

    run(main())


def test_a_context_that_would_let_in_anybody_is_refused() -> None:
    lax = context("server", certificate("b"))
    lax.verify_mode = ssl.CERT_OPTIONAL
    with pytest.raises(UsageError, match="CERT_REQUIRED"):
        check_context(lax)
    old = context("server", certificate("b"))
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(UsageError, match=r"TLS 1\.3"):
        check_context(old)


def test_the_socket_has_its_options() -> None:
    async def main() -> None:
        async with serving() as server, peers(server) as pool:
            await pool.call("b", "m", deadline=DEADLINE)
            link = pool._nodes["b"].link
            assert link is not None
            sock = link._transport.get_extra_info("socket")
            options = {
                name: sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                for name in ("TCP_NODELAY", "TCP_USER_TIMEOUT", "TCP_KEEPIDLE", "TCP_KEEPCNT")
            }
            assert options == {
                "TCP_NODELAY": 1,
                "TCP_USER_TIMEOUT": 20000,
                "TCP_KEEPIDLE": 2,
                "TCP_KEEPCNT": 4,
            }

    run(main())
