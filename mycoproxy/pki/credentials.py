"""A node's credentials: its key and certificate, whom it trusts, and the TLS contexts made of them.

A node's directory holds two files.

* ``node.pem``: private key, certificate, then the authorities that the node trusts. All in one
  file, because one file can be replaced by one rename: nobody ever reads a key that does not
  belong to the certificate, or a certificate whose authority is not there.
* ``revoked``: who is shut out (``mycoproxy.pki.revoked``).

Both are read once, and OpenSSL is given what was read and checked.
"""

import ssl
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from mycoproxy.pki.contexts import ALPN, context_with
from mycoproxy.pki.errors import CertificateError, CredentialsError, PeerRefusedError
from mycoproxy.pki.files import read_file, read_secret
from mycoproxy.pki.identity import Identity, cluster_of_authority, identity_of
from mycoproxy.pki.pem import (
    certificates_pem,
    key_pem,
    read_certificates,
    read_key,
    same_key,
    serial_of,
    time_text,
    utc_now,
)
from mycoproxy.pki.revoked import Revoked

NODE_FILE = "node.pem"
REVOKED_FILE = "revoked"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a node is, and how it knows the others. Never changes: new files make a new object."""

    identity: Identity
    directory: Path
    certificate: x509.Certificate = field(repr=False)
    authorities: tuple[x509.Certificate, ...] = field(repr=False)
    revoked: Revoked = field(repr=False)
    _server: ssl.SSLContext = field(repr=False, compare=False)
    _client: ssl.SSLContext = field(repr=False, compare=False)

    @classmethod
    def load(cls, directory: Path, *, now: datetime | None = None) -> "Credentials":
        """Read a node's directory and check all of it. Takes 2 to 3 ms.

        Raises ``CredentialsError`` if a file is missing, broken or readable by others, if key and
        certificate do not match, if none of the authorities signed the certificate, or if it is
        not valid at ``now``.
        """
        revoked = read_file(directory / REVOKED_FILE)
        node = read_secret(directory / NODE_FILE)
        return cls.from_pem(node, revoked, directory=directory, now=now)

    @classmethod
    def from_pem(
        cls, node: bytes, revoked: bytes, *, directory: Path, now: datetime | None = None
    ) -> "Credentials":
        """The same from the content of both files; ``directory`` is for messages."""
        origin = directory / NODE_FILE
        key = read_key(node, origin)
        certificate, *authorities = read_certificates(node, origin)
        try:
            identity = identity_of(certificate)
            if not same_key(key, certificate):
                raise CertificateError(f"the key is not that of the certificate for {identity.uri}")
            for each in authorities:
                if cluster_of_authority(each) != identity.cluster:
                    raise CertificateError(f"{identity.uri} trusts another cluster's authority")
            _check_signature(certificate, authorities)
            _check_time(certificate, now or utc_now())
        except (CertificateError, UnsupportedAlgorithm) as error:
            raise CredentialsError(f"{origin}: {error}") from error
        own = key_pem(key) + certificates_pem([certificate])
        trusted = certificates_pem(authorities)
        try:
            server = context_with(ssl.PROTOCOL_TLS_SERVER, own, trusted)
            client = context_with(ssl.PROTOCOL_TLS_CLIENT, own, trusted)
        except OSError as error:  # SSLError is one; so is a descriptor too many
            raise CredentialsError(f"{origin}: no TLS context can be made: {error}") from error
        return cls(
            identity=identity,
            directory=directory,
            certificate=certificate,
            authorities=tuple(authorities),
            revoked=Revoked.parse(revoked, directory / REVOKED_FILE),
            _server=server,
            _client=client,
        )

    @property
    def node(self) -> str:
        """The node's name."""
        return self.identity.node

    @property
    def cluster(self) -> str:
        """The cluster's name."""
        return self.identity.cluster

    @property
    def serial(self) -> str:
        """The certificate's serial number, hexadecimal."""
        return serial_of(self.certificate)

    @property
    def not_after(self) -> datetime:
        """When the certificate runs out, UTC."""
        return self.certificate.not_valid_after_utc

    @property
    def paths(self) -> tuple[Path, Path]:
        """The files these credentials were read from."""
        return self.directory / NODE_FILE, self.directory / REVOKED_FILE

    def server_context(self) -> ssl.SSLContext:
        """The context for connections that others open to this node.

        A peer without a certificate of a trusted authority does not get through the handshake.
        Who it is, and whether it was revoked, is ``peer_identity``'s to say: in TLS 1.3 a server
        should read nothing from a peer, and answer nothing, before it has asked.
        """
        return self._server

    def client_context(self) -> ssl.SSLContext:
        """The context for connections that this node opens.

        ``check_hostname`` is off. It would compare a DNS name or an address, and certificates here
        have neither: a node's identity is the URI in its certificate. The chain is verified all
        the same. The caller compares ``peer_identity(...).node`` with the node that it wanted, and
        hangs up if they differ.

        In TLS 1.3 the client's handshake is over before the server has looked at the client's
        certificate: a refusal comes as an ``ssl.SSLError`` from the first read.
        """
        return self._client

    def peer_identity(
        self, peer: ssl.SSLObject | ssl.SSLSocket | bytes, *, now: datetime | None = None
    ) -> Identity:
        """Who the other end is: a TLS connection after its handshake, or its certificate as DER.

        Asks everything again but for the proof of possession, which only a handshake gives: one
        URI of this cluster, signed by an authority that is trusted now, valid at ``now``, not
        revoked. So it can be asked again about an open connection when the files have changed.
        Raises ``PeerRefusedError``.
        """
        try:
            certificate = x509.load_der_x509_certificate(_der_of(peer))
        except (ValueError, x509.InvalidVersion) as error:
            raise PeerRefusedError(f"the peer's certificate cannot be read: {error}") from error
        try:
            _check_signature(certificate, self.authorities)
            identity = identity_of(certificate)
            if identity.cluster != self.cluster:
                raise CertificateError(
                    f"the peer is {identity.uri}; a node of cluster {self.cluster} is wanted"
                )
            _check_time(certificate, now or utc_now())
        except CertificateError as error:
            raise PeerRefusedError(str(error)) from error
        serial = serial_of(certificate)
        if self.revoked.covers(serial=serial, node=identity.node):
            raise PeerRefusedError(f"{identity.uri} was revoked (certificate {serial})")
        return identity


def _der_of(peer: ssl.SSLObject | ssl.SSLSocket | bytes) -> bytes:
    if isinstance(peer, bytes):
        return peer
    der = peer.getpeercert(binary_form=True)
    if der is None:
        raise PeerRefusedError("the peer showed no certificate")
    if (spoken := peer.selected_alpn_protocol()) != ALPN:
        raise PeerRefusedError(f"the peer speaks {spoken or 'no named protocol'}; {ALPN} is wanted")
    return der


def _check_signature(
    certificate: x509.Certificate,
    authorities: list[x509.Certificate] | tuple[x509.Certificate, ...],
) -> None:
    for authority in authorities:
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            continue
        return
    raise CertificateError(
        f"certificate {serial_of(certificate)} is signed by none of the {len(authorities)} "
        "authorities that are trusted"
    )


def _check_time(certificate: x509.Certificate, now: datetime) -> None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= now <= end:
        raise CertificateError(
            f"certificate {serial_of(certificate)} is valid from {time_text(begin)} to "
            f"{time_text(end)}, and it is {time_text(now)} (mycoproxy pki rotate node renews it)"
        )
