"""Which address a pod gets on a node: the next free one, as CNI's host-local plugin chooses.

"Next" and not "first": an address that was just given back is used again only when the others have
been, so that a moved pod has an address that no client's memory, cache or conntrack entry names.
"""

import ipaddress
from collections.abc import Set as AbstractSet

from mycoproxy.errors import MycoError
from netlab.topology import Address, Interface
from netlab.topology_rules import usable


def next_free(bridge: Interface, used: AbstractSet[Address], last: Address | None) -> Address:
    """The first usable address of the bridge's subnet after ``last`` that nobody has.

    Raises ``MycoError`` if there is none.
    """
    subnet = bridge.network
    taken = {*used, bridge.ip}
    first = int(subnet.network_address)
    candidate = int(last) if last is not None and last in subnet else first
    # One of len(taken) + 3 successive addresses is free: taken, the first, the last, and one more.
    for _ in range(min(subnet.num_addresses, len(taken) + 3)):
        candidate = first + (candidate + 1 - first) % subnet.num_addresses
        address = ipaddress.ip_address(candidate.to_bytes(subnet.max_prefixlen // 8, "big"))
        if usable(address, subnet) and address not in taken:
            return address
    raise MycoError(f"no free address in {subnet} ({len(taken)} are taken)")
