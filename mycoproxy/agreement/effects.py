"""What the two machines ask for, what they are told, and what they write down. Plain data.

Effects are carried out in their order. A forced ``Write`` comes last: what happens next depends
on how it ends, which is fed back (``WRITTEN``, ``NOT_WRITTEN``, ``UNSURE``) before anything else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Self

from mycoproxy.agreement.messages import KEY, Abort, Commit, Message, MessageError, Plan, lock_of


class Action(Enum):
    """What has to be done on this node. Every one may be asked again, and has to be done then as
    if it had not been; ``docs/agreement.md`` says what each has to guarantee."""

    PREPARE = "prepare"
    UNDO = "undo"
    GO_LIVE = "go live"
    FINISH = "finish"
    REMOVE = "remove the source"


class Outcome(Enum):
    """How an action ended."""

    DONE = "done"
    FAILED = "failed"
    DEAD = "the copy is dead and never ran"


class RecordKind(Enum):
    """What a journal says. The last one counts."""

    BEGUN = "begun"
    PREPARED = "prepared"
    COMMITTED = "committed"
    LIVE = "live"
    DEAD = "dead"
    REVERTED = "reverted"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class Keys:
    """The source's two secrets of a move; either is told with the decision it stands for."""

    commit: bytes
    abort: bytes

    def locks(self) -> tuple[bytes, bytes]:
        """What everybody may know beforehand."""
        return lock_of(self.commit), lock_of(self.abort)


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of a move's journal. ``BEGUN`` has the plan, and on the source the keys; ``key``
    is that of the decision which the record follows from, for who asks."""

    kind: RecordKind
    plan: Plan | None = None
    keys: Keys | None = None
    key: bytes = b""

    def to_plain(self) -> dict[str, Any]:
        """For msgpack."""
        plain: dict[str, Any] = {"kind": self.kind.value}
        if self.plan is not None:
            plain["plan"] = self.plan.to_plain()
        if self.keys is not None:
            plain["keys"] = [self.keys.commit, self.keys.abort]
        if self.key:
            plain["key"] = self.key
        return plain

    @classmethod
    def from_plain(cls, plain: object) -> Self:
        """Raises ``MessageError``."""
        if not isinstance(plain, Mapping) or not set(plain) <= {"kind", "plan", "keys", "key"}:
            raise MessageError(f"a record is wanted, {plain!r:.80} found")
        try:
            kind = RecordKind(plain.get("kind"))
        except ValueError:
            raise MessageError(f"unknown record {plain.get('kind')!r:.40}") from None
        plan = Plan.from_plain(plain["plan"]) if "plan" in plain else None
        if (kind is RecordKind.BEGUN) != (plan is not None):
            raise MessageError("a plan is in the record of the beginning, and there only")
        keys = None
        if "keys" in plain:
            if not isinstance(plain["keys"], list) or len(plain["keys"]) != 2:
                raise MessageError("a record has two keys")
            keys = Keys(*map(_key, plain["keys"]))
        return cls(kind, plan, keys, _key(plain["key"]) if "key" in plain else b"")


def _key(plain: object) -> bytes:
    if not isinstance(plain, bytes) or len(plain) != KEY:
        raise MessageError(f"a key of {KEY} bytes wanted, {plain!r:.80} found")
    return plain


@dataclass(frozen=True, slots=True)
class Word:
    """The last word on a move that has ended here: what to answer who asks (None: nothing)."""

    answer: Commit | Abort | None = None


@dataclass(frozen=True, slots=True)
class Write:
    """Put a record into the move's journal. Not ``forced``: it may fail, or be lost in a crash."""

    record: Record
    forced: bool


@dataclass(frozen=True, slots=True)
class Send:
    """Send it if there is a link, else drop it: everything that matters is sent again."""

    node: str
    message: Message


@dataclass(frozen=True, slots=True)
class Act:
    """Do it, after having stopped what else is being done for this move; then report.

    ``unreached``, for the source's UNDO only: nodes that may still lead to the target. Their
    connections are better left where they are until UNDO is asked again without that peer.
    """

    action: Action
    unreached: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Forget:
    """The journal of the move may go; ``word`` is kept in memory for a while."""

    word: Word


@dataclass(frozen=True, slots=True)
class Refuse:
    """What was received is not for its sender to say. Count it, log it; nothing was changed."""

    node: str
    reason: str


Effect = Write | Send | Act | Forget | Refuse


@dataclass(frozen=True, slots=True)
class Received:
    """A message, and the authenticated name of the node that sent it."""

    node: str
    message: Message


@dataclass(frozen=True, slots=True)
class Reported:
    """How an action ended. ``DEAD`` of the target may be reported at any time."""

    action: Action
    outcome: Outcome
