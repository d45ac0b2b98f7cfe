"""The first frame of either side: who it is, what it speaks, how much it takes.

Each side draws a nonce for each link. The frames' numbers start at a value that is derived from
both, and from the direction: a frame that was recorded on another link, or is sent back to where it
came from, has a wrong number.
"""

import hashlib
import secrets
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, NamedTuple

from mycoproxy.peering.errors import HandshakeError, ProtocolError
from mycoproxy.peering.limits import (
    LARGEST_WINDOW,
    LONGEST_WORD,
    MOST_FEATURES,
    SMALLEST_WINDOW,
    LinkLimits,
)

PROTOCOL: Final = "mycoproxy-peer"
VERSIONS: Final = (1, 1)
"""The oldest and the newest version of the protocol that is spoken here."""

_NONCE: Final = 16
_NUMBER: Final = 6  # bytes of the first number


class Role(Enum):
    """The client opened the connection and sends requests; the server answers them."""

    CLIENT = "client"
    SERVER = "server"

    @property
    def other(self) -> "Role":
        """The role of the other side."""
        return Role.SERVER if self is Role.CLIENT else Role.CLIENT


@dataclass(frozen=True, slots=True)
class Introduction:
    """What this side says of itself on one link. ``wanted``: the node that a client dialled."""

    node: str
    limits: LinkLimits = field(default_factory=LinkLimits)
    features: frozenset[str] = frozenset()
    wanted: str | None = None
    versions: tuple[int, int] = VERSIONS
    nonce: bytes = field(default_factory=lambda: secrets.token_bytes(_NONCE))

    def fields(self) -> dict[str, Any]:
        """As the fields of a ``Hello``."""
        fields = {
            "protocol": PROTOCOL,
            "versions": list(self.versions),
            "features": sorted(self.features),
            "node": self.node,
            "nonce": self.nonce,
            "window": self.limits.window,
            "requests": self.limits.requests,
        }
        return fields if self.wanted is None else fields | {"wanted": self.wanted}


class Agreement(NamedTuple):
    """What both sides know once both have said hello. An event of the protocol."""

    peer: str
    version: int
    features: frozenset[str]
    window: int
    """Bytes of each body that the other side takes ahead of its reader."""
    requests: int
    """Requests that the other side takes at once."""
    sending: int
    """The number of this side's next frame."""
    receiving: int
    """The number of the other side's next frame."""


def agree(role: Role, mine: Introduction, theirs: dict[str, Any], peer: str) -> Agreement:
    """What follows from the two hellos.

    ``peer`` is the node that the other side's certificate names. Fields that are not known here are
    left to later versions. Raises ``ProtocolError`` for a hello that is not well formed, and
    ``HandshakeError`` for one that does not fit.
    """
    if theirs.get("protocol") != PROTOCOL:
        raise ProtocolError(f"hello: protocol is not {PROTOCOL}")
    node, nonce = theirs.get("node"), theirs.get("nonce")
    if node != peer:
        raise HandshakeError("identity", f"the certificate of {peer} says hello as {node!r:.80}")
    if type(nonce) is not bytes or len(nonce) != _NONCE or nonce == mine.nonce:
        raise ProtocolError(f"hello: nonce is not {_NONCE} new bytes")
    oldest, newest = _versions(theirs.get("versions"))
    version = min(newest, mine.versions[1])
    if version < max(oldest, mine.versions[0]):
        raise HandshakeError(
            "version",
            f"{peer} speaks versions {oldest} to {newest}, {mine.node} "
            f"{mine.versions[0]} to {mine.versions[1]}: update the older of the two",
        )
    features = _features(theirs.get("features"))
    window = _within("window", theirs.get("window"), SMALLEST_WINDOW, LARGEST_WINDOW)
    requests = _within("requests", theirs.get("requests"), 1, 65535)
    if role is Role.SERVER and theirs.get("wanted") != mine.node:
        raise HandshakeError(
            "wanted", f"{peer} wanted {theirs.get('wanted')!r:.80}; this is {mine.node}"
        )
    nonces = (mine.nonce, nonce) if role is Role.CLIENT else (nonce, mine.nonce)
    return Agreement(
        peer,
        version,
        mine.features & features,
        window,
        requests,
        sending=first_number(role, *nonces),
        receiving=first_number(role.other, *nonces),
    )


def first_number(role: Role, client_nonce: bytes, server_nonce: bytes) -> int:
    """The number of the first frame after the hello that a side in ``role`` sends."""
    text = b" ".join((PROTOCOL.encode(), role.value.encode(), client_nonce + server_nonce))
    return int.from_bytes(hashlib.sha256(text).digest()[:_NUMBER])


def _versions(value: object) -> tuple[int, int]:
    if (
        type(value) is not list
        or len(value) != 2
        or not all(type(one) is int and one > 0 for one in value)
        or value[0] > value[1]
    ):
        raise ProtocolError(f"hello: versions is {value!r:.40}, not [oldest, newest]")
    return value[0], value[1]


def _features(value: object) -> frozenset[str]:
    if (
        type(value) is not list
        or len(value) > MOST_FEATURES
        or not all(type(one) is str and len(one) <= LONGEST_WORD for one in value)
    ):
        raise ProtocolError(f"hello: features is {value!r:.40}, not up to {MOST_FEATURES} words")
    return frozenset(value)


def _within(name: str, value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ProtocolError(f"hello: {name} is {value!r:.40}, not from {least} to {most}")
    return value
