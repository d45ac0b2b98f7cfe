"""TLS contexts as agents use them: TLS 1.3, both ends with a certificate, nothing remembered.

A key and certificate are given to OpenSSL from a memfd. Given the name of a file, it would open
that file twice, once for the certificate and once for the key, with a rename in between some day.
"""

import os
import ssl

#: What the agents speak (ALPN protocol name).
ALPN = "mycoproxy/1"


def bare_context(protocol: int) -> ssl.SSLContext:
    """A context that trusts nobody and has no certificate: no handshake succeeds with it."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    # A ticket would let a peer come back without its certificate being looked at.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    context.set_alpn_protocols([ALPN])
    return context


def context_with(protocol: int, own: bytes, trusted: bytes) -> ssl.SSLContext:
    """A context with a key and certificate (``own``), and the authorities that it trusts, as PEM.

    ``ssl.SSLError`` if OpenSSL does not take them.
    """
    context = bare_context(protocol)
    context.load_verify_locations(cadata=trusted.decode("ascii"))
    handle = os.memfd_create("mycoproxy-pki", os.MFD_CLOEXEC)
    try:
        with os.fdopen(handle, "wb", closefd=False) as file:
            file.write(own)
        context.load_cert_chain(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)
    return context
