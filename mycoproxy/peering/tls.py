"""TLS 1.3 with certificates on both sides, as bytes in and bytes out.

asyncio's own TLS hands a connection over only once its handshake is done. A server that bounds
the connections of strangers has to know each from its first byte, so TLS is done here, over two
memory buffers (``ssl.MemoryBIO``); both are emptied whenever they have been filled.
"""

import ssl
from collections.abc import Iterator
from typing import Final

from mycoproxy.errors import UsageError
from mycoproxy.peering.errors import HandshakeError

_READ: Final = 256 * 1024

LARGEST_HANDSHAKE: Final = 64 * 1024
"""Bytes that a peer may send until its handshake is done; one with certificates has 2 to 8 KiB."""


def check_context(context: ssl.SSLContext) -> None:
    """Raise ``UsageError`` if the context would let in a peer without a certificate.

    Names in certificates are not those of hosts: who the peer is, is asked of ``identify``.
    """
    if context.verify_mode is not ssl.CERT_REQUIRED:
        raise UsageError(f"TLS context: CERT_REQUIRED is needed, found {context.verify_mode!r}")
    if context.minimum_version is not ssl.TLSVersion.TLSv1_3:
        raise UsageError(
            f"TLS context: at least TLS 1.3 is needed, not {context.minimum_version!r}"
        )
    if context.check_hostname:
        raise UsageError("TLS context: check_hostname has to be off; nodes are not named by hosts")


class TlsStream:
    """One connection's TLS. ``ready``: the handshake is done, the peer's certificate checked."""

    def __init__(self, context: ssl.SSLContext, *, server: bool) -> None:
        check_context(context)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.ssl_object = context.wrap_bio(self._incoming, self._outgoing, server_side=server)
        self.ready = False
        self._strange = 0
        if not server:
            self._step()

    def feed(self, data: bytes) -> None:
        """Bytes from the network. Raises ``HandshakeError``: this peer is not let in."""
        self._incoming.write(data)
        if not self.ready:
            self._strange += len(data)
            if self._strange > LARGEST_HANDSHAKE:
                raise HandshakeError("tls", f"a handshake of more than {LARGEST_HANDSHAKE} bytes")
            self._step()

    def _step(self) -> None:
        try:
            self.ssl_object.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            raise HandshakeError("tls", _reason(error)) from None
        self.ready = True

    def plaintext(self) -> Iterator[bytes]:
        """What can be read now, at most a TLS record (16 KiB) at once; ends with b"" at the end.

        Raises ``HandshakeError`` also after the handshake of the client's side: in TLS 1.3 only
        then a client hears that the server does not accept its certificate.
        """
        read, incoming, pending = self.ssl_object.read, self._incoming, self.ssl_object.pending
        while incoming.pending or pending():
            try:
                yield read(_READ)
            except ssl.SSLWantReadError:
                return
            except ssl.SSLZeroReturnError:
                yield b""
                return
            except ssl.SSLError as error:
                raise HandshakeError("tls", _reason(error)) from None

    def write(self, data: bytes) -> None:
        """Encrypt; ``to_send`` has the result."""
        self.ssl_object.write(data)

    def to_send(self) -> bytes:
        """Bytes for the network; an alert, too, after an error."""
        return self._outgoing.read()

    def close(self) -> None:
        """Say that no more comes (close_notify), if the handshake was done."""
        if self.ready:
            try:
                self.ssl_object.unwrap()
            except (
                ssl.SSLError
            ):  # it wants the other side's, or the stream is broken: both are fine
                return


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the peer's certificate: {error.verify_message}"
    return f"TLS: {(error.reason or str(error)).lower().replace('_', ' ')}"
