"""Translate: let a client that dialled the workload's address itself reach the new one.

The client's socket goes on speaking to the address that it dialled. In its namespace the packets
of exactly this connection get the new address on their way out, and the old one on their way in:
two nftables maps keyed by the 4-tuple, no per-packet state. Ports stay. The kernel mends checksums
(nft_payload), also those that are left to the device.

The order of hooks makes it invisible to conntrack and to any stateful firewall in this namespace:
packets are rewritten after conntrack on the way out (-150) and ahead of it on the way in (-300),
so it goes on seeing the connection that it has always known. Rewritten at -300 both ways it would
see two half connections, and call the incoming half invalid once a window's worth has passed.

It works on a node that forwards between the two ends, too: outgoing packets pass prerouting there,
at the same two priorities. With strict reverse path filtering (rp_filter = 1) such a node drops
the answers unless its route to the *old* address leads out where they come in.

A translated connection may move again: ``compose`` keeps one entry for each, from what was dialled
to where it is now, and none once it is back.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.netfilter.abi import PRIORITY_AFTER_CONNTRACK, PRIORITY_RAW
from mycoproxy.netfilter.elements import (
    SetChange,
    on_the_wire,
    packed,
    pair_key,
    port_key,
    read_address,
    read_pair,
)
from mycoproxy.netfilter.nft import Nft
from mycoproxy.netfilter.reserved_ports import release_ports, reserve_ports

TABLE = "mycoproxy-moved"

_RULESET = """\
table inet {table} {{
    map moved4 {{ type ipv4_addr . inet_service . ipv4_addr . inet_service : ipv4_addr; }}
    map moved6 {{ type ipv6_addr . inet_service . ipv6_addr . inet_service : ipv6_addr; }}
    map dialled4 {{ type ipv4_addr . inet_service . ipv4_addr . inet_service : ipv4_addr; }}
    map dialled6 {{ type ipv6_addr . inet_service . ipv6_addr . inet_service : ipv6_addr; }}
    set reserved {{ type inet_service; }}
    chain out {{
        ip daddr set ip saddr . tcp sport . ip daddr . tcp dport map @moved4
        ip6 daddr set ip6 saddr . tcp sport . ip6 daddr . tcp dport map @moved6
    }}
    chain output {{
        type route hook output priority {after}; policy accept;
        meta l4proto tcp jump out
    }}
    chain forwarded {{
        type filter hook prerouting priority {after}; policy accept;
        meta l4proto tcp jump out
    }}
    chain prerouting {{
        type filter hook prerouting priority {raw}; policy accept;
        meta l4proto tcp jump in
    }}
    chain in {{
        ip saddr set ip saddr . tcp sport . ip daddr . tcp dport map @dialled4
        ip6 saddr set ip6 saddr . tcp sport . ip6 daddr . tcp dport map @dialled6
    }}
}}
"""


@dataclass(frozen=True)
class Move:
    """A connection, by the name it has now, and the address that its workload's end gets."""

    connection: FourTuple
    new_address: str

    def reversed(self) -> "Move":
        """The move back, by the name the connection has after this one."""
        local = Endpoint(self.new_address, self.connection.local.port)
        return Move(
            FourTuple(local, self.connection.remote), on_the_wire(self.connection.local).address
        )


# What the client dialled, as the workload would name it -> the address where it is now.
Translations = Mapping[FourTuple, str]


def compose(current: Translations, moves: Iterable[Move]) -> dict[FourTuple, str]:
    """The translations after ``moves``, given the ones before.

    A connection that is translated already is found by where it is now; one that comes back to
    the address that was dialled needs no translation any more.
    """
    after = dict(current)
    dialled_by_now = {
        FourTuple(Endpoint(now, dialled.local.port), dialled.remote): dialled
        for dialled, now in current.items()
    }
    for move in moves:
        name = FourTuple(on_the_wire(move.connection.local), on_the_wire(move.connection.remote))
        new = on_the_wire(Endpoint(move.new_address, name.local.port))
        dialled = dialled_by_now.pop(name, name)
        after.pop(dialled, None)
        if new != dialled.local:
            after[dialled] = new.address
            dialled_by_now[FourTuple(new, name.remote)] = dialled
    return after


class Translate:
    """The translations of one network namespace. They outlive this object and its process.

    Used on the thread that made ``nft``.
    """

    def __init__(self, nft: Nft) -> None:
        self._nft = nft

    def install(self) -> None:
        """Make the table if it is not there. What is translated stays.

        Called by ``add``; ahead of a handover it saves the time there. Raises ``NftError``.
        """
        if not self._nft.has_table(TABLE):
            self._nft.run(
                _RULESET.format(table=TABLE, raw=PRIORITY_RAW, after=PRIORITY_AFTER_CONNTRACK)
            )

    def list(self) -> dict[FourTuple, str]:
        """What is translated: the connection as it was dialled -> the address where it is now."""
        if not self._nft.has_table(TABLE):
            return {}
        found: dict[FourTuple, str] = {}
        for name in ("moved4", "moved6"):
            for key, value in self._nft.elements(TABLE, name):
                client, dialled = read_pair(key)
                found[FourTuple(local=dialled, remote=client)] = read_address(value)
        return found

    def add(self, moves: Iterable[Move]) -> None:
        """Translate these connections from now on, all at once.

        Undone by adding each move ``reversed()``. Raises ``NetfilterError``; then nothing changed.
        """
        self.install()
        before = self.list()
        self._change(before, compose(before, moves))

    def remove(self, connections: Iterable[FourTuple]) -> None:
        """Forget connections that have ended, by the name they have now or were dialled with."""
        before = self.list()
        gone = {FourTuple(on_the_wire(one.local), on_the_wire(one.remote)) for one in connections}
        after = {
            dialled: now
            for dialled, now in before.items()
            if dialled not in gone
            and FourTuple(Endpoint(now, dialled.local.port), dialled.remote) not in gone
        }
        self._change(before, after)

    def clear(self) -> None:
        """Translate nothing any more, and remove the table. May be called again."""
        if self._nft.has_table(TABLE):
            self._change(self.list(), {})
            self._nft.delete_table(TABLE)

    def _change(self, before: Translations, after: Translations) -> None:
        gone = {key: now for key, now in before.items() if after.get(key) != now}
        come = {key: now for key, now in after.items() if before.get(key) != now}
        if not gone and not come:
            return
        # A port is reserved before it could clash, and given back only when it no longer can.
        ours = {int.from_bytes(key, "big") for key, _ in self._nft.elements(TABLE, "reserved")}
        wanted = {dialled.remote.port for dialled in after}
        taken = reserve_ports(wanted - ours)
        try:
            self._nft.change(
                TABLE,
                [
                    *_map_changes(gone, delete=True),
                    *_map_changes(come, delete=False),
                    *_port_changes(ours - wanted, delete=True),
                    *_port_changes(taken, delete=False),
                ],
            )
        except BaseException:
            release_ports(taken)
            raise
        release_ports(ours - wanted)


def _port_changes(ports: Iterable[int], *, delete: bool) -> Sequence[SetChange]:
    keys = [port_key(port) for port in sorted(ports)]
    return [SetChange("reserved", keys, delete=delete)] if keys else []


def _map_changes(translations: Translations, *, delete: bool) -> Sequence[SetChange]:
    keys: dict[str, list[bytes]] = {}
    data: dict[str, list[bytes]] = {}
    for dialled, now in translations.items():
        current = Endpoint(now, dialled.local.port)
        version = 6 if ":" in now else 4
        for name, key, value in (
            (f"moved{version}", pair_key(dialled.remote, dialled.local), packed(now)),
            (
                f"dialled{version}",
                pair_key(current, dialled.remote),
                packed(dialled.local.address),
            ),
        ):
            keys.setdefault(name, []).append(key)
            data.setdefault(name, []).append(value)
    return [SetChange(name, keys[name], data[name], delete=delete) for name in keys]
