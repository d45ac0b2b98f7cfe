"""Who is who, and how long still: what ``mycoproxy pki show`` says, as plain data.

One certificate is ``{kind, cluster, node, serial, not_before, not_after, days_left, revoked}``:
``kind`` is ``authority`` or ``node``, ``node`` is None for an authority, times are UTC text,
``days_left`` is negative once it has run out, ``revoked`` is None where no list is at hand.
"""

from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from mycoproxy.errors import UsageError
from mycoproxy.pki.authority_directory import AUTHORITY_FILE, AuthorityDirectory
from mycoproxy.pki.credentials import NODE_FILE, REVOKED_FILE
from mycoproxy.pki.errors import CertificateError
from mycoproxy.pki.files import read_file
from mycoproxy.pki.identity import cluster_of_authority, identity_of
from mycoproxy.pki.issued import newest_by_node, read_issued
from mycoproxy.pki.node_directory import CERTIFICATE_FILE
from mycoproxy.pki.pem import read_certificates, serial_of, time_text
from mycoproxy.pki.revoked import Revoked


def of_directory(directory: Path, *, now: datetime) -> dict[str, Any]:
    """What is in an authority's directory or a node's.

    An authority's gives ``{cluster, rotation, certificates}`` with the newest certificate of each
    node; a node's what ``of_file`` gives.
    """
    if (directory / AUTHORITY_FILE).exists():
        return _of_authority(AuthorityDirectory(directory, now=now), now)
    for name in (NODE_FILE, CERTIFICATE_FILE):
        if (directory / name).exists():
            path = directory / REVOKED_FILE
            revoked = Revoked.parse(read_file(path), path) if path.exists() else None
            return of_file(directory / name, revoked=revoked, now=now)
    raise UsageError(f"{directory} has neither {AUTHORITY_FILE} nor {NODE_FILE}")


def of_file(path: Path, *, now: datetime, revoked: Revoked | None = None) -> dict[str, Any]:
    """The certificates in a file, in their order: ``{certificates}``."""
    found = read_certificates(read_file(path), path)
    return {"certificates": [of_certificate(each, now=now, revoked=revoked) for each in found]}


def _of_authority(directory: AuthorityDirectory, now: datetime) -> dict[str, Any]:
    revoked = directory.revoked()
    cluster = directory.authority().cluster
    newest = newest_by_node(read_issued(directory.path))
    nodes = [
        {
            "kind": "node",
            "cluster": cluster,
            "node": each.node,
            "serial": each.serial,
            "not_before": each.not_before,
            "not_after": each.not_after,
            "days_left": _days(each.ends(), now),
            "revoked": revoked.covers(serial=each.serial, node=each.node),
        }
        for _, each in sorted(newest.items())
    ]
    authorities = [of_certificate(each, now=now, revoked=revoked) for each in directory.trusted()]
    return {
        "cluster": cluster,
        "rotation": str(directory.rotation()),
        "certificates": [*authorities, *nodes],
    }


def of_certificate(
    certificate: x509.Certificate, *, now: datetime, revoked: Revoked | None = None
) -> dict[str, Any]:
    """One certificate; ``CertificateError`` if it is neither an authority's nor a node's."""
    serial, node = serial_of(certificate), None
    try:
        cluster, kind = cluster_of_authority(certificate), "authority"
    except CertificateError:
        identity = identity_of(certificate)
        cluster, node, kind = identity.cluster, identity.node, "node"
    return {
        "kind": kind,
        "cluster": cluster,
        "node": node,
        "serial": serial,
        "not_before": time_text(certificate.not_valid_before_utc),
        "not_after": time_text(certificate.not_valid_after_utc),
        "days_left": _days(certificate.not_valid_after_utc, now),
        "revoked": None if revoked is None else revoked.covers(serial=serial, node=node or ""),
    }


def _days(end: datetime, now: datetime) -> float:
    return round((end - now).total_seconds() / 86400, 1)
