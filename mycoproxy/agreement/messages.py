"""What the agents of a move tell each other, and its form on the wire: strict and bounded.

A message says something about one move and nothing else. Each is either true for ever (``Live``,
``Undone``), a decision, or a request that may be repeated; so none needs a sequence number. Who
sent it is not in it: the connection says that, by its certificate.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Self

from mycoproxy.errors import MycoError

MOST_PEERS: Final = 1024
"""Peer nodes of one move."""

KEY: Final = 32
"""Bytes of a key and of a lock (SHA-256)."""

_NODE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252})")  # RFC 1123, and _
_JOURNAL = re.compile(r"[0-9a-f]{16}")
_LARGEST_NUMBER = 2**63 - 1


class MessageError(MycoError):
    """What came from the wire, or out of a journal, is not what it should be."""


def lock_of(key: bytes) -> bytes:
    """What is told beforehand, so that nobody but who has ``key`` can say what it stands for."""
    return hashlib.sha256(key).digest()


@dataclass(frozen=True, slots=True, order=True)
class MoveId:
    """One move, the same on every node and in every log.

    ``journal`` is the identity of the source's journal directory: a source that lost its journal
    can tell that it does not know, which is not the same as "never decided". ``number`` only grows
    within one journal.
    """

    source: str
    journal: str
    number: int

    def __str__(self) -> str:
        return f"{self.source}:{self.journal}:{self.number}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The inverse of ``str``. Raises ``MessageError``."""
        source, _, rest = text.partition(":")
        journal, _, number = rest.partition(":")
        if not (number.isascii() and number.isdigit() and len(number) <= 19):
            raise MessageError(f"a move is named source:journal:number, not {text!r:.80}")
        return cls.from_plain([source, journal, int(number)])

    def to_plain(self) -> list[Any]:
        """For msgpack."""
        return [self.source, self.journal, self.number]

    @classmethod
    def from_plain(cls, plain: object) -> Self:
        """Raises ``MessageError``."""
        if not isinstance(plain, list | tuple) or len(plain) != 3:
            raise _wrong("move", "[source, journal, number]", plain)
        journal, number = plain[1:]
        if not isinstance(journal, str) or not _JOURNAL.fullmatch(journal):
            raise _wrong("journal", "16 hexadecimal digits", journal)
        return cls(_node(plain[0]), journal, _number(number))


@dataclass(frozen=True, slots=True)
class Plan:
    """Who takes part in a move: what does not change while it goes on, but for more peers.

    The locks are those of the source's two keys. A decision that comes with its key is the
    source's, whoever passes it on.
    """

    move: MoveId
    target: str
    peers: tuple[str, ...]
    commit_lock: bytes
    abort_lock: bytes

    @property
    def participants(self) -> tuple[str, ...]:
        """All but the source."""
        return (self.target, *self.peers)

    def to_plain(self) -> dict[str, Any]:
        """For msgpack."""
        return _fields_to_plain(self)

    @classmethod
    def from_plain(cls, plain: object) -> Self:
        """Raises ``MessageError``."""
        plan = cls(**_fields_from_plain(cls, plain))
        everybody = (plan.move.source, *plan.participants)
        if len(set(everybody)) != len(everybody):
            raise _wrong("peers", "every node once", everybody)
        return plan


@dataclass(frozen=True, slots=True)
class Message:
    """About one move."""

    move: MoveId


@dataclass(frozen=True, slots=True)
class Prepare(Message):
    """Source to participant: take part. Meant for one life of the receiving agent only."""

    plan: Plan
    life: int


@dataclass(frozen=True, slots=True)
class Vote(Message):
    """Participant to source: prepared (and cannot go back alone any more), or not and never.

    A yes is repeated until a decision comes: it is how a participant in doubt asks its source.
    """

    yes: bool


@dataclass(frozen=True, slots=True)
class Inquiry(Message):
    """Participant to participant, or to the source before having voted: what do you know?"""


@dataclass(frozen=True, slots=True)
class Undecided(Message):
    """Answer: nothing yet, ask again."""


@dataclass(frozen=True, slots=True)
class Lost(Message):
    """Answer: no record here of a move that should have one. Nothing follows from it."""


@dataclass(frozen=True, slots=True)
class Commit(Message):
    """The source's decision: from now on only the target may run. Passed on by anybody."""

    key: bytes


@dataclass(frozen=True, slots=True)
class Abort(Message):
    """The source's decision: the source runs. Passed on by who has the key (else it is empty)."""

    key: bytes


@dataclass(frozen=True, slots=True)
class Live(Message):
    """Target to source: the copy has been let go."""


@dataclass(frozen=True, slots=True)
class Dead(Message):
    """Target to source: the copy never ran and never will."""


@dataclass(frozen=True, slots=True)
class Finish(Message):
    """Source or target to peer: the copy lives, what was re-homed stays."""


@dataclass(frozen=True, slots=True)
class Finished(Message):
    """Peer to source: done with the move."""


@dataclass(frozen=True, slots=True)
class Undone(Message):
    """Participant to source: nothing of the move is left here, nor will be."""


@dataclass(frozen=True, slots=True)
class Closed(Message):
    """Source to target: everybody is done, the record of being live is not needed any more."""


_KINDS: dict[str, type[Message]] = {
    kind.__name__.lower(): kind
    for kind in (
        Prepare,
        Vote,
        Inquiry,
        Undecided,
        Lost,
        Commit,
        Abort,
        Live,
        Dead,
        Finish,
        Finished,
        Undone,
        Closed,
    )
}


def message_to_plain(message: Message) -> dict[str, Any]:
    """A dict of str, int, bool, bytes, list and dict, for msgpack."""
    return {"kind": type(message).__name__.lower(), **_fields_to_plain(message)}


def message_from_plain(plain: object) -> Message:
    """The inverse. Raises ``MessageError`` for everything that ``message_to_plain`` cannot make."""
    if not isinstance(plain, Mapping) or not isinstance(kind := plain.get("kind"), str):
        raise _wrong("message", "a map with its kind", plain)
    if kind not in _KINDS:
        raise _wrong("kind", f"one of {', '.join(_KINDS)}", kind)
    rest = {name: value for name, value in plain.items() if name != "kind"}
    message = _KINDS[kind](**_fields_from_plain(_KINDS[kind], rest))
    if isinstance(message, Prepare) and message.plan.move != message.move:
        raise _wrong("plan", f"that of {message.move}", str(message.plan.move))
    if isinstance(message, Commit) and not message.key:
        raise _wrong("key", f"{KEY} bytes", message.key)
    return message


def _wrong(name: str, wanted: str, found: object) -> MessageError:
    return MessageError(f"{name}: {wanted} wanted, {found!r:.80} found")


def _node(plain: object) -> str:
    if not isinstance(plain, str) or not _NODE.fullmatch(plain):
        raise _wrong("node", "the name of a node", plain)
    return plain


def _number(plain: object) -> int:
    if not isinstance(plain, int) or isinstance(plain, bool) or not 0 <= plain <= _LARGEST_NUMBER:
        raise _wrong("number", "0 to 2^63 - 1", plain)
    return plain


def _nodes(plain: object) -> tuple[str, ...]:
    if not isinstance(plain, list | tuple) or len(plain) > MOST_PEERS:
        raise _wrong("peers", f"a list of at most {MOST_PEERS} nodes", plain)
    return tuple(map(_node, plain))


def _key(plain: object) -> bytes:
    if not isinstance(plain, bytes) or len(plain) not in (0, KEY):
        raise _wrong("key", f"{KEY} bytes or none", plain)
    return plain


def _lock(plain: object) -> bytes:
    if not isinstance(plain, bytes) or len(plain) != KEY:
        raise _wrong("lock", f"{KEY} bytes", plain)
    return plain


def _bool(plain: object) -> bool:
    if not isinstance(plain, bool):
        raise _wrong("yes", "true or false", plain)
    return plain


_READERS: dict[str, Callable[[object], Any]] = {
    "move": MoveId.from_plain,
    "plan": Plan.from_plain,
    "target": _node,
    "peers": _nodes,
    "commit_lock": _lock,
    "abort_lock": _lock,
    "life": _number,
    "yes": _bool,
    "key": _key,
}


def _fields_to_plain(value: Message | Plan) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for field in fields(value):
        item = getattr(value, field.name)
        if isinstance(item, MoveId | Plan):
            item = item.to_plain()
        plain[field.name] = list(item) if isinstance(item, tuple) else item
    return plain


def _fields_from_plain(kind: type[Message] | type[Plan], plain: object) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    if not isinstance(plain, Mapping) or set(plain) != names:
        found = sorted(map(str, plain)) if isinstance(plain, Mapping) else plain
        raise _wrong(kind.__name__.lower(), f"the fields {', '.join(sorted(names))}", found)
    return {name: _READERS[name](plain[name]) for name in names}
