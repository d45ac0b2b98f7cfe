"""The list of those who are shut out although their certificates have not run out.

One text file, ``revoked``, beside the node's certificate; agents read it when it changes. A line is

* ``serial HEX``: this certificate is refused. ``mycoproxy pki revoke`` writes these, so that the
  node's name can be used again with another certificate.
* ``node NAME``: every certificate of this name is refused. This is for a person with an editor and
  no authority at hand.

``#`` begins a comment. A line that cannot be read makes the whole list invalid: half a list
would let somebody in. It is not a CRL, because a CRL runs out, and a cluster whose CRL was not
renewed in time stands still; and it is not signed, because whoever can write it can write the
authorities beside it too.
"""

import re
from dataclasses import dataclass

from mycoproxy.errors import UsageError
from mycoproxy.pki.errors import CredentialsError
from mycoproxy.pki.identity import checked_node

_SERIAL = re.compile(r"[0-9a-f]{1,40}")

#: What a list without anybody on it says.
EMPTY = b"# Who is shut out: 'serial HEX' or 'node NAME', one a line.\n"


@dataclass(frozen=True, slots=True)
class Revoked:
    """Who is shut out."""

    serials: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, data: bytes, origin: object) -> "Revoked":
        """Read a list. ``CredentialsError`` names ``origin`` and the line that is wrong."""
        serials, nodes = set(), set()
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            match line.partition("#")[0].split():
                case []:
                    continue
                case ["serial", serial] if _SERIAL.fullmatch(normal_serial(serial)):
                    serials.add(normal_serial(serial))
                    continue
                case ["node", node]:
                    try:
                        nodes.add(checked_node(node))
                    except UsageError as error:
                        raise CredentialsError(f"{origin}, line {number}: {error}") from error
                    continue
            raise CredentialsError(
                f"{origin}, line {number}: {line[:80]!r} found, "
                "'serial HEX' or 'node NAME' is wanted"
            )
        return cls(serials=frozenset(serials), nodes=frozenset(nodes))

    def covers(self, *, serial: str, node: str) -> bool:
        """Whether this certificate of this node is refused."""
        return serial in self.serials or node in self.nodes


def normal_serial(text: str) -> str:
    """A serial number as it stands in the list, from what other tools print (``0A:1B``)."""
    return text.replace(":", "").lower().lstrip("0") or "0"


def line_for(serial: str, *, node: str, until: str) -> bytes:
    """A line that shuts a certificate out, and says to people whose it was."""
    return f"serial {serial}  # node {node}, valid until {until}\n".encode()
