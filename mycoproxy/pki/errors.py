"""What can be wrong with certificates: one of ours on disk, or one that a peer shows."""

from mycoproxy.errors import MycoError


class CertificateError(MycoError):
    """A certificate does not say what one of this cluster's certificates says."""


class CredentialsError(MycoError):
    """A node's or an authority's own files are missing, broken, expired or too open."""


class PeerRefusedError(CertificateError):
    """The other end of a TLS connection is not a node of this cluster, or is so no more."""
