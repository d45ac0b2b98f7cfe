"""Certificates and authorities are replaced while agents talk, and nobody falls out."""

import asyncio
import resource
import ssl
import threading
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import uvloop
from test_pki_tls import talk

from mycoproxy.errors import RefusedError, UsageError
from mycoproxy.pki import Credentials, CredentialsError, CredentialsWatch, PeerRefusedError
from mycoproxy.pki.authority import AUTHORITY_LIFETIME
from mycoproxy.pki.authority_directory import AuthorityDirectory, Rotation
from mycoproxy.pki.node_directory import install
from mycoproxy.pki.pem import certificates_pem, serial_of

DEADLINE = 20.0


class Cluster:
    """An authority, and nodes that watch their directories."""

    def __init__(self, path: Path, *names: str) -> None:
        self.path = path
        self.authority = AuthorityDirectory.create(path / "authority", cluster="lab")
        for name in names:
            self.authority.issue(name, path / name)
        self.watches = {name: CredentialsWatch(path / name) for name in names}

    def install(self, name: str) -> None:
        install(self.authority.path, self.path / name)
        assert self.watches[name].refresh()

    def rotate(self, name: str) -> None:
        self.authority.rotate_node(name, self.path / name)
        assert self.watches[name].refresh()

    def all_talk(self) -> None:
        for one, other in permutations(self.watches.values(), 2):
            client, server = talk(one.current.client_context(), other.current.server_context())
            assert one.current.peer_identity(client).node == other.current.node
            assert other.current.peer_identity(server).node == one.current.node


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path, "alpha", "beta", "gamma")


def test_a_node_is_rotated_and_connections_of_its_old_certificate_stay_good(
    cluster: Cluster,
) -> None:
    alpha, beta = cluster.watches["alpha"], cluster.watches["beta"]
    old = beta.current
    open_before, _ = talk(alpha.current.client_context(), old.server_context())
    cluster.rotate("beta")
    assert beta.current.serial != old.serial
    assert not beta.refresh()
    assert alpha.current.peer_identity(open_before).node == "beta"
    cluster.all_talk()
    # A context that somebody still holds works on, with the certificate that it was made with.
    client, _ = talk(alpha.current.client_context(), old.server_context())
    assert alpha.current.peer_identity(client).node == "beta"


def test_an_authority_is_rotated_and_all_nodes_talk_after_each_single_step(
    cluster: Cluster,
) -> None:
    authority, names = cluster.authority, list(cluster.watches)
    first = serial_of(authority.authority().certificate)
    assert authority.rotation() is Rotation.NONE

    authority.begin_rotation()
    assert authority.rotation() is Rotation.BEGUN
    cluster.all_talk()
    cluster.rotate("gamma")  # an ordinary renewal in between: the old authority signs it
    for name in names[:2]:
        cluster.install(name)
        cluster.all_talk()

    authority.switch()
    assert authority.rotation() is Rotation.SWITCHED
    assert serial_of(authority.authority().certificate) != first
    for name in names:
        cluster.rotate(name)
        cluster.all_talk()

    authority.finish()
    assert authority.rotation() is Rotation.NONE
    for name in names:
        cluster.install(name)
        cluster.all_talk()
    assert [len(each.current.authorities) for each in cluster.watches.values()] == [1, 1, 1]


def test_a_certificate_of_an_authority_that_is_gone_is_refused(cluster: Cluster) -> None:
    alpha, beta = cluster.watches["alpha"], cluster.watches["beta"]
    open_before, _ = talk(alpha.current.client_context(), beta.current.server_context())
    cluster.authority.begin_rotation()
    cluster.authority.switch()
    cluster.rotate("alpha")
    cluster.authority.finish(force=True)
    cluster.install("alpha")
    with pytest.raises(ssl.SSLCertVerificationError):
        talk(alpha.current.client_context(), beta.current.server_context())
    with pytest.raises(PeerRefusedError, match="signed by none"):
        alpha.current.peer_identity(open_before)


def test_the_old_authority_stays_until_every_node_has_a_new_certificate(cluster: Cluster) -> None:
    authority = cluster.authority
    for step in (authority.switch, authority.finish):
        with pytest.raises(RefusedError):
            step()
    authority.begin_rotation()
    with pytest.raises(RefusedError, match="has begun already"):
        authority.begin_rotation()
    with pytest.raises(RefusedError, match="--switch"):
        authority.finish()
    authority.switch()
    with pytest.raises(RefusedError, match="not finished"):
        authority.begin_rotation()
    cluster.rotate("alpha")
    with pytest.raises(RefusedError, match="nodes beta, gamma have certificates of the old"):
        authority.finish()
    cluster.rotate("beta")
    authority.revoke(node="gamma")
    assert len(authority.finish()) == 1


def test_a_rotation_that_a_crash_cut_short_goes_on(cluster: Cluster) -> None:
    """The next authority was written, and the list of those to trust was not."""
    authority = cluster.authority
    before = (authority.path / "authorities.pem").read_bytes()
    following = authority.begin_rotation()
    (authority.path / "authorities.pem").write_bytes(before)
    with pytest.raises(RefusedError, match="cut short"):
        authority.switch()
    assert authority.begin_rotation().certificate == following.certificate
    assert authority.trusted()[-1] == following.certificate
    assert authority.switch().certificate == following.certificate


def test_what_does_not_fit_a_node_is_not_installed(cluster: Cluster) -> None:
    cluster.authority.begin_rotation()
    cluster.authority.switch()
    cluster.authority.finish(force=True)
    before = (cluster.path / "alpha" / "node.pem").read_bytes()
    with pytest.raises(CredentialsError, match="signed by none of the 1 authorities"):
        install(cluster.authority.path, cluster.path / "alpha")
    assert (cluster.path / "alpha" / "node.pem").read_bytes() == before


def test_a_revoked_node_is_shut_out_from_the_next_look_on(cluster: Cluster) -> None:
    alpha, beta = cluster.watches["alpha"], cluster.watches["beta"]
    open_before, _ = talk(alpha.current.client_context(), beta.current.server_context())
    cluster.rotate("beta")
    assert len(cluster.authority.revoke(node="beta")) == 2
    assert cluster.authority.revoke(node="beta") == []
    cluster.install("alpha")
    with pytest.raises(PeerRefusedError, match="was revoked"):
        alpha.current.peer_identity(open_before)
    client, _ = talk(alpha.current.client_context(), beta.current.server_context())
    with pytest.raises(PeerRefusedError, match="was revoked"):
        alpha.current.peer_identity(client)
    # The name comes back with a new certificate.
    cluster.rotate("beta")
    client, _ = talk(alpha.current.client_context(), beta.current.server_context())
    assert alpha.current.peer_identity(client).node == "beta"


@pytest.mark.parametrize(
    "breaking",
    [
        lambda at: (at / "node.pem").write_text("nonsense"),
        lambda at: (at / "node.pem").write_bytes((at / "node.pem").read_bytes()[:-300]),
        lambda at: (at / "node.pem").unlink(),
        lambda at: (at / "node.pem").chmod(0o644),
        lambda at: (at / "revoked").write_text("beta\n"),
        lambda at: (at / "revoked").unlink(),
    ],
    ids=["nonsense", "cut off", "gone", "readable by all", "list unreadable", "list gone"],
)
def test_broken_files_leave_the_old_ones_in_use_and_are_reported(
    cluster: Cluster, breaking: Callable[[Path], object]
) -> None:
    watch, at = cluster.watches["alpha"], cluster.path / "alpha"
    used = watch.current
    breaking(at)
    assert not watch.refresh()
    assert str(at) in str(watch.error)
    assert watch.current is used
    assert not watch.refresh()
    assert watch.error is not None
    cluster.all_talk()
    # Good again, with another certificate.
    for name in ("node.pem", "revoked"):
        (at / name).unlink(missing_ok=True)
    cluster.authority.issue("alpha", at)
    assert watch.refresh()
    assert watch.error is None
    assert watch.current.serial != used.serial


def test_an_agent_without_a_free_descriptor_keeps_its_certificate(cluster: Cluster) -> None:
    """Thousands of connections of a hostile peer must not end in an agent that falls over."""
    watch = cluster.watches["alpha"]
    used = watch.current
    cluster.authority.rotate_node("alpha", cluster.path / "alpha")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        assert not watch.refresh()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "Too many open files" in str(watch.error)
    assert watch.current is used
    assert watch.refresh()


def test_a_certificate_of_tomorrow_is_used_from_tomorrow_on(cluster: Cluster) -> None:
    today = datetime.now(UTC)
    clock = [today]
    watch = CredentialsWatch(cluster.path / "alpha", clock=lambda: clock[0])
    used = watch.current
    tomorrow = AuthorityDirectory(cluster.authority.path, now=today + timedelta(days=1))
    tomorrow.rotate_node("alpha", cluster.path / "alpha")
    assert not watch.refresh()
    assert "is valid from" in str(watch.error)
    assert watch.current is used
    clock[0] += timedelta(days=1)
    assert watch.refresh()
    assert watch.error is None


def test_only_the_node_itself_is_rotated_in_its_directory(cluster: Cluster) -> None:
    with pytest.raises(UsageError, match="is for mycoproxy://lab/node/beta, not for node alpha"):
        cluster.authority.rotate_node("alpha", cluster.path / "beta")
    with pytest.raises(UsageError, match="mycoproxy pki issue makes it"):
        cluster.authority.rotate_node("alpha", cluster.path / "nowhere")


def test_a_reader_never_fails_during_rotations(cluster: Cluster) -> None:
    """Whole loads in a loop, key checked against certificate, authority rotations among them."""
    at, stop, serials = cluster.path / "alpha", threading.Event(), set()
    failures: list[Exception] = []

    def read_all_the_time() -> None:
        while not stop.is_set():
            try:
                serials.add(Credentials.load(at).serial)
            except (CredentialsError, ssl.SSLError) as error:
                failures.append(error)
                return

    reader = threading.Thread(target=read_all_the_time, daemon=True)
    reader.start()
    authority = cluster.authority
    for number in range(50):
        # Every tenth time the whole authority changes, and the node gets it all in one file.
        if number % 10 == 9:
            authority.begin_rotation(lifetime=AUTHORITY_LIFETIME)
            authority.switch()
        authority.rotate_node("alpha", at)
        if number % 10 == 9:
            authority.finish(force=True)
            install(authority.path, at)
    stop.set()
    reader.join(DEADLINE)
    assert not reader.is_alive()
    assert failures == []
    assert len(serials) > 1


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_listener_uses_new_certificates_without_being_restarted(
    cluster: Cluster, run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    alpha, beta = cluster.watches["alpha"], cluster.watches["beta"]

    met: list[str] = []

    async def listen_and_rotate() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = beta.current.peer_identity(writer.get_extra_info("ssl_object")).node
            met.append(peer)
            while line := await reader.readline():
                writer.write(peer.encode() + b" " + line)
            writer.close()

        async def dial(context: ssl.SSLContext) -> tuple[asyncio.StreamReader, Any, str]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            tls = writer.get_extra_info("ssl_object")
            assert alpha.current.peer_identity(tls).node == "beta"
            serial = f"{int(tls.getpeercert()['serialNumber'], 16):x}"
            return reader, writer, serial

        async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
            writer.write(b"who am I\n")
            return await reader.readline()

        async def is_refused(context: ssl.SSLContext) -> bool:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            try:
                return await reader.read() == b""
            except (ssl.SSLError, ConnectionError):
                return True
            finally:
                writer.transport.abort()

        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=beta.listening_context())
        port = server.sockets[0].getsockname()[1]
        first_reader, first_writer, serial = await dial(alpha.current.client_context())
        assert serial == beta.current.serial
        assert await ask(first_reader, first_writer) == b"alpha who am I\n"

        # A new certificate, an authority more.
        stranger = alpha.current
        cluster.authority.begin_rotation()
        cluster.install("alpha")
        cluster.install("beta")
        cluster.authority.switch()
        cluster.rotate("alpha")
        cluster.rotate("beta")
        second_reader, second_writer, second = await dial(alpha.current.client_context())
        assert second == beta.current.serial != serial
        assert await ask(second_reader, second_writer) == b"alpha who am I\n"
        assert await ask(first_reader, first_writer) == b"alpha who am I\n"

        # An authority less: its certificates no longer get through the handshake.
        cluster.authority.finish(force=True)
        cluster.install("beta")
        cluster.install("alpha")
        assert await is_refused(_trusting_both(stranger, alpha.current))
        third_reader, third_writer, _ = await dial(alpha.current.client_context())
        assert await ask(third_reader, third_writer) == b"alpha who am I\n"
        assert met == ["alpha"] * 3
        for writer in (first_writer, second_writer, third_writer):
            writer.close()
        server.close()
        await server.wait_closed()

    async def with_deadline() -> None:
        await asyncio.wait_for(listen_and_rotate(), DEADLINE)

    run(with_deadline())


def _trusting_both(old: Credentials, new: Credentials) -> ssl.SSLContext:
    """A client that shows its old certificate and has nothing against a server's new one."""
    context = old.client_context()
    context.load_verify_locations(cadata=certificates_pem(new.authorities).decode())
    return context
