"""An authority's directory: what it makes, what it refuses, and what it leaves readable."""

import shutil
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from mycoproxy.errors import MycoError, RefusedError, UsageError
from mycoproxy.pki import Credentials, CredentialsError
from mycoproxy.pki.authority_directory import AuthorityDirectory
from mycoproxy.pki.issued import read_issued
from mycoproxy.pki.node_directory import install, make_request
from mycoproxy.pki.pem import certificates_pem, key_pem, new_key, serial_of

DAY = timedelta(days=1)


@pytest.fixture
def authority(tmp_path: Path) -> AuthorityDirectory:
    return AuthorityDirectory.create(tmp_path / "authority", cluster="lab")


def modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}


def test_keys_are_for_their_owner_only_and_nothing_else_is_left(
    authority: AuthorityDirectory, tmp_path: Path
) -> None:
    authority.issue("alpha", tmp_path / "alpha")
    authority.rotate_node("alpha", tmp_path / "alpha")
    authority.begin_rotation()
    public = {"authorities.pem": 0o644, "issued": 0o644, "revoked": 0o644}
    assert modes(authority.path) == {"authority.pem": 0o600, "next.pem": 0o600, **public}
    assert modes(tmp_path / "alpha") == {"node.pem": 0o600, "revoked": 0o644}
    assert stat.S_IMODE((tmp_path / "alpha").stat().st_mode) == 0o700


def test_an_authority_is_not_overwritten(authority: AuthorityDirectory) -> None:
    before = (authority.path / "authority.pem").read_bytes()
    with pytest.raises(RefusedError, match="has an authority already"):
        AuthorityDirectory.create(authority.path, cluster="lab")
    assert (authority.path / "authority.pem").read_bytes() == before


def test_a_nodes_credentials_are_not_overwritten_by_issue(
    authority: AuthorityDirectory, tmp_path: Path
) -> None:
    authority.issue("alpha", tmp_path / "alpha")
    with pytest.raises(RefusedError, match="rotate node renews it"):
        authority.issue("alpha", tmp_path / "alpha")
    assert len(read_issued(authority.path)) == 1


def test_a_node_is_not_put_into_the_authoritys_directory(authority: AuthorityDirectory) -> None:
    with pytest.raises(UsageError, match="is the authority's directory"):
        authority.issue("alpha", authority.path)


def test_a_directory_without_an_authority_signs_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mycoproxy pki init makes one"):
        AuthorityDirectory(tmp_path).issue("alpha", tmp_path / "alpha")
    assert not (tmp_path / "alpha").exists()


@pytest.mark.parametrize("name", ["", "Alpha", "a b", "a/b", "-a", "a..b", "a" * 64, "é", "a\n"])
def test_a_name_that_is_no_name_is_refused(
    authority: AuthorityDirectory, tmp_path: Path, name: str
) -> None:
    with pytest.raises(UsageError, match="cannot name a node"):
        authority.issue(name, tmp_path / "node")
    with pytest.raises(UsageError, match="cannot name a cluster"):
        AuthorityDirectory.create(tmp_path / "other", cluster=name)
    assert read_issued(authority.path) == []


def test_a_node_may_have_the_longest_name_there_is(
    authority: AuthorityDirectory, tmp_path: Path
) -> None:
    name = ".".join(["n" * 63] * 3 + ["n" * 61])
    authority.issue(name, tmp_path / "node")
    assert Credentials.load(tmp_path / "node").node == name


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the command openssl is missing")
def test_openssl_itself_verifies_what_is_made(
    authority: AuthorityDirectory, tmp_path: Path
) -> None:
    authority.issue("alpha", tmp_path / "alpha")
    command, trusted = ["openssl", "verify", "-x509_strict"], authority.path / "authorities.pem"
    for purpose in ("sslclient", "sslserver"):
        said = subprocess.run(
            [*command, "-purpose", purpose, "-CAfile", trusted, tmp_path / "alpha" / "node.pem"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        assert said.stdout.strip().endswith(": OK")


def test_a_certificate_ends_with_its_authority_and_none_is_made_after_that(tmp_path: Path) -> None:
    then = datetime(2026, 1, 1, tzinfo=UTC)
    path = tmp_path / "authority"
    AuthorityDirectory.create(path, cluster="lab", lifetime=10 * DAY, now=then)
    later = AuthorityDirectory(path, now=then + 8 * DAY)
    made = later.issue("alpha", tmp_path / "alpha", lifetime=30 * DAY)
    assert made.not_valid_after_utc == then + 10 * DAY
    with pytest.raises(RefusedError, match="ran out at 2026-01-11T00:00:00Z"):
        AuthorityDirectory(path, now=then + 10 * DAY).issue("beta", tmp_path / "beta")


def test_a_clock_that_is_behind_a_little_takes_a_new_certificate(
    authority: AuthorityDirectory, tmp_path: Path
) -> None:
    authority.issue("alpha", tmp_path / "alpha")
    Credentials.load(tmp_path / "alpha", now=datetime.now(UTC) - timedelta(minutes=4))
    with pytest.raises(CredentialsError, match="is valid from"):
        Credentials.load(tmp_path / "alpha", now=datetime.now(UTC) - timedelta(minutes=6))


def test_records_of_certificates_that_ran_out_long_ago_are_dropped(tmp_path: Path) -> None:
    then = datetime(2026, 1, 1, tzinfo=UTC)
    path = tmp_path / "authority"
    AuthorityDirectory.create(path, cluster="lab", now=then)
    AuthorityDirectory(path, now=then).issue("alpha", tmp_path / "alpha", lifetime=DAY)
    AuthorityDirectory(path, now=then + 50 * DAY).issue("beta", tmp_path / "beta")
    assert [each.node for each in read_issued(path)] == ["alpha", "beta"]
    AuthorityDirectory(path, now=then + 100 * DAY).issue("gamma", tmp_path / "gamma")
    assert [each.node for each in read_issued(path)] == ["beta", "gamma"]


def test_a_nodes_key_never_leaves_it_with_a_request(
    authority: AuthorityDirectory, tmp_path: Path
) -> None:
    node, given = tmp_path / "node", tmp_path / "given"
    request = make_request(node)
    key = (node / "request.key").read_bytes()
    assert b"PRIVATE" not in request.read_bytes()
    made = authority.issue_for_request("alpha", request.read_bytes(), given)
    assert all(b"PRIVATE" not in path.read_bytes() for path in given.iterdir())
    assert install(given, node).serial == serial_of(made)
    assert (node / "node.pem").read_bytes().startswith(key)
    assert modes(node) == {"node.pem": 0o600, "revoked": 0o644}
    # The same way once more renews it; until then the old one is in use.
    authority.issue_for_request("alpha", make_request(node).read_bytes(), given)
    assert Credentials.load(node).serial == serial_of(made)
    assert install(given, node).serial != serial_of(made)


def test_a_certificate_for_another_key_is_not_installed(
    authority: AuthorityDirectory, tmp_path: Path
) -> None:
    node, given = tmp_path / "node", tmp_path / "given"
    authority.issue_for_request("alpha", make_request(node).read_bytes(), given)
    make_request(node)
    with pytest.raises(CredentialsError, match="the key is not that of the certificate"):
        install(given, node)
    assert not (node / "node.pem").exists()


def test_a_request_that_asks_for_another_name_gets_the_name_that_was_given(
    authority: AuthorityDirectory, tmp_path: Path
) -> None:
    greedy = x509.SubjectAlternativeName(
        [x509.UniformResourceIdentifier("mycoproxy://lab/node/beta")]
    )
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(greedy, critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(new_key(), SHA256())
    )
    made = authority.issue_for_request("alpha", request.public_bytes(Encoding.PEM), tmp_path / "n")
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["mycoproxy://lab/node/alpha"]
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_request_that_is_none_is_refused(authority: AuthorityDirectory, tmp_path: Path) -> None:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    big = builder.sign(rsa.generate_private_key(65537, 2048), SHA256())
    other_curve = builder.sign(ec.generate_private_key(ec.SECP521R1()), SHA256())
    good = bytearray(builder.sign(new_key(), SHA256()).public_bytes(Encoding.DER))
    good[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(good))
    for request in (big, other_curve, forged):
        with pytest.raises(UsageError, match="request"):
            authority.issue_for_request(
                "alpha", request.public_bytes(Encoding.PEM), tmp_path / "node"
            )
    with pytest.raises(UsageError, match="cannot be read"):
        authority.issue_for_request("alpha", b"nonsense", tmp_path / "node")


def test_a_name_that_is_shut_out_for_good_gets_no_certificate(
    authority: AuthorityDirectory, tmp_path: Path
) -> None:
    (authority.path / "revoked").write_text("node alpha  # sold")
    with pytest.raises(RefusedError, match="until the line is removed"):
        authority.issue("alpha", tmp_path / "alpha")
    # What a person wrote stays when a command adds to it.
    authority.issue("beta", tmp_path / "beta")
    authority.revoke(node="beta")
    assert (authority.path / "revoked").read_text().startswith("node alpha  # sold\nserial ")


def test_one_certificate_of_a_node_is_revoked_by_its_serial_number(
    authority: AuthorityDirectory, tmp_path: Path
) -> None:
    first = authority.issue("alpha", tmp_path / "alpha")
    authority.rotate_node("alpha", tmp_path / "alpha")
    found = authority.revoke(serial=serial_of(first).upper())
    assert [each.serial for each in found] == [serial_of(first)]
    assert authority.revoked().serials == {serial_of(first)}
    for unknown in ({"node": "beta"}, {"serial": "abc"}):
        with pytest.raises(UsageError, match="no certificate that is still valid"):
            authority.revoke(**unknown)


def test_credentials_that_do_not_fit_together_are_not_loaded(
    authority: AuthorityDirectory, tmp_path: Path
) -> None:
    at = tmp_path / "alpha"
    authority.issue("alpha", at)
    whole = (at / "node.pem").read_bytes()
    end = b"-----END PRIVATE KEY-----\n"
    key, rest = whole.split(end)
    trusted = (authority.path / "authorities.pem").read_bytes()
    own = rest.removesuffix(trusted)
    foreign = AuthorityDirectory.create(tmp_path / "foreign", cluster="other").authority()
    wrong = {
        "the key is not that": key_pem(new_key()) + rest,
        "0 private keys": rest,
        "2 private keys": key + end + whole,
        "signed by none of the 0": key + end + own,
        "another cluster's authority": whole + certificates_pem([foreign.certificate]),
        "is not an authority's": whole + own,
        "is wanted": key + end + trusted + own,
        "no certificate can be read": key + end,
        "the private key cannot be read": key[:-40] + end + rest,
    }
    for reason, content in wrong.items():
        (at / "node.pem").write_bytes(content)
        with pytest.raises(CredentialsError, match=reason):
            Credentials.load(at)
    (at / "node.pem").write_bytes(whole)
    for line in ("serial", "serial xyz", "node A", "node a b", "beta", "serial " + "1" * 41):
        (at / "revoked").write_text(f"\n{line}\n")
        with pytest.raises(CredentialsError, match="revoked, line 2"):
            Credentials.load(at)


def test_a_private_key_does_not_show_in_what_is_printed(
    authority: AuthorityDirectory, tmp_path: Path
) -> None:
    authority.issue("alpha", tmp_path / "alpha")
    found = Credentials.load(tmp_path / "alpha")
    assert "PRIVATE" not in repr(found)


def test_damaged_records_are_an_error_and_no_certificate_is_made(
    authority: AuthorityDirectory, tmp_path: Path
) -> None:
    for damage in ("{", "{}", '{"node": 1}', "[]"):
        (authority.path / "issued").write_text(damage)
        with pytest.raises(MycoError, match="a record cannot be read"):
            authority.issue("alpha", tmp_path / "alpha")
    assert list((tmp_path / "alpha").iterdir()) == []
