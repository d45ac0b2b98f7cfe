"""The messages of the protocol: what is in each frame, and the check that it is just that.

A frame is the array ``[kind, number, field, ...]``. A message is the tuple of its fields; the
kinds are the numbers in ``KINDS``. docs/peer-protocol.md explains what each is for.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from mycoproxy.peering.errors import ProtocolError
from mycoproxy.peering.limits import (
    LARGEST_ID,
    LARGEST_WINDOW,
    LONGEST_DEADLINE_MS,
    LONGEST_MESSAGE,
    LONGEST_WORD,
)


class Hello(NamedTuple):
    """The first frame of either side; the only one without a number (it is 0)."""

    fields: dict[str, Any]


class Request(NamedTuple):
    """Client: do this. ``body``: DATA follow."""

    id: int
    method: str
    deadline_ms: int
    args: dict[str, Any]
    body: bool


class Reply(NamedTuple):
    """Server: it is done. ``body``: DATA follow."""

    id: int
    result: dict[str, Any]
    body: bool


class Failure(NamedTuple):
    """Server: it is not done, or the reply's body breaks off."""

    id: int
    code: str
    message: str


class Data(NamedTuple):
    """Either: the next bytes of a body, and whether they are its last."""

    id: int
    data: bytes
    last: bool


class Credit(NamedTuple):
    """Either: so many bytes more of the body may be sent."""

    id: int
    size: int


class Cancel(NamedTuple):
    """Client: stop, the reply is not wanted; no more DATA of the request's body come."""

    id: int


class Ping(NamedTuple):
    """Either: are you there?"""


class Pong(NamedTuple):
    """Either: yes."""


class Goodbye(NamedTuple):
    """Either: nothing new from now on. ``last``: the highest id that a server has taken.

    ``code`` is empty if all is well, else the word for what is not.
    """

    last: int
    code: str
    message: str


Message = Hello | Request | Reply | Failure | Data | Credit | Cancel | Ping | Pong | Goodbye

KINDS: Final[tuple[type[Any], ...]] = (
    Hello,
    Request,
    Reply,
    Failure,
    Data,
    Credit,
    Cancel,
    Ping,
    Pong,
    Goodbye,
)
"""The place of a class is its kind on the wire."""

NUMBERS: Final[Mapping[type[Any], int]] = {kind: number for number, kind in enumerate(KINDS)}


def _whole(most: int, least: int = 1) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


def _text(most: int, least: int = 1) -> Callable[[Any], bool]:
    return lambda value: type(value) is str and least <= len(value) <= most


_id = _whole(LARGEST_ID)


def _map(value: object) -> bool:
    return type(value) is dict


def _flag(value: object) -> bool:
    return type(value) is bool


def _bytes(value: object) -> bool:
    return type(value) is bytes


_CHECKS: Final[tuple[tuple[Callable[[Any], bool], ...], ...]] = (
    (_map,),
    (_id, _text(LONGEST_WORD), _whole(LONGEST_DEADLINE_MS), _map, _flag),
    (_id, _map, _flag),
    (_id, _text(LONGEST_WORD), _text(LONGEST_MESSAGE, 0)),
    (_id, _bytes, _flag),
    (_id, _whole(LARGEST_WINDOW)),
    (_id,),
    (),
    (),
    (_whole(LARGEST_ID, 0), _text(LONGEST_WORD, 0), _text(LONGEST_MESSAGE, 0)),
)


def parse(value: object) -> tuple[int, Message]:
    """(the frame's number, its message). Raises ``ProtocolError``, naming the field."""
    if type(value) is not list or len(value) < 2:
        raise ProtocolError("a frame that is no array of a kind, a number and fields")
    kind, number, *fields = value
    if type(kind) is not int or not 0 <= kind < len(KINDS):
        raise ProtocolError(f"frame of kind {kind!r:.20}; 0 to {len(KINDS) - 1} are known")
    if type(number) is not int or number < 0:
        raise ProtocolError(f"frame number {number!r:.20}")
    checks, message = _CHECKS[kind], KINDS[kind]
    if len(fields) != len(checks):
        raise ProtocolError(f"{message.__name__} of {len(fields)} fields; it has {len(checks)}")
    for check, field, name in zip(checks, fields, message._fields, strict=True):
        if not check(field):
            raise ProtocolError(f"{message.__name__}: {name} is {field!r:.40}")
    made: Message = message(*fields)
    return number, made


def as_value(number: int, message: Message) -> list[Any]:
    """What goes into the frame."""
    return [NUMBERS[type(message)], number, *message]
