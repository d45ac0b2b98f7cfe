"""Certificates: a cluster's authority, and one identity for each node."""

from mycoproxy.pki.contexts import ALPN
from mycoproxy.pki.credentials import Credentials
from mycoproxy.pki.errors import CertificateError, CredentialsError, PeerRefusedError
from mycoproxy.pki.identity import Identity
from mycoproxy.pki.watch import CredentialsWatch

__all__ = [
    "ALPN",
    "CertificateError",
    "Credentials",
    "CredentialsError",
    "CredentialsWatch",
    "Identity",
    "PeerRefusedError",
]
