"""Who gets through a TLS handshake with a node, and who is told from whom after it.

Real handshakes of OpenSSL with itself, through buffers in memory: no sockets, so nothing can hang.
"""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from mycoproxy.pki import ALPN, Credentials, Identity, PeerRefusedError
from mycoproxy.pki.authority_directory import AuthorityDirectory
from mycoproxy.pki.contexts import bare_context, context_with
from mycoproxy.pki.pem import certificates_pem, key_pem, new_key, read_key

DAY = timedelta(days=1)


@dataclass
class End:
    """One end of a connection through memory."""

    tls: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO


def talk(
    client: ssl.SSLContext, server: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Shake hands and send a byte each way; whatever either end is refused with is raised."""
    ends = []
    for context, is_server in ((client, False), (server, True)):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        resumed = None if is_server else session
        tls = context.wrap_bio(incoming, outgoing, server_side=is_server, session=resumed)
        ends.append(End(tls, incoming, outgoing))
    first, second = ends
    _step_until_done(first, second, lambda end: end.tls.do_handshake())
    # A server's refusal of a client's certificate comes after the client's handshake.
    assert exchange(first, second, b"c") == b"c"
    assert exchange(second, first, b"s") == b"s"
    return first.tls, second.tls


def exchange(sender: End, receiver: End, data: bytes) -> bytes:
    """Send something and read it at the other end."""
    sender.tls.write(data)
    receiver.incoming.write(sender.outgoing.read())
    return receiver.tls.read(len(data))


def _step_until_done(first: End, second: End, step: Callable[[End], None]) -> None:
    done: set[int] = set()
    for _ in range(10):
        for end, other in ((first, second), (second, first)):
            try:
                step(end)
                done.add(id(end))
            except ssl.SSLWantReadError:
                pass
            other.incoming.write(end.outgoing.read())
        if len(done) == 2:
            return
    raise AssertionError("the handshake comes to no end")


@pytest.fixture
def directory(tmp_path: Path) -> AuthorityDirectory:
    return AuthorityDirectory.create(tmp_path / "authority", cluster="lab")


@pytest.fixture
def alpha(directory: AuthorityDirectory, tmp_path: Path) -> Credentials:
    return credentials(directory, "alpha", tmp_path)


@pytest.fixture
def beta(directory: AuthorityDirectory, tmp_path: Path) -> Credentials:
    return credentials(directory, "beta", tmp_path)


def credentials(
    directory: AuthorityDirectory, node: str, under: Path, *, now: datetime | None = None
) -> Credentials:
    """A node's credentials, made at ``now``."""
    maker = AuthorityDirectory(directory.path, now=now)
    maker.issue(node, under / node, lifetime=30 * DAY)
    return Credentials.load(under / node, now=now)


def node_key(of: Credentials) -> ec.EllipticCurvePrivateKey:
    return read_key(of.paths[0].read_bytes(), of.paths[0])


def signed(
    issuer: x509.Certificate,
    issuer_key: ec.EllipticCurvePrivateKey,
    names: list[x509.GeneralName] | None,
    *,
    ca: bool = False,
    usage: tuple[x509.ObjectIdentifier, ...] = (
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.SERVER_AUTH,
    ),
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """A certificate that our own code would not make."""
    key, now = new_key(), datetime.now(UTC)
    authority_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "odd")]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
        .add_extension(authority_id, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return key, builder.sign(issuer_key, SHA256())


def context_of(
    protocol: int, key: ec.EllipticCurvePrivateKey, chain: list[x509.Certificate], of: Credentials
) -> ssl.SSLContext:
    """A context with any certificate, that trusts whom ``of`` trusts."""
    own = key_pem(key) + certificates_pem(chain)
    return context_with(protocol, own, certificates_pem(of.authorities))


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def test_two_nodes_know_each_other(alpha: Credentials, beta: Credentials) -> None:
    client, server = talk(alpha.client_context(), beta.server_context())
    assert alpha.peer_identity(client) == Identity(cluster="lab", node="beta")
    assert beta.peer_identity(server) == Identity(cluster="lab", node="alpha")
    assert client.version() == server.version() == "TLSv1.3"
    assert client.selected_alpn_protocol() == server.selected_alpn_protocol() == ALPN
    assert client.compression() is None


def test_a_client_without_a_certificate_is_refused(alpha: Credentials) -> None:
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        talk(bare, alpha.server_context())


def test_another_clusters_authority_is_refused_at_both_ends(
    alpha: Credentials, tmp_path: Path
) -> None:
    foreign = AuthorityDirectory.create(tmp_path / "foreign", cluster="lab")
    stranger = credentials(foreign, "stranger", tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        talk(alpha.client_context(), stranger.server_context())
    # The stranger would take anybody, so it is the server that refuses.
    own = key_pem(node_key(stranger)) + certificates_pem([stranger.certificate])
    careless = context_with(
        ssl.PROTOCOL_TLS_CLIENT, own, certificates_pem([*stranger.authorities, *alpha.authorities])
    )
    with pytest.raises(ssl.SSLCertVerificationError):
        talk(careless, alpha.server_context())
    with pytest.raises(PeerRefusedError, match="signed by none of the 1 authorities"):
        alpha.peer_identity(der(stranger.certificate))


@pytest.mark.parametrize(("shift", "reason"), [(-60 * DAY, "expired"), (DAY, "not yet valid")])
def test_a_certificate_out_of_its_time_is_refused_at_both_ends(
    directory: AuthorityDirectory, alpha: Credentials, tmp_path: Path, shift: timedelta, reason: str
) -> None:
    off = credentials(directory, "beta", tmp_path, now=datetime.now(UTC) + shift)
    with pytest.raises(ssl.SSLCertVerificationError, match=reason):
        talk(off.client_context(), alpha.server_context())
    with pytest.raises(ssl.SSLCertVerificationError, match=reason):
        talk(alpha.client_context(), off.server_context())
    with pytest.raises(PeerRefusedError, match="is valid from"):
        alpha.peer_identity(der(off.certificate))
    at_its_time = datetime.now(UTC) + shift
    assert alpha.peer_identity(der(off.certificate), now=at_its_time).node == "beta"


def test_an_open_connection_can_be_asked_again_when_the_certificate_has_run_out(
    alpha: Credentials, beta: Credentials
) -> None:
    client, _ = talk(alpha.client_context(), beta.server_context())
    assert alpha.peer_identity(client, now=beta.not_after).node == "beta"
    with pytest.raises(PeerRefusedError, match="is valid from"):
        alpha.peer_identity(client, now=beta.not_after + timedelta(seconds=1))


def test_another_nodes_certificate_shows_the_other_nodes_name(
    alpha: Credentials, beta: Credentials
) -> None:
    """The handshake succeeds whoever it is: the caller must compare the name."""
    client, _ = talk(alpha.client_context(), beta.server_context())
    assert alpha.peer_identity(client).node != "gamma"


def test_a_nodes_certificate_cannot_sign_another(alpha: Credentials, beta: Credentials) -> None:
    name = x509.UniformResourceIdentifier("mycoproxy://lab/node/gamma")
    key, forged = signed(beta.certificate, node_key(beta), [name])
    chain = [forged, beta.certificate]
    with pytest.raises(ssl.SSLCertVerificationError, match=r"CA|authority|purpose|path"):
        talk(context_of(ssl.PROTOCOL_TLS_CLIENT, key, chain, beta), alpha.server_context())
    with pytest.raises(ssl.SSLCertVerificationError, match=r"CA|authority|purpose|path"):
        talk(alpha.client_context(), context_of(ssl.PROTOCOL_TLS_SERVER, key, chain, beta))
    with pytest.raises(PeerRefusedError, match="signed by none"):
        alpha.peer_identity(der(forged))


def test_tls_1_2_is_refused_at_both_ends(alpha: Credentials, beta: Credentials) -> None:
    old = context_of(ssl.PROTOCOL_TLS_CLIENT, node_key(beta), [beta.certificate], beta)
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"UNSUPPORTED_PROTOCOL|VERSION"):
        talk(old, alpha.server_context())
    old = context_of(ssl.PROTOCOL_TLS_SERVER, node_key(beta), [beta.certificate], beta)
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"UNSUPPORTED_PROTOCOL|VERSION"):
        talk(alpha.client_context(), old)


def test_a_certificate_for_clients_only_is_no_server(
    directory: AuthorityDirectory, alpha: Credentials
) -> None:
    authority = directory.authority()
    name = x509.UniformResourceIdentifier("mycoproxy://lab/node/beta")
    key, odd = signed(
        authority.certificate, authority.key, [name], usage=(ExtendedKeyUsageOID.CLIENT_AUTH,)
    )
    talk(context_of(ssl.PROTOCOL_TLS_CLIENT, key, [odd], alpha), alpha.server_context())
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        talk(alpha.client_context(), context_of(ssl.PROTOCOL_TLS_SERVER, key, [odd], alpha))


def test_no_session_is_resumed(alpha: Credentials, beta: Credentials) -> None:
    client, server = talk(alpha.client_context(), beta.server_context())
    assert client.session is None or not client.session.has_ticket
    again, _ = talk(alpha.client_context(), beta.server_context(), session=client.session)
    assert not again.session_reused
    assert not server.session_reused


def test_a_context_without_credentials_lets_nobody_in(alpha: Credentials) -> None:
    with pytest.raises(ssl.SSLError):
        talk(alpha.client_context(), bare_context(ssl.PROTOCOL_TLS_SERVER))
    with pytest.raises(ssl.SSLError):
        talk(bare_context(ssl.PROTOCOL_TLS_CLIENT), alpha.server_context())


def test_a_peer_that_names_no_protocol_or_another_is_refused(
    alpha: Credentials, beta: Credentials
) -> None:
    for protocols in ([], ["h2"]):
        context = context_of(ssl.PROTOCOL_TLS_CLIENT, node_key(beta), [beta.certificate], beta)
        context.set_alpn_protocols(protocols)
        _, server = talk(context, alpha.server_context())
        with pytest.raises(PeerRefusedError, match="mycoproxy/1 is wanted"):
            alpha.peer_identity(server)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (None, "0 alternative names"),
        (["mycoproxy://lab/node/beta", "mycoproxy://lab/node/gamma"], "2 alternative names"),
        (["mycoproxy://other/node/beta"], "a node of cluster lab is wanted"),
        (["mycoproxy://lab/authority"], "is wanted"),
        (["mycoproxy://lab/node/"], "is wanted"),
        (["mycoproxy://lab/node/Beta"], "is wanted"),
        (["mycoproxy://lab/node/beta/x"], "is wanted"),
        (["mycoproxy://lab/node/beta\n"], "is wanted"),
        (["mycoproxy://lab/node/.."], "is wanted"),
        (["https://lab/node/beta"], "is wanted"),
    ],
)
def test_a_certificate_of_ours_that_names_no_node_of_ours_is_refused(
    directory: AuthorityDirectory, alpha: Credentials, names: list[str] | None, reason: str
) -> None:
    authority = directory.authority()
    uris = None if names is None else [x509.UniformResourceIdentifier(name) for name in names]
    _, odd = signed(authority.certificate, authority.key, uris)
    with pytest.raises(PeerRefusedError, match=reason):
        alpha.peer_identity(der(odd))


def test_a_host_name_is_no_identity_alone_or_beside_one(
    directory: AuthorityDirectory, alpha: Credentials
) -> None:
    authority = directory.authority()
    host = x509.DNSName("mycoproxy://lab/node/beta")
    uri = x509.UniformResourceIdentifier("mycoproxy://lab/node/beta")
    for names in ([host], [uri, host]):
        _, odd = signed(authority.certificate, authority.key, names)
        with pytest.raises(PeerRefusedError, match="exactly one, a URI, is wanted"):
            alpha.peer_identity(der(odd))


def test_a_certificate_that_may_sign_is_no_node(
    directory: AuthorityDirectory, alpha: Credentials
) -> None:
    authority = directory.authority()
    uri = x509.UniformResourceIdentifier("mycoproxy://lab/node/beta")
    _, odd = signed(authority.certificate, authority.key, [uri], ca=True)
    with pytest.raises(PeerRefusedError, match="may sign others"):
        alpha.peer_identity(der(odd))
    with pytest.raises(PeerRefusedError):
        alpha.peer_identity(der(authority.certificate))


def test_the_revoked_are_refused_by_serial_number_or_name(
    alpha: Credentials, beta: Credentials
) -> None:
    client, _ = talk(alpha.client_context(), beta.server_context())
    for line in (f"serial {beta.serial}", f"serial 00:{beta.serial.upper()}", "node beta"):
        alpha.paths[1].write_text(f"# gone\n{line}  # stolen\n")
        with pytest.raises(PeerRefusedError, match="was revoked"):
            Credentials.load(alpha.directory).peer_identity(client)
    alpha.paths[1].write_text("node gamma\nserial 1\n")
    assert Credentials.load(alpha.directory).peer_identity(client).node == "beta"


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    under = tmp_path_factory.mktemp("lasting")
    return credentials(AuthorityDirectory.create(under / "a", cluster="lab"), "alpha", under)


@given(st.binary(max_size=600))
def test_random_bytes_are_refused(lasting: Credentials, data: bytes) -> None:
    with pytest.raises(PeerRefusedError):
        lasting.peer_identity(data)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_no_bit_of_what_was_signed_can_be_changed(lasting: Credentials) -> None:
    """The encoding of the signature around it has a few bits that mean nothing; those may differ.

    The name, the serial number and the key stand in the signed part.
    """
    original = der(lasting.certificate)
    signed_part = lasting.certificate.tbs_certificate_bytes
    for at in range(len(original) * 8):
        changed = bytearray(original)
        changed[at // 8] ^= 1 << at % 8
        try:
            lasting.peer_identity(bytes(changed))
        except PeerRefusedError:
            continue
        accepted = x509.load_der_x509_certificate(bytes(changed))
        assert accepted.tbs_certificate_bytes == signed_part
