"""Which clients of a course were sent a reset: asked of the wire, not of their sockets.

A socket that has heard the end of the stream may keep a reset that follows it to itself. So
nftables remembers the client's port of every segment with that flag, if there is a socket that it
meets. One that meets none, or one in TIME_WAIT, is no harm: a wire that doubles segments makes a
closed end answer what it has answered already, moved or not.
"""

from typing import Final

from netlab.tcp_soak.course import PORT
from netlab.tcp_soak.place import Place

_TABLE: Final = "resets"
_SET: Final = "ports"
_RULESET: Final = f"""\
table inet {_TABLE} {{
    set {_SET} {{ type inet_service; size 65535; flags dynamic; }}
    chain prerouting {{
        type filter hook prerouting priority raw; policy accept;
        tcp flags & rst == rst tcp sport {PORT} socket wildcard 0 update @{_SET} {{ tcp dport }}
    }}
}}
"""


class Resets:
    """Take notice of resets in the namespace of the clients, from now on. Raises ``NftError``."""

    def __init__(self, client: Place) -> None:
        self._client = client
        client.call(client.nft.run, _RULESET)

    def ports(self) -> set[int]:
        """The ports of the clients that a reset came to, so far."""
        found = self._client.call(self._client.nft.elements, _TABLE, _SET)
        return {int.from_bytes(key[:2], "big") for key, _ in found}
