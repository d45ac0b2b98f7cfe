"""Rulesets in the kernel's own form: compiled once by nftables, sent again by ourselves.

Our tables differ only in their names. nftables takes 1 ms for each, far more beside thousands of
foreign chains (it reads all of them first), and 20 ms as a child process, which it has to be where
thousands of descriptors are open. What it would send is always the same; so it is asked to show
that instead (``--check --debug=mnl``), once for each ruleset in the life of a process.

What it shows is libmnl's print of each netlink message (mnl_nlmsg_fprintf, libmnl 1.0): a header,
then the payload in lines of four bytes, of which those that are an attribute's header are written
as numbers. Flags are shown for what they mean in any message, not CREATE and APPEND, which follow
from the kind of message. Every message's length is compared.
"""

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mycoproxy.errors import MycoError
from mycoproxy.netfilter import abi
from mycoproxy.netfilter.nfnetlink import Request, attribute

ANY_TABLE = "any"
"""What a ruleset that is compiled calls its table."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LENGTH = re.compile(r"\| *(\d+) *\|\s+\| message length \|")
_KIND = re.compile(r"\| *(\d+) \| .... \|\s+\|  type \| flags  \|")
_DATA = re.compile(r"\| ([0-9a-f]{2}) ([0-9a-f]{2}) ([0-9a-f]{2}) ([0-9a-f]{2})  \|")
_ATTRIBUTE = re.compile(r"\|(\d+)\|([N-])([B-])\|(\d+)\|\s+\|len \|flags\| type\|")
_HEADER_BYTES = 16
_GENERIC_BYTES = 4

# linux/netlink.h, linux/netfilter/nf_tables.h
_NLM_F_APPEND = 0x800
_NLA_F_NET_BYTEORDER = 0x4000
_CREATING = {
    0: abi.NLM_F_CREATE,  # NFT_MSG_NEWTABLE
    3: abi.NLM_F_CREATE,  # NFT_MSG_NEWCHAIN
    6: abi.NLM_F_CREATE | _NLM_F_APPEND,  # NFT_MSG_NEWRULE
    9: abi.NLM_F_CREATE,  # NFT_MSG_NEWSET
    12: abi.NLM_F_CREATE,  # NFT_MSG_NEWSETELEM
    abi.NFT_MSG_DELTABLE: 0,
}
_NEWSET = 9
_TABLE = 1  # NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE, ...
_SET_DESC = 9  # NFTA_SET_DESC
_SET_DESC_SIZE = 1  # NFTA_SET_DESC_SIZE
_DYNAMIC_SET_SIZE = (0xFFFF).to_bytes(4, "big")


class CompileError(MycoError):
    """nftables showed something else than what is expected here."""


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What a ruleset is made of. ``requests`` are for ``ANY_TABLE``."""

    requests: Sequence[Request]

    def requests_for(self, table: str) -> list[Request]:
        """The messages that make it, in one transaction, under the name ``table``."""
        name = attribute(_TABLE, table.encode() + b"\0")
        return [_named(request, name) for request in self.requests]


def read_messages(shown: str) -> Ruleset:
    """The ruleset in what ``nft --debug=mnl`` shows. Raises ``CompileError``."""
    found = list(_messages(_COLOUR.sub("", shown)))
    kinds = [one.kind for one in found]
    try:
        begin = kinds.index(abi.NFNL_MSG_BATCH_BEGIN)
    except ValueError:
        raise CompileError(f"nftables showed {len(found)} messages, none begins a batch") from None
    # It shows no end of the batch: it is sent for a check only.
    batch = [one for one in found[begin + 1 :] if one.kind >> 8 == abi.NFNL_SUBSYS_NFTABLES]
    if not batch:
        raise CompileError("nftables showed an empty batch")
    return Ruleset([one.request() for one in batch])


@dataclass(slots=True)
class _Message:
    length: int
    kind: int = 0
    payload: bytearray = field(default_factory=bytearray)

    def request(self) -> Request:
        if self.length != _HEADER_BYTES + len(self.payload):
            raise CompileError(
                f"nftables showed {len(self.payload)} bytes of a message that has "
                f"{self.length - _HEADER_BYTES}"
            )
        operation = self.kind & 0xFF
        if operation not in _CREATING:
            raise CompileError(f"nftables showed a message of kind {operation}; not known here")
        attributes = bytes(self.payload[_GENERIC_BYTES:])
        if operation == _NEWSET:
            attributes = _without_size(attributes)
        return Request(
            abi.NFNL_SUBSYS_NFTABLES, operation, self.payload[0], attributes, _CREATING[operation]
        )


def _messages(shown: str) -> Iterator[_Message]:
    current: _Message | None = None
    for line in shown.splitlines():
        if match := _LENGTH.match(line):
            if current is not None:
                yield current
            current = _Message(int(match[1]))
        elif current is None:
            continue
        elif match := _KIND.match(line):
            current.kind = int(match[1])
        elif match := _DATA.match(line):
            current.payload += bytes.fromhex("".join(match.groups()))
        elif match := _ATTRIBUTE.match(line):
            nested = abi.NLA_F_NESTED if match[2] == "N" else 0
            order = _NLA_F_NET_BYTEORDER if match[3] == "B" else 0
            current.payload += struct.pack("=HH", int(match[1]), int(match[4]) | nested | order)
    if current is not None:
        yield current


def _walk(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes in ``payload``, in order: (type with its flags, payload)."""
    offset = 0
    while offset + 4 <= len(payload):
        size, kind = struct.unpack_from("=HH", payload, offset)
        yield kind, payload[offset + 4 : offset + size]
        offset += (max(size, 4) + 3) & ~3


def _without_size(attributes: bytes) -> bytes:
    """Without the size that nft gives to each set that rules change, if nobody else does.

    The kernel has it as a limit anyway (net/netfilter/nft_dynset.c); a set that is told of it when
    it is made has memory for as many elements at once (1 MiB).
    """
    parts = []
    for kind, payload in _walk(attributes):
        if kind & abi.NLA_TYPE_MASK != _SET_DESC:
            parts.append(attribute(kind, payload))
            continue
        left = [one for one in _walk(payload) if one != (_SET_DESC_SIZE, _DYNAMIC_SET_SIZE)]
        if left:
            parts.append(attribute(kind, b"".join(attribute(*one) for one in left)))
    return b"".join(parts)


def _named(request: Request, name: bytes) -> Request:
    parts = [
        name if kind == _TABLE else attribute(kind, payload)
        for kind, payload in _walk(request.attributes)
    ]
    return request._replace(attributes=b"".join(parts))
