"""Keys and certificates as PEM text, and their times and serial numbers as people read them.

Keys are EC P-256: every OpenSSL that has TLS 1.3 takes it, in FIPS mode and under the
distributions' crypto policies too, which cannot be said of Ed25519.
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from mycoproxy.pki.errors import CredentialsError

_KEY = re.compile(rb"-----BEGIN PRIVATE KEY-----.+?-----END PRIVATE KEY-----\n?", re.DOTALL)


def new_key() -> ec.EllipticCurvePrivateKey:
    """A new private key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PKCS#8, not encrypted: the agent reads it without a person being there."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def certificates_pem(certificates: Iterable[x509.Certificate]) -> bytes:
    """Certificates, one after the other."""
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)


def read_key(data: bytes, origin: object) -> ec.EllipticCurvePrivateKey:
    """The one private key in ``data``. ``CredentialsError`` names ``origin``."""
    blocks = _KEY.findall(data)
    if len(blocks) != 1:
        raise CredentialsError(f"{origin}: {len(blocks)} private keys found, one is wanted")
    try:
        key = load_pem_private_key(blocks[0], password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CredentialsError(f"{origin}: the private key cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CredentialsError(f"{origin}: a {type(key).__name__} found, an EC key is wanted")
    return key


def read_certificates(data: bytes, origin: object) -> list[x509.Certificate]:
    """All certificates in ``data``, at least one. ``CredentialsError`` names ``origin``."""
    try:
        return x509.load_pem_x509_certificates(data)
    except (ValueError, x509.InvalidVersion) as error:
        raise CredentialsError(f"{origin}: no certificate can be read: {error}") from error


def same_key(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> bool:
    """Whether the certificate is for this key."""
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return key.public_key().public_bytes(*form) == certificate.public_key().public_bytes(*form)


def serial_of(certificate: x509.Certificate) -> str:
    """The serial number in lower-case hexadecimal, as it stands in lists and messages."""
    return f"{certificate.serial_number:x}"


def utc_now() -> datetime:
    """The time now, with its zone, in whole seconds as certificates have it."""
    return datetime.now(UTC).replace(microsecond=0)


def time_text(moment: datetime) -> str:
    """A moment as ``2026-11-24T12:00:00Z``."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
