"""A node's directory, written: put together, renewed, and brought over from an authority.

``node.pem`` is replaced by one rename, and only by something that loads.
"""

from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from mycoproxy.errors import UsageError
from mycoproxy.pki.credentials import NODE_FILE, REVOKED_FILE, Credentials
from mycoproxy.pki.files import (
    PUBLIC,
    SECRET,
    locked,
    make_directory,
    read_file,
    read_secret,
    replace_file,
)
from mycoproxy.pki.pem import certificates_pem, key_pem, new_key, read_certificates, read_key

#: The key that waits on the node for its certificate.
REQUEST_KEY = "request.key"
REQUEST = "request.csr"
#: What an authority gives for a request: the certificate, then the authorities.
CERTIFICATE_FILE = "certificate.pem"
#: The authorities that nodes shall trust, in an authority's directory.
AUTHORITIES_FILE = "authorities.pem"


def write_node(
    directory: Path,
    key: ec.EllipticCurvePrivateKey,
    certificates: list[x509.Certificate],
    revoked: bytes,
    *,
    now: datetime | None = None,
) -> Credentials:
    """Replace a node's files: ``certificates`` are its own and then the authorities."""
    node = key_pem(key) + certificates_pem(certificates)
    credentials = Credentials.from_pem(node, revoked, directory=directory, now=now)
    replace_file(directory / NODE_FILE, node, SECRET)
    replace_file(directory / REVOKED_FILE, revoked, PUBLIC)
    return credentials


def make_request(directory: Path) -> Path:
    """Make a key that stays here, and the request to take to the authority; returns its path.

    A request that is there already is made anew: its key was of no use yet.
    """
    make_directory(directory)
    key = new_key()
    # The name in a request decides nothing: the authority is told whom it signs for.
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    with locked(directory):
        replace_file(directory / REQUEST_KEY, key_pem(key), SECRET)
        signed = request.sign(key, SHA256()).public_bytes(Encoding.PEM)
        replace_file(directory / REQUEST, signed, PUBLIC)
    return directory / REQUEST


def install(source: Path, directory: Path, *, now: datetime | None = None) -> Credentials:
    """Bring what an authority made into a node's directory; nothing changes if it does not fit.

    ``source`` is a copy of one of: what ``issue`` made (all of it is taken), what ``issue --csr``
    made (with the key that waits in ``directory``), an authority's ``authorities.pem`` and
    ``revoked`` (key and certificate stay).
    """
    revoked = read_file(source / REVOKED_FILE)
    make_directory(directory)
    with locked(directory):
        if (path := source / NODE_FILE).exists():
            data = read_secret(path)
            key, certificates = read_key(data, path), read_certificates(data, path)
        elif (path := source / CERTIFICATE_FILE).exists():
            certificates = read_certificates(read_file(path), path)
            key_path = directory / REQUEST_KEY
            key = read_key(read_secret(key_path), key_path)
        elif (path := source / AUTHORITIES_FILE).exists():
            own_path = directory / NODE_FILE
            own = read_secret(own_path)
            key = read_key(own, own_path)
            certificates = [
                read_certificates(own, own_path)[0],
                *read_certificates(read_file(path), path),
            ]
        else:
            raise UsageError(
                f"{source} has none of {NODE_FILE}, {CERTIFICATE_FILE}, {AUTHORITIES_FILE}: "
                "a directory that mycoproxy pki init or issue made is wanted"
            )
        credentials = write_node(directory, key, certificates, revoked, now=now)
        if path.name == CERTIFICATE_FILE:
            (directory / REQUEST_KEY).unlink()
            (directory / REQUEST).unlink(missing_ok=True)
    return credentials
