"""The authority of a cluster, in memory: a key, its own certificate, and the signing of others.

Every authority signs nodes and nothing else (path length 0), and has a name of its own, so that
an old and a new one can be trusted side by side.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mycoproxy.errors import RefusedError
from mycoproxy.pki.errors import CertificateError, CredentialsError
from mycoproxy.pki.identity import Identity, authority_uri, cluster_of_authority
from mycoproxy.pki.pem import (
    certificates_pem,
    key_pem,
    new_key,
    read_certificates,
    read_key,
    same_key,
    time_text,
)

AUTHORITY_LIFETIME = timedelta(days=5 * 365)
#: Short, so that a certificate that was forgotten does not live for years.
NODE_LIFETIME = timedelta(days=30)
#: Certificates begin this much in the past, for nodes whose clocks are behind.
CLOCK_SKEW = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Authority:
    """A key that signs, and the certificate that nodes know it by."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def create(cls, cluster: str, *, lifetime: timedelta, now: datetime) -> "Authority":
        """A new authority for a cluster, valid from ``now`` for ``lifetime``."""
        key = new_key()
        serial = x509.random_serial_number()
        name = _name(cluster, f"mycoproxy authority {serial:x}"[:28])
        builder = (
            _builder(name, key.public_key(), serial, now, now + lifetime)
            .issuer_name(name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign_certificates=True), critical=True)
            .add_extension(_alternative_name(authority_uri(cluster)), critical=False)
        )
        return cls(key=key, certificate=builder.sign(key, SHA256()))

    @classmethod
    def from_pem(cls, data: bytes, origin: object) -> "Authority":
        """What ``pem`` gave. ``CredentialsError`` names ``origin``."""
        key, certificates = read_key(data, origin), read_certificates(data, origin)
        if len(certificates) != 1 or not same_key(key, certificates[0]):
            raise CredentialsError(f"{origin}: the key and the one certificate do not match")
        try:
            cluster_of_authority(certificates[0])
        except CertificateError as error:
            raise CredentialsError(f"{origin}: {error}") from error
        return cls(key=key, certificate=certificates[0])

    def pem(self) -> bytes:
        """Key and certificate in one text, so that one rename replaces both."""
        return key_pem(self.key) + certificates_pem([self.certificate])

    @property
    def cluster(self) -> str:
        """The cluster whose nodes it signs."""
        return cluster_of_authority(self.certificate)

    def sign(
        self,
        node: str,
        public_key: ec.EllipticCurvePublicKey,
        *,
        lifetime: timedelta,
        now: datetime,
    ) -> x509.Certificate:
        """A certificate for a node of the cluster, good for both ends of a TLS connection.

        It ends with the authority's own if that is sooner. ``RefusedError`` if the authority has
        run out.
        """
        end = self.certificate.not_valid_after_utc
        if now >= end:
            raise RefusedError(
                f"the authority of {self.cluster} ran out at {time_text(end)} and can sign no more "
                "(mycoproxy pki rotate authority makes a new one)"
            )
        identity = Identity(cluster=self.cluster, node=node)
        serial = x509.random_serial_number()
        authority_id = self.certificate.extensions.get_extension_for_class(
            x509.SubjectKeyIdentifier
        ).value
        both_ends = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        name = _name(self.cluster, node[:64])  # X.520 has room for 64; nothing reads it
        builder = (
            _builder(name, public_key, serial, now, min(now + lifetime, end))
            .issuer_name(self.certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(both_ends), critical=False)
            .add_extension(_alternative_name(identity.uri), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_id),
                critical=False,
            )
        )
        return builder.sign(self.key, SHA256())


def _builder(
    name: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    serial: int,
    now: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _name(cluster: str, common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _alternative_name(uri: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
