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

A translation must not outlive its connection: the address that was dialled may be another
workload's by then. ``lifetimes`` removes it soon after. Until then, whatever a program asks for:

* A connection that begins under the same name ends the translation at once, in the kernel: its SYN
  takes the name out of ``live``, and goes where it is sent. (A local port may be used again as soon
  as its socket is gone, by a program that binds it; even earlier with tcp_tw_reuse.)
* A connection to the new address itself that would look the same on the wire is refused at once
  (ECONNREFUSED, as by nobody who listens). The kernel's own choice avoids it: ``reserved_ports``.

* So is one that comes in from the address that was dialled and would have the name of the
  translated one here. (An outside client of an anchored workload dials its new address, and its
  kernel chooses the port of a connection to the old one: to that kernel they are different.)

The refusal is an ICMP message: a reset would be translated, and reach the other connection. Where
packets are only forwarded a SYN proves nothing, since anybody may send one: it ends no translation.
SYNs that we play to the namespace's own sockets have the names that these know, and pass.
"""

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.marks import PLAYED
from mycoproxy.netfilter.abi import PRIORITY_AFTER_CONNTRACK, PRIORITY_RAW
from mycoproxy.netfilter.compiled import ANY_TABLE
from mycoproxy.netfilter.elements import (
    SetChange,
    on_the_wire,
    packed,
    pair_key,
    port_key,
    read_address,
    read_pair,
)
from mycoproxy.netfilter.nfnetlink import NetfilterError
from mycoproxy.netfilter.nft import Nft
from mycoproxy.netfilter.reserved_ports import release_ports, reserve_ports
from mycoproxy.sockdiag import TCP_SYN_SENT, SocketLookup

TABLE = "mycoproxy-moved"

# A SYN may be sent again for 127 s (tcp_syn_retries = 6): so long a connection may be opening.
_OPENING_SECONDS = 150
# A translation is found, and ended by a SYN before it is changed: then all is looked at anew.
_ATTEMPTS = 8
_RACES = (errno.ENOENT, errno.EEXIST, errno.EBUSY)

_PAIR = {
    4: "ip saddr . tcp sport . ip daddr . tcp dport",
    6: "ip6 saddr . tcp sport . ip6 daddr . tcp dport",
}
_MIRRORED = {
    4: "ip daddr . tcp dport . ip saddr . tcp sport",
    6: "ip6 daddr . tcp dport . ip6 saddr . tcp sport",
}
_RULESET = f"""\
table inet {ANY_TABLE} {{
    map moved4 {{ type ipv4_addr . inet_service . ipv4_addr . inet_service : ipv4_addr; }}
    map moved6 {{ type ipv6_addr . inet_service . ipv6_addr . inet_service : ipv6_addr; }}
    map dialled4 {{ type ipv4_addr . inet_service . ipv4_addr . inet_service : ipv4_addr; }}
    map dialled6 {{ type ipv6_addr . inet_service . ipv6_addr . inet_service : ipv6_addr; }}
    set live4 {{ type ipv4_addr . inet_service . ipv4_addr . inet_service; }}
    set live6 {{ type ipv6_addr . inet_service . ipv6_addr . inet_service; }}
    set wire4 {{ type ipv4_addr . inet_service . ipv4_addr . inet_service; }}
    set wire6 {{ type ipv6_addr . inet_service . ipv6_addr . inet_service; }}
    set opening4 {{
        type ipv4_addr . inet_service . ipv4_addr . inet_service
        timeout {_OPENING_SECONDS}s
    }}
    set opening6 {{
        type ipv6_addr . inet_service . ipv6_addr . inet_service
        timeout {_OPENING_SECONDS}s
    }}
    set reserved {{ type inet_service; }}
    chain begin4 {{
        {_PAIR[4]} @opening4 return
        delete @live4 {{ {_PAIR[4]} }}
        {_PAIR[4]} @wire4 reject with icmp port-unreachable
    }}
    chain begin6 {{
        {_PAIR[6]} @opening6 return
        delete @live6 {{ {_PAIR[6]} }}
        {_PAIR[6]} @wire6 reject with icmpv6 port-unreachable
    }}
    chain out {{
        {_PAIR[4]} @live4 ip daddr set {_PAIR[4]} map @moved4
        {_PAIR[6]} @live6 ip6 daddr set {_PAIR[6]} map @moved6
    }}
    chain output {{
        type route hook output priority {PRIORITY_AFTER_CONNTRACK}; policy accept;
        tcp flags & (fin | syn | rst | ack) == syn meta nfproto vmap {{
            ipv4 : jump begin4, ipv6 : jump begin6
        }}
        meta l4proto tcp jump out
    }}
    chain forwarded {{
        type filter hook prerouting priority {PRIORITY_AFTER_CONNTRACK}; policy accept;
        meta l4proto tcp jump out
    }}
    chain prerouting {{
        type filter hook prerouting priority {PRIORITY_RAW}; policy accept;
        meta mark != {PLAYED} tcp flags & (fin | syn | rst | ack) == syn jump arriving
        meta l4proto tcp jump in
    }}
    chain arriving {{
        {_MIRRORED[4]} @live4 reject with icmp port-unreachable
        {_MIRRORED[6]} @live6 reject with icmpv6 port-unreachable
    }}
    chain in {{
        ip saddr set {_PAIR[4]} map @dialled4
        ip6 saddr set {_PAIR[6]} map @dialled6
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
    dialled_by_now = {present_name(dialled, now): dialled for dialled, now in current.items()}
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
            self._nft.install(TABLE, _RULESET)

    def list(self) -> dict[FourTuple, str]:
        """What is translated: the connection as it was dialled -> the address where it is now."""
        if not self._nft.has_table(TABLE):
            return {}
        return self._live(self._listed())

    def _listed(self) -> dict[FourTuple, str]:
        """What stands in the maps, also what a SYN has ended."""
        if not self._nft.has_table(TABLE):
            return {}
        found: dict[FourTuple, str] = {}
        for name in ("moved4", "moved6"):
            for key, value in self._nft.elements(TABLE, name):
                client, dialled = read_pair(key)
                found[FourTuple(local=dialled, remote=client)] = read_address(value)
        return found

    def _live(self, translations: Translations) -> dict[FourTuple, str]:
        live = {key for name in _LIVE for key, _ in self._nft.elements(TABLE, name)}
        return {
            dialled: now
            for dialled, now in translations.items()
            if pair_key(dialled.remote, dialled.local) in live
        }

    def add(self, moves: Iterable[Move]) -> None:
        """Translate these connections from now on, all at once.

        Undone by adding each move ``reversed()``. Raises ``NetfilterError``; then nothing changed.
        """
        self.install()
        wanted = list(moves)
        names = {FourTuple(*map(on_the_wire, move.connection)) for move in wanted}
        if not names.isdisjoint(self._listed()):
            self.tidy()  # it is where it was dialled: that is another one, which ended the first
        self._change(lambda before: compose(before, wanted))

    def remove(self, connections: Iterable[FourTuple]) -> None:
        """Forget connections that have ended, by the name they have now or were dialled with.

        Raises ``NetfilterError``.
        """
        gone = {FourTuple(on_the_wire(one.local), on_the_wire(one.remote)) for one in connections}
        self._change(
            lambda before: {
                dialled: now
                for dialled, now in before.items()
                if dialled not in gone and present_name(dialled, now) not in gone
            }
        )

    def tidy(self) -> int:
        """Remove translations that a SYN has ended. Returns how many there were.

        Raises ``NetfilterError``.
        """
        if not self._nft.has_table(TABLE):
            return 0
        listed = self._listed()
        live = self._live(listed)
        ended = {dialled: now for dialled, now in listed.items() if dialled not in live}
        parts = _elements_of(ended).values()
        unneeded = self._reserved() - {dialled.remote.port for dialled in live}
        self._nft.change(
            TABLE,
            [
                *(one.change(delete=True) for one in parts if one.set_name not in _LIVE),
                *_port_changes(unneeded, delete=True),
            ],
        )
        release_ports(unneeded)
        return len(ended)

    def clear(self) -> None:
        """Translate nothing any more, and remove the table. May be called again."""
        if self._nft.has_table(TABLE):
            self._change(lambda _: {})
            self.tidy()
            self._nft.delete_table(TABLE)

    def _change(self, change: Callable[[Translations], Translations]) -> None:
        for left in reversed(range(_ATTEMPTS)):
            before = self._listed()
            try:
                self._replace(before, change(before))
            except NetfilterError as error:
                if error.errno not in _RACES or not left:
                    raise
                self.tidy()
            else:
                return

    def _replace(self, before: Translations, after: Translations) -> None:
        gone = {key: now for key, now in before.items() if after.get(key) != now}
        come = {key: now for key, now in after.items() if before.get(key) != now}
        if not gone and not come:
            return
        # A port is reserved before it could clash, and given back only when it no longer can.
        ours = self._reserved()
        wanted = {dialled.remote.port for dialled in after}
        taken = reserve_ports(wanted - ours)
        try:
            self._nft.change(
                TABLE,
                [
                    *(elements.change(delete=True) for elements in _elements_of(gone).values()),
                    *(elements.change(delete=False) for elements in _elements_of(come).values()),
                    *_opening_changes(come),
                    *_port_changes(ours - wanted, delete=True),
                    *_port_changes(taken, delete=False),
                ],
            )
        except BaseException:
            release_ports(taken)
            raise
        release_ports(ours - wanted)

    def _reserved(self) -> set[int]:
        return {int.from_bytes(key, "big") for key, _ in self._nft.elements(TABLE, "reserved")}


def present_name(dialled: FourTuple, now: str) -> FourTuple:
    """What a translated connection is called now, at its workload."""
    return FourTuple(Endpoint(now, dialled.local.port), dialled.remote)


def _port_changes(ports: Iterable[int], *, delete: bool) -> Sequence[SetChange]:
    keys = [port_key(port) for port in sorted(ports)]
    return [SetChange("reserved", keys, delete=delete)] if keys else []


_LIVE = ("live4", "live6")  # what the kernel itself deletes from


@dataclass
class _Elements:
    """Elements of one set."""

    set_name: str
    keys: list[bytes] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)

    def change(self, *, delete: bool) -> SetChange:
        return SetChange(self.set_name, self.keys, self.data, delete=delete)


def _elements_of(translations: Translations) -> dict[str, _Elements]:
    """What stands for these translations in each set."""
    found: dict[str, _Elements] = {}
    for dialled, now in translations.items():
        current = Endpoint(now, dialled.local.port)
        version = 6 if ":" in now else 4
        outward = pair_key(dialled.remote, dialled.local)
        for name, key, value in (
            (f"moved{version}", outward, packed(now)),
            (f"live{version}", outward, None),
            (f"dialled{version}", pair_key(current, dialled.remote), packed(dialled.local.address)),
            (f"wire{version}", pair_key(dialled.remote, current), None),
        ):
            elements = found.setdefault(name, _Elements(name))
            elements.keys.append(key)
            if value is not None:
                elements.data.append(value)
    return found


def _opening_changes(come: Translations) -> Sequence[SetChange]:
    """Let the SYNs pass of those that have no connection yet: they are sent again."""
    if not come:
        return []
    names = {FourTuple(local=one.remote, remote=one.local): one for one in come}
    with SocketLookup() as sockets:
        found = sockets.find_all(names)
    keys: dict[str, list[bytes]] = {}
    for name, dialled in names.items():
        if name not in found or found[name].state == TCP_SYN_SENT:
            of_family = keys.setdefault(f"opening{dialled.remote.version}", [])
            of_family.append(pair_key(dialled.remote, dialled.local))
    return [SetChange(name, keys[name]) for name in keys]
