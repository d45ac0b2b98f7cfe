"""What a connection is called: two endpoints, seen from the workload's socket."""

import ipaddress
from functools import lru_cache
from typing import NamedTuple


class Endpoint(NamedTuple):
    """An IP address in its canonical text form (no scope, no brackets) and a port."""

    address: str
    port: int

    @property
    def version(self) -> int:
        """4 or 6. An IPv4-mapped IPv6 address counts as 4: that is what is on the wire."""
        return 6 if ":" in wire_address(self.address) else 4

    def __str__(self) -> str:
        return (
            f"[{self.address}]:{self.port}"
            if ":" in self.address
            else f"{self.address}:{self.port}"
        )


class FourTuple(NamedTuple):
    """A connection's name. ``local`` is the workload's end, ``remote`` the client's."""

    local: Endpoint
    remote: Endpoint

    def __str__(self) -> str:
        return f"{self.local} <- {self.remote}"


# A handover asks for the same few addresses for each of thousands of connections.
@lru_cache(maxsize=4096)
def wire_address(address: str) -> str:
    """The address as it is in packets: ``::ffff:192.0.2.1`` is ``192.0.2.1`` there."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(parsed)
