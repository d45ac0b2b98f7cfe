"""How the agents of a move come to one outcome: a presumed-abort two-phase commit, its journal.

``Moves`` is all that an agent needs: it feeds it messages and reports, and carries out the orders
that it returns. ``docs/agreement.md`` has the protocol, the proof, and what a person may do.
"""

from mycoproxy.agreement.effects import Act, Action, Outcome, Refuse, Send
from mycoproxy.agreement.journal import Journal, JournalError
from mycoproxy.agreement.messages import (
    Message,
    MessageError,
    MoveId,
    message_from_plain,
    message_to_plain,
)
from mycoproxy.agreement.moves import AgreementError, Do, Limits, Moves, Order, Over, Status

__all__ = [
    "Act",
    "Action",
    "AgreementError",
    "Do",
    "Journal",
    "JournalError",
    "Limits",
    "Message",
    "MessageError",
    "MoveId",
    "Moves",
    "Order",
    "Outcome",
    "Over",
    "Refuse",
    "Send",
    "Status",
    "message_from_plain",
    "message_to_plain",
]
