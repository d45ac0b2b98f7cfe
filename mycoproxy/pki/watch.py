"""New certificates without a restart.

The files are looked at when somebody asks, and not read again unless they changed.

Files that are broken change nothing: the credentials in use stay in use, and the error stands in
``error`` for the agent to report until the files are good again.
"""

import ssl
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from mycoproxy.pki.contexts import bare_context
from mycoproxy.pki.credentials import NODE_FILE, REVOKED_FILE, Credentials
from mycoproxy.pki.errors import CredentialsError
from mycoproxy.pki.pem import utc_now


class CredentialsWatch:
    """The credentials of a node as they are now.

    ``current`` is what to use for the next connection; connections that are open keep what they
    have. When ``refresh`` says True, ask ``current.peer_identity`` again about each open
    connection, and close those that it refuses: this is how a revoked node is shut out at once.
    """

    def __init__(self, directory: Path, *, clock: Callable[[], datetime] = utc_now) -> None:
        """Load a node's directory; raises what ``Credentials.load`` raises."""
        self._directory = directory
        self._clock = clock
        self._seen = _signature(directory)
        self.current = Credentials.load(directory, now=clock())
        #: What is wrong with the files on disk, if they are not those in use.
        self.error: CredentialsError | None = None

    def refresh(self) -> bool:
        """Look at the files; True if ``current`` is new.

        Two ``stat`` calls if nothing changed, a few milliseconds otherwise. As long as there is an
        ``error`` each call tries again: a certificate can also become valid.
        """
        seen = _signature(self._directory)
        if seen == self._seen and self.error is None:
            return False
        # What changes while it is read is noticed by the next call.
        self._seen = seen
        try:
            self.current = Credentials.load(self._directory, now=self._clock())
        except CredentialsError as error:
            self.error = error
            return False
        self.error = None
        return True

    def listening_context(self) -> ssl.SSLContext:
        """A server context for a listener that lives longer than a certificate.

        ``asyncio`` binds a listener to one context for good. This one looks up ``current`` at each
        handshake, when the client's hello has come, and lets it go on with that context: its
        certificate, its authorities. Were it not asked, no handshake would succeed.
        """
        context = bare_context(ssl.PROTOCOL_TLS_SERVER)
        context.sni_callback = self._hand_over
        return context

    def _hand_over(
        self, connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _context: ssl.SSLContext
    ) -> None:
        connection.context = self.current.server_context()


def _signature(directory: Path) -> tuple[tuple[int, ...] | None, ...]:
    """What changes when a file is replaced or written to."""
    found: list[tuple[int, ...] | None] = []
    for name in (NODE_FILE, REVOKED_FILE):
        try:
            stat = (directory / name).stat()
        except OSError:
            found.append(None)
        else:
            found.append(
                (
                    stat.st_dev,
                    stat.st_ino,
                    stat.st_size,
                    stat.st_mtime_ns,
                    stat.st_ctime_ns,
                    stat.st_mode,
                )
            )
    return tuple(found)
