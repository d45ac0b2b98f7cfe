"""What agents call on each other for a move. Arguments and bodies are in ``remote``."""

from enum import Enum
from typing import Final

MOST_BYTES: Final = 1 << 28
"""Of a body that is kept in memory as a whole."""


class Method(Enum):
    """The name on the wire. All but the first have ``move``, the move's name, among their
    arguments; those that belong to an open move have ``id``, too."""

    AGREE = "agree"
    """A message of ``mycoproxy.agreement``."""
    OPEN = "move.open"
    """Make ready to be a peer of it; returns the agent's ``life``."""
    CLOSE = "move.close"
    """It has ended, and what was opened for it and has not begun is not needed."""
    KNOWS = "move.knows"
    """Is this node still the source of it? Returns ``known``."""
    SURVEY = "move.survey"
    """What can be done for these connections?"""
    STAGE = "move.stage"
    """What a peer's part will be, as far as is known before the handover."""
    REHOME = "move.rehome"
    """A peer's part: what was staged, less what is named, and more. Returns what was lost
    meanwhile. The vote goes its own way."""
    ESTABLISH = "move.establish"
    """The target's part."""
    DELIVER = "move.deliver"
    """Segments that were lost; waits until it is live."""
    WELCOME = "move.welcome"
    """SYNs that came to the source; waits until it is live."""
    DATAGRAM_SURVEY = "datagrams.survey"
    """What can be done for the UDP flows of these addresses and ports?"""
    DATAGRAM_ASK = "datagrams.ask"
    """The same of flows by name."""
    DATAGRAM_LEAD = "datagrams.lead"
    """Lead flows to the new address. The workload lives there."""
    DATAGRAM_RESTORE = "datagrams.restore"
    """To the target: the UDP sockets that the copy is to have."""
    DATAGRAM_DELIVER = "datagrams.deliver"
    """To the target: datagrams for its sockets, and the first time: flows are led. Waits until it
    is live; returns ``remarks``."""
