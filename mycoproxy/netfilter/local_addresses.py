"""The addresses of a network namespace, in text form."""

import socket

from pyroute2 import IPRoute


def local_addresses() -> frozenset[str]:
    """Those of the calling thread's network namespace, both versions, loopback's too."""
    with IPRoute() as route:
        return frozenset(
            str(attributes.get("IFA_LOCAL") or attributes["IFA_ADDRESS"])
            for message in route.get_addr()
            if message["family"] in (socket.AF_INET, socket.AF_INET6)
            for attributes in [dict(message["attrs"])]
        )
