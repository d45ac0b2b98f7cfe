"""Who a certificate is for: one URI, ``mycoproxy://CLUSTER/node/NODE``, and nothing else.

The identity is a URI in the subject alternative name, as SPIFFE does it, because a node's name
is not a host name: agents reach each other by addresses that come and go, and a name that some
resolver can be made to answer for must not decide who may take over a connection. The subject
is for people; nothing here reads it.

A certificate must carry exactly one alternative name. With two, two readers could each pick
another one.
"""

import re
from dataclasses import dataclass

from cryptography import x509

from mycoproxy.errors import UsageError
from mycoproxy.pki.errors import CertificateError

_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_CLUSTER = re.compile(_LABEL)
_NODE = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_URI = re.compile(r"mycoproxy://([^/]+)/(authority|node/([^/]+))")


@dataclass(frozen=True, slots=True)
class Identity:
    """One node of one cluster.

    The cluster's name is a DNS label (at most 63 characters), the node's a DNS subdomain (at
    most 253), as Kubernetes has them: lower case only, so that two names are the same exactly
    if their bytes are.
    """

    cluster: str
    node: str

    @property
    def uri(self) -> str:
        """The identity as it stands in a certificate."""
        return f"mycoproxy://{self.cluster}/node/{self.node}"


def checked_cluster(name: str) -> str:
    """``name`` if a cluster may be called so; ``UsageError`` otherwise."""
    if not _CLUSTER.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a cluster: up to 63 of a-z, 0-9 and '-' are wanted, "
            "with a letter or digit at both ends"
        )
    return name


def checked_node(name: str) -> str:
    """``name`` if a node may be called so; ``UsageError`` otherwise."""
    if not _NODE.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a node: a lower-case DNS name is wanted "
            "(a-z, 0-9, '-', '.'; at most 253 characters)"
        )
    return name


def authority_uri(cluster: str) -> str:
    """What an authority's certificate says about itself."""
    return f"mycoproxy://{cluster}/authority"


def identity_of(certificate: x509.Certificate) -> Identity:
    """The node that a certificate is for.

    Reads, and checks no signature. ``CertificateError`` if it is not a node's certificate.
    """
    uri = _only_uri(certificate)
    found = _URI.fullmatch(uri)
    if (
        not found
        or not found[3]
        or not _CLUSTER.fullmatch(found[1])
        or not _NODE.fullmatch(found[3])
    ):
        raise CertificateError(
            f"the certificate is for {uri[:400]!r}; mycoproxy://CLUSTER/node/NODE is wanted"
        )
    if _is_authority(certificate):
        raise CertificateError(f"the certificate for {uri} may sign others; a node's may not")
    return Identity(cluster=found[1], node=found[3])


def cluster_of_authority(certificate: x509.Certificate) -> str:
    """The cluster whose authority this is; ``CertificateError`` if it is none."""
    uri = _only_uri(certificate)
    found = _URI.fullmatch(uri)
    if not found or found[3] or not _CLUSTER.fullmatch(found[1]) or not _is_authority(certificate):
        raise CertificateError(
            f"the certificate for {uri[:400]!r} is not an authority's "
            "(mycoproxy pki init makes one)"
        )
    return found[1]


def _only_uri(certificate: x509.Certificate) -> str:
    try:
        names = list(
            certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        )
    except x509.ExtensionNotFound:
        names = []
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise CertificateError(f"the certificate's extensions cannot be read: {error}") from error
    if len(names) != 1 or not isinstance(names[0], x509.UniformResourceIdentifier):
        raise CertificateError(
            f"the certificate has {len(names)} alternative names; exactly one, a URI, is wanted"
        )
    return names[0].value


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
