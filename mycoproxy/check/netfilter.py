"""What netfilter must be able to do. Everything is tried out in a throwaway network namespace."""

import socket
from collections.abc import Callable

from mycoproxy.addresses import Endpoint
from mycoproxy.check.report import UnmetError
from mycoproxy.check.throwaway import in_throwaway_namespace
from mycoproxy.netfilter import abi
from mycoproxy.netfilter.conntrack import Conntrack
from mycoproxy.netfilter.entry import ConntrackEntry, Direction, TcpTracking
from mycoproxy.netfilter.nft import Nft, NftError

_TABLE = "mycoproxy_check"

# Documentation addresses (RFC 5737): a client, a virtual IP, a pod.
_CLIENT = Endpoint("192.0.2.1", 40000)
_SERVICE = Endpoint("198.51.100.1", 80)
_POD = Endpoint("203.0.113.1", 8080)

_NAT_RULES = f"""
add chain inet {_TABLE} before {{ type nat hook prerouting priority dstnat; }}
add rule inet {_TABLE} before ip daddr {_SERVICE.address} tcp dport 80 dnat ip to {_POD}
add chain inet {_TABLE} after {{ type nat hook postrouting priority srcnat; }}
add rule inet {_TABLE} after ip daddr {_POD.address} masquerade
"""

# The two directions of `translate`, and the set lookup of `hold`.
_TUPLE = "ipv4_addr . inet_service . ipv4_addr . inet_service"
_MAP_RULES = f"""
add map inet {_TABLE} moved {{ type {_TUPLE} : ipv4_addr; }}
add set inet {_TABLE} held {{ type {_TUPLE}; }}
add chain inet {_TABLE} outward {{ type route hook output priority raw; }}
add chain inet {_TABLE} inward {{ type filter hook prerouting priority raw; }}
add rule inet {_TABLE} inward ip saddr . tcp sport . ip daddr . tcp dport @held drop
add rule inet {_TABLE} outward ip daddr set ip saddr . tcp sport . ip daddr . tcp dport map @moved
add rule inet {_TABLE} inward ip saddr set ip daddr . tcp dport . ip saddr . tcp sport map @moved
add element inet {_TABLE} moved {{ 192.0.2.1 . 40000 . 198.51.100.1 . 80 : 203.0.113.1 }}
"""

_TPROXY_RULES = f"""
add chain inet {_TABLE} intercept {{ type filter hook prerouting priority mangle; }}
add rule inet {_TABLE} intercept ip protocol tcp tproxy ip to :9 meta mark set 1
"""


def tables() -> str:
    """Make a table, see it, delete it."""
    return _with_rules("")


def nat() -> str:
    """A Service's rules: DNAT in front, masquerade behind."""
    return _with_rules(_NAT_RULES)


def raw_maps() -> str:
    """Raw-priority chains that look up 4-tuples and rewrite addresses from a map."""
    return _with_rules(_MAP_RULES)


def tproxy() -> str:
    """TPROXY rules, and a socket that may use an address that is not its own."""

    def transparent_socket() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)

    return _with_rules(_TPROXY_RULES, then=transparent_socket)


_IP_TRANSPARENT = 19  # linux/in.h


def conntrack() -> str:
    """Insert a connection that is NATed already, as `rebind` does, read it back, delete it."""
    return in_throwaway_namespace(_insert_and_delete)


def _with_rules(rules: str, then: Callable[[], None] = lambda: None) -> str:
    def try_rules() -> str:
        with Nft() as nft:
            try:
                nft.run(f"add table inet {_TABLE}\n{rules}")
                if not nft.has_table(_TABLE):
                    raise UnmetError("a table that was made is not there")
                then()
                nft.delete_table(_TABLE)
            except NftError as error:
                raise UnmetError(str(error)) from error
        return "works"

    return in_throwaway_namespace(try_rules)


def _insert_and_delete() -> str:
    entry = ConntrackEntry(
        orig=Direction(_CLIENT, _SERVICE),
        reply=Direction(_POD, _CLIENT),
        status=abi.IPS_SEEN_REPLY | abi.IPS_ASSURED | abi.IPS_CONFIRMED,
        timeout=60,
        tcp=TcpTracking(state=abi.TCP_CONNTRACK_ESTABLISHED),
    )
    with Conntrack() as table:
        (inserted,) = table.insert([entry])
        if inserted:
            raise OSError(inserted, "inserting an entry was refused")
        found = table.get(entry.orig)
        if found is None or found.reply != entry.reply:
            raise UnmetError(f"inserted {entry.orig} with NAT to {_POD}, read back {found}")
        (deleted,) = table.delete([entry])
        if deleted:
            raise OSError(deleted, "deleting an entry was refused")
    return "works"
