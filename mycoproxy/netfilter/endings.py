"""Has a translated connection ended? Decided from what is known of it. Pure.

Where one end of it lives, that end's socket decides: as long as the kernel has one of the name, in
any state, packets of the connection may come and go. TIME_WAIT counts: a late packet of the other
side has to find it under the address that it knows, to be answered.

Where the connection is only forwarded, conntrack decides, if it tracks here.
"""

from dataclasses import dataclass
from enum import Enum

from mycoproxy.sockdiag import FoundSocket


class Standing(Enum):
    """How a translated connection stands."""

    LIVES = "lives"
    LINGERS = "lingers"
    """A remainder of its socket is left, and goes by itself, without a word."""

    MISSING = "missing"
    """There is no trace of it. One look proves little: a socket may be between two places."""

    ENDED = "ended"
    UNKNOWN = "unknown"
    """Nobody here can know."""


class Ending(Enum):
    """What a translation was removed for."""

    TOLD = "told"
    """The kernel told of its end."""

    MISSED = "missed"
    """It was gone when it was looked for, twice."""

    SUPERSEDED = "superseded"
    """A new connection took its name."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one connection.

    ``here``: the address of its end on this side is this namespace's own. ``tracked``: conntrack
    has an entry of it; None: conntrack has no entries at all here, and nothing follows. ``told``:
    the kernel has told of the end of a socket or an entry of the name. ``missed_before``: it was
    missing at an earlier look.
    """

    here: bool
    socket: FoundSocket | None = None
    tracked: bool | None = None
    told: bool = False
    missed_before: bool = False


def judge(evidence: Evidence) -> Standing:
    """How the connection stands."""
    if evidence.socket is not None:
        return Standing.LIVES if evidence.socket.expires is None else Standing.LINGERS
    if evidence.tracked and not evidence.here:
        return Standing.LIVES
    if evidence.told:
        return Standing.ENDED
    if evidence.tracked is None and not evidence.here:
        return Standing.UNKNOWN
    return Standing.ENDED if evidence.missed_before else Standing.MISSING
