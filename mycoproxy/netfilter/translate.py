"""Translate: let a client that dialled the workload's address itself reach the new one.

The client's socket goes on speaking to the address that it dialled. In its namespace the packets
of exactly this connection get the new address on their way out, and the old one on their way in:
two nftables maps keyed by the 4-tuple, no per-packet state. The kernel mends checksums
(nft_payload), also those that are left to the device.

Mostly the port stays. It changes, too, if the other end is an anchor node that has had to take
another one (``anchor_ports``). A lookup gives one value, so that takes two in one rule, and the
second sees a name with one part rewritten. Outwards the port is rewritten first, inwards the
address, so that this is the same name both times: (the address that was dialled, the new port). It
may be another connection's, since the second map is asked only where the first had an answer; but
two of its own kind must not have it.

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    read_port,
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
    map port_out4 {{ type ipv4_addr . inet_service . ipv4_addr . inet_service : inet_service; }}
    map port_out6 {{ type ipv6_addr . inet_service . ipv6_addr . inet_service : inet_service; }}
    map address_out4 {{ type ipv4_addr . inet_service . ipv4_addr . inet_service : ipv4_addr; }}
    map address_out6 {{ type ipv6_addr . inet_service . ipv6_addr . inet_service : ipv6_addr; }}
    map address_in4 {{ type ipv4_addr . inet_service . ipv4_addr . inet_service : ipv4_addr; }}
    map address_in6 {{ type ipv6_addr . inet_service . ipv6_addr . inet_service : ipv6_addr; }}
    map port_in4 {{ type ipv4_addr . inet_service . ipv4_addr . inet_service : inet_service; }}
    map port_in6 {{ type ipv6_addr . inet_service . ipv6_addr . inet_service : inet_service; }}
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
        {_PAIR[4]} @live4 goto out4
        {_PAIR[6]} @live6 goto out6
    }}
    chain out4 {{
        tcp dport set {_PAIR[4]} map @port_out4 ip daddr set {_PAIR[4]} map @address_out4 return
        ip daddr set {_PAIR[4]} map @moved4
    }}
    chain out6 {{
        tcp dport set {_PAIR[6]} map @port_out6 ip6 daddr set {_PAIR[6]} map @address_out6 return
        ip6 daddr set {_PAIR[6]} map @moved6
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
        ip saddr set {_PAIR[4]} map @dialled4 return
        ip saddr set {_PAIR[4]} map @address_in4 tcp sport set {_PAIR[4]} map @port_in4
        ip6 saddr set {_PAIR[6]} map @dialled6 return
        ip6 saddr set {_PAIR[6]} map @address_in6 tcp sport set {_PAIR[6]} map @port_in6
    }}
}}
"""


@dataclass(frozen=True)
class Move:
    """A connection, by the name it has now, and what its workload's end is to be."""

    connection: FourTuple
    new: Endpoint

    def reversed(self) -> "Move":
        """The move back, by the name the connection has after this one."""
        name = FourTuple(self.new, self.connection.remote)
        return Move(name, on_the_wire(self.connection.local))


# What the client dialled, as the workload would name it -> where it is now.
Translations = Mapping[FourTuple, Endpoint]


def compose(current: Translations, moves: Iterable[Move]) -> dict[FourTuple, Endpoint]:
    """The translations after ``moves``, given the ones before.

    A connection that is translated already is found by where it is now; one that comes back to
    what was dialled needs no translation any more.
    """
    after = dict(current)
    dialled_by_now = {present_name(dialled, now): dialled for dialled, now in current.items()}
    for move in moves:
        name = FourTuple(on_the_wire(move.connection.local), on_the_wire(move.connection.remote))
        new = on_the_wire(move.new)
        dialled = dialled_by_now.pop(name, name)
        after.pop(dialled, None)
        if new != dialled.local:
            after[dialled] = new
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

    def list(self) -> dict[FourTuple, Endpoint]:
        """What is translated: the connection as it was dialled -> where it is now."""
        if not self._nft.has_table(TABLE):
            return {}
        return self._live(self._listed())

    def _listed(self) -> dict[FourTuple, Endpoint]:
        """What stands in the maps, also what a SYN has ended."""
        if not self._nft.has_table(TABLE):
            return {}
        found: dict[FourTuple, Endpoint] = {}
        for version in (4, 6):
            for key, value in self._nft.elements(TABLE, f"moved{version}"):
                client, dialled = read_pair(key)
                found[FourTuple(dialled, client)] = Endpoint(read_address(value), dialled.port)
            ports = self._nft.elements(TABLE, f"port_out{version}")
            addresses = dict(self._nft.elements(TABLE, f"address_out{version}")) if ports else {}
            for key, value in ports:
                client, dialled = read_pair(key)
                port = read_port(value)
                address = addresses.get(pair_key(client, dialled._replace(port=port)))
                if address is not None:  # else it has gone between the two questions
                    found[FourTuple(dialled, client)] = Endpoint(read_address(address), port)
        return found

    def _live(self, translations: Translations) -> dict[FourTuple, Endpoint]:
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
        return {read_port(key) for key, _ in self._nft.elements(TABLE, "reserved")}


def present_name(dialled: FourTuple, now: Endpoint) -> FourTuple:
    """What a translated connection is called now, at its workload."""
    return FourTuple(now, dialled.remote)


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
        for name, key, value in _elements_of_one(dialled.remote, dialled.local, now):
            elements = found.setdefault(f"{name}{now.version}", _Elements(f"{name}{now.version}"))
            elements.keys.append(key)
            if value is not None:
                elements.data.append(value)
    return found


def _elements_of_one(
    client: Endpoint, dialled: Endpoint, now: Endpoint
) -> Iterator[tuple[str, bytes, bytes | None]]:
    """(set, key, value) of each; the set without the IP version."""
    outward = pair_key(client, dialled)
    yield "live", outward, None
    yield "wire", pair_key(client, now), None
    if now.port == dialled.port:
        yield "moved", outward, packed(now.address)
        yield "dialled", pair_key(now, client), packed(dialled.address)
        return
    between = dialled._replace(port=now.port)
    yield "port_out", outward, port_key(now.port)
    yield "address_out", pair_key(client, between), packed(now.address)
    yield "address_in", pair_key(now, client), packed(dialled.address)
    yield "port_in", pair_key(between, client), port_key(dialled.port)


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
