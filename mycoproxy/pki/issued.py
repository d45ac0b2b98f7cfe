"""What an authority has signed: one JSON object a line in ``issued``.

A record is written before its certificate is handed out. The records say which certificates a
node's name stands for, so that they can be revoked by name, and which nodes still need an
authority that is about to go. Certificates that ran out long ago are forgotten.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from mycoproxy.pki.errors import CredentialsError
from mycoproxy.pki.files import PUBLIC, read_file, replace_file
from mycoproxy.pki.identity import identity_of
from mycoproxy.pki.pem import serial_of, time_text

ISSUED_FILE = "issued"
_REMEMBERED = timedelta(days=90)


@dataclass(frozen=True, slots=True)
class Issued:
    """One certificate: whose, its serial number, that of the authority's certificate, its times."""

    node: str
    serial: str
    authority: str
    not_before: str
    not_after: str

    @classmethod
    def of(cls, certificate: x509.Certificate, authority: x509.Certificate) -> "Issued":
        """The record of a certificate."""
        return cls(
            node=identity_of(certificate).node,
            serial=serial_of(certificate),
            authority=serial_of(authority),
            not_before=time_text(certificate.not_valid_before_utc),
            not_after=time_text(certificate.not_valid_after_utc),
        )

    def ends(self) -> datetime:
        """When it runs out, UTC."""
        return datetime.fromisoformat(self.not_after)


def read_issued(directory: Path) -> list[Issued]:
    """All records, oldest first."""
    path = directory / ISSUED_FILE
    try:
        found = [Issued(**json.loads(line)) for line in read_file(path).splitlines()]
        for each in found:
            each.ends()
    except (ValueError, TypeError) as error:
        raise CredentialsError(f"{path}: a record cannot be read: {error}") from error
    return found


def write_issued(directory: Path, records: Iterable[Issued], *, now: datetime) -> None:
    """Replace the records, without those that ran out long ago."""
    lines = [json.dumps(asdict(each)) for each in records if now < each.ends() + _REMEMBERED]
    replace_file(directory / ISSUED_FILE, "".join(f"{line}\n" for line in lines).encode(), PUBLIC)


def newest_by_node(records: Iterable[Issued]) -> dict[str, Issued]:
    """For each node the certificate that was issued last."""
    return {each.node: each for each in records}
