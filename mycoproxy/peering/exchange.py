"""One request and its reply: which message may come when, as a table, and the credit of the bodies.

Both sides keep the same table: it does not know which of them it is in. An exchange has two
halves, the client's and the server's, each with a state; whatever the table does not list must
not be sent, and ends the link if it is received. The exchange is over when both halves are.
"""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final

from mycoproxy.peering.errors import ProtocolError
from mycoproxy.peering.limits import LARGEST_WINDOW


class Half(Enum):
    """The state of one half."""

    # The client's: a request has been sent,
    ASKING = auto()  # and its body is still to come
    ASKED = auto()  # with all of its body
    CANCELLED = auto()  # but it is not wanted any more
    # The server's:
    WAITING = auto()  # no reply yet
    ANSWERING = auto()  # the reply's body is still to come
    ENDED = auto()  # it was answered, or failed


class Step(Enum):
    """What a message does to an exchange."""

    DATA = auto()
    LAST_DATA = auto()
    CANCEL = auto()
    REPLY_WITH_BODY = auto()
    REPLY = auto()
    FAILURE = auto()


TABLE: Final[Mapping[tuple[Half, Step], Half]] = {
    (Half.ASKING, Step.DATA): Half.ASKING,
    (Half.ASKING, Step.LAST_DATA): Half.ASKED,
    (Half.ASKING, Step.CANCEL): Half.CANCELLED,
    (Half.ASKED, Step.CANCEL): Half.CANCELLED,
    (Half.WAITING, Step.REPLY_WITH_BODY): Half.ANSWERING,
    (Half.WAITING, Step.REPLY): Half.ENDED,
    (Half.WAITING, Step.FAILURE): Half.ENDED,
    (Half.ANSWERING, Step.DATA): Half.ANSWERING,
    (Half.ANSWERING, Step.LAST_DATA): Half.ENDED,
    (Half.ANSWERING, Step.FAILURE): Half.ENDED,
}


class Exchange:
    """Both halves, seen from one side. ``may_send``: bytes of this side's body that may go now."""

    __slots__ = ("_client", "_consumed", "_mine", "_theirs", "_unread", "_window", "may_send")

    def __init__(self, *, client: bool, body: bool, window: int, may_send: int) -> None:
        asking = Half.ASKING if body else Half.ASKED
        self._client = client
        self._mine, self._theirs = (asking, Half.WAITING) if client else (Half.WAITING, asking)
        self.may_send = may_send
        self._window = window
        self._unread = 0  # bytes that came and were not consumed yet, or not credited again
        self._consumed = 0  # bytes of them that were consumed

    @property
    def over(self) -> bool:
        """Nothing but late CREDIT and CANCEL can come."""
        return Half.ENDED in (self._mine, self._theirs) and Half.ASKING not in (
            self._mine,
            self._theirs,
        )

    @property
    def sending(self) -> bool:
        """This side has more of its body to send."""
        return self._mine in (Half.ASKING, Half.ANSWERING)

    @property
    def wanted(self) -> bool:
        """What the other side sends of its body is of use: nobody has ended or cancelled it."""
        return self._mine not in (Half.CANCELLED, Half.ENDED)

    @property
    def unanswered(self) -> bool:
        """The server's half has not ended."""
        return Half.ENDED not in (self._mine, self._theirs)

    @property
    def asking(self) -> bool:
        """The client's half has not ended."""
        return Half.ASKING in (self._mine, self._theirs)

    def send(self, step: Step) -> None:
        """This side's half goes on. ``ValueError``: it may not send that now, a bug."""
        following = TABLE.get((self._mine, step))
        if following is None:
            raise ValueError(f"{step.name} cannot be sent when {self._mine.name}")
        self._mine = following

    def spend(self, size: int) -> None:
        """So many bytes of this side's body are sent. ``ValueError``: more than may be."""
        if size > self.may_send:
            raise ValueError(f"{size} bytes of a body; the credit is {self.may_send}")
        self.may_send -= size

    def receive(self, step: Step) -> None:
        """The other side's half goes on. ``ProtocolError``: it must not send that now."""
        following = TABLE.get((self._theirs, step))
        if following is None:
            raise ProtocolError(f"{step.name} when {self._theirs.name}")
        self._theirs = following

    def take(self, size: int) -> None:
        """So many bytes of the other side's body came. ``ProtocolError``: more than credited."""
        self._unread += size
        if self._unread > self._window:
            raise ProtocolError(f"{self._unread} bytes of a body; the window is {self._window}")

    def credit(self, size: int) -> None:
        """The other side takes so many bytes more."""
        self.may_send += size
        if self.may_send > LARGEST_WINDOW:
            raise ProtocolError(f"CREDIT up to {self.may_send}; at most {LARGEST_WINDOW}")

    def consumed(self, size: int) -> int:
        """So many bytes have been read here. How much credit is to be given for it now.

        It is given in halves of the window, so that small reads do not make many frames.
        """
        self._consumed += size
        if self._consumed * 2 < self._window or not self.wanted:
            return 0
        if self._theirs not in (Half.ASKING, Half.ANSWERING):
            return 0
        given, self._consumed = self._consumed, 0
        self._unread -= given
        return given
