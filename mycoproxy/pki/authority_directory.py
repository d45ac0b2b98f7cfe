"""An authority's directory, and all that is done with it.

It belongs on one safe machine, not on the nodes.

* ``authority.pem``: the key that signs, and its certificate.
* ``next.pem``: during a rotation, the authority that will sign.
* ``authorities.pem``: whom nodes shall trust. Public.
* ``revoked``: who is shut out. Public.
* ``issued``: what was signed.

A rotation of the authority has three steps, and between two of them every node must have been
given what the last one made (``docs/pki.md``): *begin* makes ``next.pem`` and has nodes trust both;
*switch* is the rename of ``next.pem`` to ``authority.pem``; *finish* takes the old one out of
``authorities.pem``. How far it went is read off the files, so a crash leaves nothing to repair.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec

from mycoproxy.errors import RefusedError, UsageError
from mycoproxy.pki.authority import AUTHORITY_LIFETIME, NODE_LIFETIME, Authority
from mycoproxy.pki.credentials import NODE_FILE, REVOKED_FILE
from mycoproxy.pki.errors import CertificateError, CredentialsError
from mycoproxy.pki.files import (
    PUBLIC,
    SECRET,
    locked,
    make_directory,
    read_file,
    read_secret,
    rename_file,
    replace_file,
)
from mycoproxy.pki.identity import checked_cluster, checked_node, identity_of
from mycoproxy.pki.issued import ISSUED_FILE, Issued, newest_by_node, read_issued, write_issued
from mycoproxy.pki.node_directory import AUTHORITIES_FILE, CERTIFICATE_FILE, write_node
from mycoproxy.pki.pem import (
    certificates_pem,
    new_key,
    read_certificates,
    serial_of,
    utc_now,
)
from mycoproxy.pki.revoked import EMPTY, Revoked, line_for, normal_serial

AUTHORITY_FILE = "authority.pem"
NEXT_FILE = "next.pem"


class Rotation(StrEnum):
    """How far a rotation of the authority has gone."""

    NONE = "none"
    BEGUN = "begun"
    SWITCHED = "switched"


class AuthorityDirectory:
    """One cluster's authority on disk. Every method is a command: whole, or an error and no change.

    Times are UTC; ``now`` is for tests. Raises ``CredentialsError`` for broken files.
    """

    def __init__(self, path: Path, *, now: datetime | None = None) -> None:
        self.path = path
        self._now = now

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        cluster: str,
        lifetime: timedelta = AUTHORITY_LIFETIME,
        now: datetime | None = None,
    ) -> "AuthorityDirectory":
        """Make the authority of a new cluster. ``RefusedError`` if one is there."""
        checked_cluster(cluster)
        make_directory(path)
        directory = cls(path, now=now)
        with locked(path):
            if (path / AUTHORITY_FILE).exists():
                raise RefusedError(
                    f"{path} has an authority already; another directory is wanted, or "
                    "mycoproxy pki rotate authority, which lets nodes go on talking"
                )
            authority = Authority.create(cluster, lifetime=lifetime, now=directory._time())
            replace_file(path / REVOKED_FILE, EMPTY, PUBLIC)
            replace_file(path / ISSUED_FILE, b"", PUBLIC)
            directory._write_trusted([authority.certificate])
            # Last: with this file, the directory is an authority's.
            replace_file(path / AUTHORITY_FILE, authority.pem(), SECRET)
        return directory

    def authority(self) -> Authority:
        """The authority that signs now."""
        path = self.path / AUTHORITY_FILE
        if not path.exists():
            raise UsageError(f"{self.path} has no authority (mycoproxy pki init makes one)")
        return Authority.from_pem(read_secret(path), path)

    def trusted(self) -> list[x509.Certificate]:
        """The authorities that nodes shall trust, the oldest first."""
        path = self.path / AUTHORITIES_FILE
        return read_certificates(read_file(path), path)

    def revoked(self) -> Revoked:
        """Who is shut out."""
        path = self.path / REVOKED_FILE
        return Revoked.parse(read_file(path), path)

    def rotation(self) -> Rotation:
        """How far a rotation of the authority has gone."""
        if (self.path / NEXT_FILE).exists():
            return Rotation.BEGUN
        return Rotation.SWITCHED if len(self.trusted()) > 1 else Rotation.NONE

    def issue(
        self, node: str, out: Path, *, lifetime: timedelta = NODE_LIFETIME
    ) -> x509.Certificate:
        """Make a node's directory. ``RefusedError`` if ``out`` has a node's credentials already."""
        with self._for_node(out):
            if (out / NODE_FILE).exists():
                raise RefusedError(
                    f"{out / NODE_FILE} is there already (mycoproxy pki rotate node renews it)"
                )
            return self._make_node(node, out, lifetime)

    def rotate_node(
        self, node: str, out: Path, *, lifetime: timedelta = NODE_LIFETIME
    ) -> x509.Certificate:
        """Give a node a new key and certificate, in place. The old certificate runs out by itself.

        ``UsageError`` if ``out`` has none, or another node's.
        """
        path = out / NODE_FILE
        if not path.exists():
            raise UsageError(f"{path} is not there (mycoproxy pki issue makes it)")
        with self._for_node(out):
            present = read_certificates(read_secret(path), path)[0]
            try:
                found = identity_of(present)
            except CertificateError as error:
                raise CredentialsError(f"{path}: {error}") from error
            authority = self.authority()
            if (found.cluster, found.node) != (authority.cluster, node):
                raise UsageError(
                    f"{path} is for {found.uri}, not for node {node} of {authority.cluster}"
                )
            return self._make_node(node, out, lifetime)

    def issue_for_request(
        self, node: str, request: bytes, out: Path, *, lifetime: timedelta = NODE_LIFETIME
    ) -> x509.Certificate:
        """Sign the key of a certificate signing request (PEM).

        Only the key is taken from the request; who it is for is said by ``node``. Writes the
        certificate and the authorities to ``out``, for ``install`` on the node.
        """
        try:
            read = x509.load_pem_x509_csr(request)
            key = read.public_key()
            is_signed = read.is_signature_valid
        except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
            raise UsageError(f"the certificate signing request cannot be read: {error}") from error
        if not is_signed:
            raise UsageError("the certificate signing request is not signed by its own key")
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
            raise UsageError("the request's key is not an EC P-256 key (mycoproxy pki request)")
        with self._for_node(out):
            certificate = self._sign(node, key, lifetime)
            chain = certificates_pem([certificate, *self.trusted()])
            replace_file(out / REVOKED_FILE, read_file(self.path / REVOKED_FILE), PUBLIC)
            replace_file(out / CERTIFICATE_FILE, chain, PUBLIC)
        return certificate

    def revoke(self, *, node: str | None = None, serial: str | None = None) -> list[Issued]:
        """Shut out all certificates that a node has now, or one.

        Returns those that were not on the list before.
        ``UsageError`` if there is none that is still valid. The node can be given new ones.
        """
        wanted = None if serial is None else normal_serial(serial)
        with locked(self.path):
            valid = [each for each in read_issued(self.path) if self._time() < each.ends()]
            found = [each for each in valid if each.node == node or each.serial == wanted]
            if not found:
                raise UsageError(
                    f"no certificate that is still valid was issued for {node or wanted} "
                    f"(mycoproxy pki show --dir {self.path} lists them)"
                )
            listed = self.revoked().serials
            new = [each for each in found if each.serial not in listed]
            path = self.path / REVOKED_FILE
            text = read_file(path)
            if not text.endswith(b"\n"):
                text += b"\n"
            lines = (line_for(each.serial, node=each.node, until=each.not_after) for each in new)
            replace_file(path, text + b"".join(lines), PUBLIC)
        return new

    def begin_rotation(self, *, lifetime: timedelta = AUTHORITY_LIFETIME) -> Authority:
        """Make the next authority, which nodes shall trust beside the one that still signs."""
        with locked(self.path):
            path = self.path / NEXT_FILE
            trusted = self.trusted()
            if not path.exists():
                if len(trusted) > 1:
                    raise RefusedError(
                        "the last rotation was not finished "
                        "(mycoproxy pki rotate authority --finish)"
                    )
                cluster = self.authority().cluster
                following = Authority.create(cluster, lifetime=lifetime, now=self._time())
                replace_file(path, following.pem(), SECRET)
            following = Authority.from_pem(read_secret(path), path)
            if following.certificate in trusted:
                raise RefusedError(
                    "a rotation has begun already; once every node trusts both authorities: "
                    "mycoproxy pki rotate authority --switch"
                )
            self._write_trusted([*trusted, following.certificate])
        return following

    def switch(self) -> Authority:
        """Sign with the next authority from now on. Every node must trust it by now."""
        with locked(self.path):
            path = self.path / NEXT_FILE
            if not path.exists():
                raise RefusedError("no rotation has begun (mycoproxy pki rotate authority)")
            following = Authority.from_pem(read_secret(path), path)
            if following.certificate not in self.trusted():
                raise RefusedError(
                    "the beginning was cut short; it goes on with: mycoproxy pki rotate authority"
                )
            rename_file(path, self.path / AUTHORITY_FILE)
        return following

    def finish(self, *, force: bool = False) -> list[x509.Certificate]:
        """Have nodes trust only the authority that signs; returns those that are trusted no more.

        ``RefusedError`` names nodes whose newest certificate is an old authority's and still in
        use; ``force`` leaves them out in the cold.
        """
        with locked(self.path):
            if self.rotation() is not Rotation.SWITCHED:
                raise RefusedError(
                    "there is no old authority to take away "
                    "(mycoproxy pki rotate authority, then --switch, then --finish)"
                )
            current = self.authority().certificate
            revoked = self.revoked()
            behind = [
                each.node
                for each in newest_by_node(read_issued(self.path)).values()
                if each.authority != serial_of(current)
                and self._time() < each.ends()
                and not revoked.covers(serial=each.serial, node=each.node)
            ]
            if behind and not force:
                raise RefusedError(
                    f"nodes {', '.join(sorted(behind))} have certificates of the old authority "
                    "(mycoproxy pki rotate node renews them; revoke those that are gone)"
                )
            old = [each for each in self.trusted() if each != current]
            self._write_trusted([current])
        return old

    @contextmanager
    def _for_node(self, out: Path) -> Iterator[None]:
        self.authority()
        make_directory(out)
        if out.samefile(self.path):
            raise UsageError(f"{out} is the authority's directory; a node's is wanted, elsewhere")
        with locked(self.path), locked(out):
            yield

    def _make_node(self, node: str, out: Path, lifetime: timedelta) -> x509.Certificate:
        key = new_key()
        certificate = self._sign(node, key.public_key(), lifetime)
        revoked = read_file(self.path / REVOKED_FILE)
        write_node(out, key, [certificate, *self.trusted()], revoked, now=self._time())
        return certificate

    def _sign(
        self, node: str, key: ec.EllipticCurvePublicKey, lifetime: timedelta
    ) -> x509.Certificate:
        checked_node(node)
        if node in self.revoked().nodes:
            raise RefusedError(
                f"'node {node}' is in {self.path / REVOKED_FILE}: everything of that name is shut "
                "out until the line is removed"
            )
        authority = self.authority()
        certificate = authority.sign(node, key, lifetime=lifetime, now=self._time())
        record = Issued.of(certificate, authority.certificate)
        write_issued(self.path, [*read_issued(self.path), record], now=self._time())
        return certificate

    def _write_trusted(self, certificates: list[x509.Certificate]) -> None:
        replace_file(self.path / AUTHORITIES_FILE, certificates_pem(certificates), PUBLIC)

    def _time(self) -> datetime:
        return self._now or utc_now()
