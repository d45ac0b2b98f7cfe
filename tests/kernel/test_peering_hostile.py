"""Hostile peers against an agent's server in a process of its own, with real certificates.

Whatever they do: no request of theirs reaches the handler, the process does not grow, and good
peers are served meanwhile, on links that they have and on new ones.

Three network namespaces: the server's, the good node's, and the attacker's; each of the two is
joined to the server's. Run as a program, this file is the server.
"""

import asyncio
import contextlib
import errno
import json
import os
import random
import resource
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import uvloop

from mycoproxy.peering import (
    Body,
    HandshakeError,
    LinkLimits,
    LinkLost,
    Local,
    PeeringError,
    Peers,
    PeerServer,
    Reply,
)
from mycoproxy.peering.frames import encode
from mycoproxy.pki import ALPN, Credentials
from mycoproxy.pki.authority_directory import AuthorityDirectory

pytestmark = pytest.mark.root

PORT = 7946
CONNECTIONS = 10_000
MIB = 1024 * 1024
GROWTH = 64 * MIB
DEADLINE = 10.0
LIMITS = LinkLimits(handshake=3.0, hello=3.0, linger=0.5)


def local(credentials: Credentials, node: str | None = None) -> Local:
    return Local(
        node or credentials.node,
        lambda peer: credentials.peer_identity(peer).node,
        limits=LIMITS,
    )


# The server's process.


async def serve(directory: Path) -> None:
    """Serve until stdin ends. ``status`` tells what has happened; ``wait`` never ends."""
    credentials = Credentials.load(directory)
    here = local(credentials)
    waiting = 0

    async def handler(peer: str, method: str, _: dict[str, Any], body: Body) -> Reply:
        async for _chunk in body:
            pass
        nonlocal waiting
        if method == "wait":
            waiting += 1
            await asyncio.Event().wait()
        counters = here.counters
        return Reply(
            {
                "peer": peer,
                "strangers": server.strangers,
                "accepted": counters.accepted,
                "refused": dict(counters.refused),
                "waiting": waiting,
                "requests": counters.requests_in,
                "descriptors": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
            }
        )

    server = PeerServer(here, credentials.server_context(), handler)
    for address in ("0.0.0.0", "::1"):
        await server.listen(address, PORT)
    print("ready", flush=True)  # noqa: T201
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.close(grace=0.1)


# The lab.


@dataclass(frozen=True)
class Lab:
    """The server's process, and ways to act as the good node and as the attacker."""

    process: subprocess.Popen[str]
    good_address: str
    bad_address: str
    certificates: Path
    good: Callable[[Coroutine[Any, Any, Any]], Any]
    bad: Callable[[Coroutine[Any, Any, Any]], Any]
    bad_later: Callable[[Coroutine[Any, Any, Any]], Any]

    def credentials(self, name: str) -> Credentials:
        return Credentials.load(self.certificates / name)

    def resident(self) -> int:
        """Bytes of memory that the server's process has now."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * 4096

    @asynccontextmanager
    async def peers(
        self, name: str = "good", address: str | None = None, **claims: str
    ) -> AsyncIterator[Peers]:
        """A node's links, closed in the end: uvloop, warning of an open one, hangs."""
        credentials = self.credentials(name)
        at = (address or self.good_address, PORT)
        pool = Peers(local(credentials, **claims), credentials.client_context(), lambda _: at)
        try:
            yield pool
        finally:
            await pool.close(grace=1)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peering")
    ours = AuthorityDirectory.create(path / "ca", cluster="prod")
    for node in ("server", "good", "other"):
        ours.issue(node, path / node)
    theirs = AuthorityDirectory.create(path / "their-ca", cluster="prod")
    theirs.issue("good", path / "wrong-authority")
    return path


@pytest.fixture
def lab(network: Any, certificates: Path) -> Iterator[Lab]:
    server, good, bad = (network.node(name) for name in ("server", "good", "bad"))
    good_link, bad_link = network.link(good, server), network.link(bad, server)
    process = server.call(
        subprocess.Popen,
        [sys.executable, __file__, str(certificates / "server")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    runs = {
        node: lambda main, node=node: node.call(uvloop.run, asyncio.wait_for(main, 60))
        for node in (good, bad)
    }
    try:
        assert process.stdout.readline() == "ready\n"
        yield Lab(
            process,
            good_link.right_v4,
            bad_link.right_v4,
            certificates,
            runs[good],
            runs[bad],
            lambda main: bad.worker.submit(uvloop.run, asyncio.wait_for(main, 60)),
        )
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(timeout=10)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


async def status(lab: Lab) -> dict[str, Any]:
    """What the server says to a good peer on a new link."""
    async with lab.peers() as pool:
        return (await pool.call("server", "status", deadline=DEADLINE)).result


async def serve_good_peers_until(lab: Lab, done: Callable[[], bool]) -> int:
    """Call the server on a link that is kept, and on new ones; how often. Any error is one."""
    calls = 0
    async with lab.peers() as kept:
        while True:
            last = done()
            await kept.call("server", "status", {}, bytes(100_000), deadline=DEADLINE)
            await status(lab)
            calls += 2
            if last:
                return calls


def test_a_peer_without_a_valid_certificate_gets_nothing(lab: Lab) -> None:
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.verify_mode = ssl.CERT_NONE
    bare.set_alpn_protocols([ALPN])

    async def attack() -> None:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            reader, writer = await asyncio.open_connection(lab.bad_address, PORT, ssl=bare)
            writer.write(encode([0, 0, {"protocol": "mycoproxy-peer"}]))
            if await asyncio.wait_for(reader.read(), DEADLINE) == b"":
                raise ConnectionError("nothing")
        async with lab.peers("wrong-authority", lab.bad_address) as pool:
            with pytest.raises(HandshakeError, match="certificate"):
                await pool.call("server", "status", deadline=DEADLINE)

    before = lab.good(status(lab))
    lab.bad(attack())
    after = lab.good(status(lab))
    assert after["requests"] == before["requests"] + 1
    assert after["refused"]["tls"] >= 1


def test_an_expired_certificate_gets_nothing(lab: Lab, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    old = AuthorityDirectory(lab.certificates / "ca", now=now - timedelta(days=10))
    old.issue("good", tmp_path / "expired", lifetime=timedelta(days=1))
    expired = Credentials.load(tmp_path / "expired", now=now - timedelta(days=9.5))

    async def attack() -> None:
        here, context = local(expired), expired.client_context()
        here.identify = lambda _: "server"
        pool = Peers(here, context, lambda _: (lab.bad_address, PORT))
        try:
            with pytest.raises((HandshakeError, LinkLost), match="expired") as caught:
                await pool.call("server", "status", deadline=DEADLINE)
            assert not caught.value.may_have_run
        finally:
            await pool.close(grace=1)

    before = lab.good(status(lab))
    lab.bad(attack())
    after = lab.good(status(lab))
    assert after["requests"] == before["requests"] + 1
    assert after["refused"] == {"tls": 1}


def test_a_node_is_only_itself(lab: Lab) -> None:
    async def attack() -> None:
        async with lab.peers("other", lab.bad_address, node="good") as pool:
            with pytest.raises(HandshakeError, match="certificate of other says hello as 'good'"):
                await pool.call("server", "status", deadline=DEADLINE)
        async with lab.peers("other", lab.bad_address) as pool:
            with pytest.raises(HandshakeError, match="good was wanted; the certificate is that of"):
                await pool.call("good", "status", deadline=DEADLINE)
            answer = await pool.call("server", "status", deadline=DEADLINE)
            assert answer.result["peer"] == "other"

    lab.bad(attack())


async def _answered(address: str, sent: bytes) -> int:
    """How many bytes come back before the end."""
    reader, writer = await asyncio.open_connection(address, PORT)
    size = 0
    with contextlib.suppress(ConnectionError):
        writer.write(sent)
        async with asyncio.timeout(DEADLINE):
            while data := await reader.read(65536):
                size += len(data)
    writer.close()
    return size


def test_random_bytes_and_plain_http_get_an_alert_at_most(lab: Lab) -> None:
    course = random.Random(1)
    sent = [course.randbytes(course.randint(1, 70_000)) for _ in range(200)]
    sent += [b"GET /metrics HTTP/1.1\r\nHost: server\r\n\r\n"] * 20
    # The head of a TLS record, and of a ClientHello, and then anything.
    sent += [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + course.randbytes(600)] * 20

    async def attack() -> None:
        sizes = await asyncio.gather(*(_answered(lab.bad_address, one) for one in sent))
        assert max(sizes) <= 7

    before = lab.good(status(lab))
    resident = lab.resident()
    lab.bad(attack())
    after = lab.good(status(lab))
    assert after["requests"] == before["requests"] + 1
    assert lab.resident() - resident < GROWTH


def test_an_authenticated_peer_that_sends_nonsense_ends_only_its_own_links(lab: Lab) -> None:
    credentials = lab.credentials("other")
    course = random.Random(2)

    async def attack_once() -> None:
        reader, writer = await asyncio.open_connection(
            lab.bad_address, PORT, ssl=credentials.client_context(), server_hostname=""
        )
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            writer.write(
                course.choice(
                    (
                        course.randbytes(5000),
                        b"\xff\xff\xff\xff",
                        b"\x00\x00\x0f\xff" + b"\xdd\x00\x03\x0d\x40" * 819,
                        encode([1, 0, 1, "status", 1000, {}, False]),
                        encode([0, 0, {"protocol": "mycoproxy-peer", "node": "good"}]),
                    )
                )
            )
            async with asyncio.timeout(DEADLINE):
                await reader.read()
        writer.close()

    async def attack() -> None:
        for _ in range(10):
            await asyncio.gather(*(attack_once() for _ in range(20)))

    before = lab.good(status(lab))
    resident = lab.resident()
    attacking = lab.bad_later(attack())
    lab.good(serve_good_peers_until(lab, attacking.done))
    attacking.result()
    after = lab.good(status(lab))
    assert after["refused"]["protocol"] + after["refused"].get("identity", 0) == 200
    assert after["accepted"] - before["accepted"] > 200
    assert lab.resident() - resident < GROWTH


def _client_hello(credentials: Credentials) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = credentials.client_context().wrap_bio(incoming, outgoing)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def test_a_slow_loris_is_cut_off_and_nobody_waits_for_it(lab: Lab) -> None:
    hello = _client_hello(lab.credentials("good"))
    assert len(hello) > 2 * LIMITS.handshake

    async def drip() -> float:
        """Send a byte a second; how long the server bears it."""
        began = time.monotonic()
        reader, writer = await asyncio.open_connection(lab.bad_address, PORT)
        ended = asyncio.ensure_future(reader.read())
        for byte in hello:
            writer.write(bytes([byte]))
            await asyncio.wait([ended], timeout=1)
            if ended.done():
                break
        with contextlib.suppress(ConnectionError):
            assert await ended == b""
        writer.close()
        return time.monotonic() - began

    async def attack() -> None:
        lives = await asyncio.gather(*(drip() for _ in range(200)))
        assert max(lives) < len(hello) / 2  # it was not borne to its end

    before = lab.good(status(lab))
    attacking = lab.bad_later(attack())
    assert lab.good(serve_good_peers_until(lab, attacking.done)) > 2
    attacking.result()
    after = lab.good(status(lab))
    assert after["refused"]["deadline"] >= 200
    assert after["strangers"] == before["strangers"]


async def _flood(address: str, number: int, hello: bytes) -> tuple[int, int]:
    """``number`` connections at once, some silent, some that begin. (opened, bytes that came)."""
    loop = asyncio.get_running_loop()
    sockets, came = [], 0
    try:
        for index in range(number):
            sock = socket.socket()
            sock.setblocking(False)
            sockets.append(sock)
            refused = sock.connect_ex((address, PORT))
            assert refused in (0, errno.EINPROGRESS), os.strerror(refused)
            if index % 50 == 0:
                await asyncio.sleep(0)

        async def begin(index: int, sock: socket.socket) -> int:
            with contextlib.suppress(OSError):
                await loop.sock_sendall(sock, (b"", hello[:100], hello, os.urandom(500))[index % 4])
                async with asyncio.timeout(30):
                    size = 0
                    while data := await loop.sock_recv(sock, 65536):
                        size += len(data)
                    return size
            return 0

        sizes = await asyncio.gather(*(begin(*one) for one in enumerate(sockets)))
        came = max(sizes)
    finally:
        for sock in sockets:
            sock.close()
    return len(sockets), came


def test_ten_thousand_connections_take_neither_memory_nor_the_service(lab: Lab) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        number = min(CONNECTIONS, hard - 1000)
        before = lab.good(status(lab))
        resident = lab.resident()
        most = {"strangers": 0, "descriptors": 0, "resident": 0}
        attacking = lab.bad_later(
            _flood(lab.bad_address, number, _client_hello(lab.credentials("good")))
        )

        async def watch() -> int:
            calls = 0
            async with lab.peers() as kept:
                while True:
                    last = attacking.done()
                    now = (await kept.call("server", "status", deadline=DEADLINE)).result
                    fresh = await status(lab)
                    calls += 2
                    for key in ("strangers", "descriptors"):
                        most[key] = max(most[key], now[key], fresh[key])
                    most["resident"] = max(most["resident"], lab.resident())
                    if last:
                        return calls

        calls = lab.good(watch())
        opened, came = attacking.result()
        after = lab.good(status(lab))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert opened == number
    assert calls > 4
    assert after["requests"] - before["requests"] == calls + 1  # none of theirs
    assert after["accepted"] - before["accepted"] >= number
    assert after["refused"]["crowded"] > number / 10
    assert came < 16384  # a server's half of a handshake: its certificate, no more
    assert most["strangers"] <= 256
    assert most["descriptors"] < 5000
    assert max(most["resident"], lab.resident()) - resident < GROWTH
    print(json.dumps({"calls": calls, **most, "before": resident}))  # noqa: T201


def test_a_server_that_is_killed_mid_call_leaves_the_outcome_unknown(lab: Lab) -> None:
    async def main() -> None:
        async with lab.peers() as pool:
            call = asyncio.ensure_future(pool.call("server", "wait", deadline=DEADLINE))
            while not (await pool.call("server", "status", deadline=DEADLINE)).result["waiting"]:
                pass
            os.kill(lab.process.pid, signal.SIGKILL)
            with pytest.raises(LinkLost) as caught:
                await call
            assert caught.value.may_have_run
            with pytest.raises(PeeringError) as refused:
                await pool.call("server", "status", deadline=DEADLINE)
            assert not refused.value.may_have_run

    lab.good(main())


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1])))
