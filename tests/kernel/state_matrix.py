"""The state matrix as data: what a TCP socket can be moved in, and with what in its queues.

``TABLE`` has a row for each state in which a descriptor can be; ``cells`` combines the rows with
queues, options, address families, new addresses, and ways to go on. The full product would be
thousands: each row is combined with each content of its queues that TCP allows, each of those with
each family and each of the options, and over all rows every option meets every family. So every two
choices meet.

``test_tcp_states`` plays every cell, and ``scripts/tcp_states_docs.py`` writes the documentation;
so this file needs neither root nor a lab.
"""

import errno
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from mycoproxy.tcp import TcpConnectionState as S


class Step(Enum):
    """What leads a connection into a state. The owner has the socket that is moved."""

    CONNECTED = "the peer connects, both talk"
    OWNER_BINDS = "the owner binds"
    PEER_DEAF = "the peer hears nothing any more"
    OWNER_DEAF = "the owner hears nothing any more"
    OWNER_CONNECTS = "the owner connects"
    NOBODY_LISTENS = "where it connects to, nobody listens"
    PEER_CLOSES = "the peer closes its side"
    OWNER_CLOSES = "the owner closes its side"
    OWNER_STOPS_READING = "the owner shuts down reading"
    PEER_RESETS = "the peer resets"
    OWNER_WAITS_IN_VAIN = "what the owner sends is not acknowledged before its TCP_USER_TIMEOUT"


class Queues(Enum):
    """What is in the queues when the connection is captured."""

    EMPTY = "empty"
    UNREAD = "unread bytes"
    UNACKNOWLEDGED = "sent, not acknowledged"
    UNSENT = "unsent, the peer's window closed"
    FULL = "both full to the last byte"
    UNREAD_FULL = "unread bytes, full to the last byte"


class Options(Enum):
    """What was negotiated, or what the owner has set."""

    ALL = "timestamps, SACK, window scaling"
    NONE = "none of them"
    NO_TIMESTAMPS = "all but timestamps"
    NO_SCALING = "all but window scaling"
    SMALL_MSS = "all, with segments of 300 bytes (TCP_MAXSEG)"
    LOCKED = "all, and the owner has set its buffers (SO_RCVBUF, SO_SNDBUF)"


class Address(Enum):
    """Which ends have another address after the move."""

    KEPT = "kept"
    LOCAL = "with one new address"
    BOTH = "with two"


class Way(Enum):
    """What is done with the captured connection."""

    MOVED = "moved"
    PEEKED = "looked at"
    ROLLED_BACK = "taken back"


FAMILIES: Final = ("v4", "v6", "mapped")

SENDS: Final = (Queues.UNACKNOWLEDGED, Queues.UNSENT, Queues.FULL)
_NOTHING: Final = (Queues.UNREAD, *SENDS, Queues.UNREAD_FULL)


@dataclass(frozen=True)
class Row:
    """A state, how the lab gets into it, and what becomes of it.

    ``error`` is the pending errno, ``becomes`` what the owner reads instead after the move (the
    kernel cannot be made to give the same). ``cannot`` says why some contents of the queues cannot
    be. ``elsewhere`` names the test, if it is not ``test_tcp_states``.
    """

    name: str
    state: S
    meaning: str
    sees: str
    again: str
    steps: tuple[Step, ...] = ()
    cannot: Mapping[Queues, str] = field(default_factory=dict)
    options: tuple[Options, ...] = tuple(Options)
    error: int = 0
    becomes: int = 0
    elsewhere: str = ""

    def __str__(self) -> str:
        return self.name.replace(", ", "-").replace(" ", "_")

    def queues(self) -> list[Queues]:
        """What can be in the queues."""
        return [queues for queues in Queues if queues not in self.cannot]

    @property
    def established(self) -> bool:
        """The connection exists: either end knows the other's sequence numbers."""
        return self.state not in (S.CLOSE, S.SYN_SENT, S.LISTEN, S.SYN_RECV)

    @property
    def owner_closed(self) -> bool:
        return Step.OWNER_CLOSES in self.steps

    @property
    def peer_closed(self) -> bool:
        return Step.PEER_CLOSES in self.steps


def _because(reason: str, *queues: Queues) -> dict[Queues, str]:
    return dict.fromkeys(queues, reason)


_FULL_IS_BOTH: Final = _because(
    "there is a send queue too, and both are filled", Queues.UNREAD_FULL
)
_NO_SEND_QUEUE: Final = _because("the FIN is acknowledged, and so is all before it", *SENDS)
_ENDED: Final = _because("the end of a connection empties its send queue", *SENDS)
_NEVER: Final = _because("there is no connection yet", *_NOTHING)
_FAILED: Final = _because("there was no connection", *_NOTHING)
_ASKED_FOR: Final = (Options.ALL, Options.SMALL_MSS, Options.LOCKED)
_OWNERS: Final = (Options.ALL, Options.LOCKED)
_CONNECTS_AGAIN: Final = "`connect` from the new place, with a new sequence number"
_QUEUE_TEST: Final = "test_tcp_accept_queue"

TABLE: Final = (
    Row(
        "ESTABLISHED",
        S.ESTABLISHED,
        "both sides may send",
        "nothing",
        "repair mode alone",
        (Step.CONNECTED,),
        _FULL_IS_BOTH,
    ),
    Row(
        "ESTABLISHED, reading shut down",
        S.ESTABLISHED,
        "the owner said that it will not read (`SHUT_RD`); the peer does not know",
        "`read() == 0` when the queue is empty, `EPOLLRDHUP`",
        "`shutdown(SHUT_RD)`",
        (Step.CONNECTED, Step.OWNER_STOPS_READING),
        _FULL_IS_BOTH,
        (Options.ALL, Options.NONE, Options.LOCKED),
    ),
    Row(
        "CLOSE_WAIT",
        S.CLOSE_WAIT,
        "the peer has closed its side",
        "`read() == 0` after the last byte, `EPOLLRDHUP`; may write",
        "the peer's FIN is played",
        (Step.CONNECTED, Step.PEER_CLOSES),
        _FULL_IS_BOTH,
    ),
    Row(
        "FIN_WAIT1",
        S.FIN_WAIT1,
        "the owner has closed its side, the peer has not acknowledged it",
        "goes on reading; `EPIPE` when it writes",
        "`shutdown(SHUT_WR)`, which sends the FIN (again)",
        (Step.CONNECTED, Step.PEER_DEAF, Step.OWNER_CLOSES),
        _FULL_IS_BOTH,
    ),
    Row(
        "FIN_WAIT2",
        S.FIN_WAIT2,
        "the owner has closed its side, the peer knows and has not closed its own",
        "goes on reading; `EPIPE` when it writes",
        "`shutdown(SHUT_WR)` in repair mode, then the peer's acknowledgement is played",
        (Step.CONNECTED, Step.OWNER_CLOSES),
        _NO_SEND_QUEUE,
    ),
    Row(
        "CLOSING",
        S.CLOSING,
        "both have closed at the same time; the peer has not acknowledged the owner's FIN",
        "`read() == 0` after the last byte, `EPOLLHUP`; `EPIPE` when it writes",
        "`shutdown(SHUT_WR)`, then the peer's FIN is played",
        (Step.CONNECTED, Step.PEER_DEAF, Step.OWNER_CLOSES, Step.PEER_CLOSES),
        _FULL_IS_BOTH,
    ),
    Row(
        "LAST_ACK",
        S.LAST_ACK,
        "the peer has closed, then the owner; the peer has not acknowledged that",
        "`read() == 0` after the last byte, `EPOLLHUP`; `EPIPE` when it writes",
        "the peer's FIN is played, then `shutdown(SHUT_WR)`",
        (Step.CONNECTED, Step.PEER_CLOSES, Step.PEER_DEAF, Step.OWNER_CLOSES),
        _FULL_IS_BOTH,
    ),
    Row(
        "SYN_SENT",
        S.SYN_SENT,
        "the owner connects; the peer has not heard of it",
        "`connect` goes on, and succeeds",
        _CONNECTS_AGAIN,
        (Step.PEER_DEAF, Step.OWNER_CONNECTS),
        _NEVER,
        _ASKED_FOR,
    ),
    Row(
        "SYN_SENT, answer lost",
        S.SYN_SENT,
        "the owner connects; the peer has answered, and the answer is lost",
        "`connect` goes on, and succeeds; the peer's kernel drops the first attempt on the way",
        _CONNECTS_AGAIN,
        (Step.OWNER_DEAF, Step.OWNER_CONNECTS),
        _NEVER,
        (Options.ALL,),
    ),
    Row(
        "SYN_SENT, will be refused",
        S.SYN_SENT,
        "the owner connects to where nobody listens, and has not heard of that",
        "`ECONNREFUSED` once",
        _CONNECTS_AGAIN,
        (Step.PEER_DEAF, Step.NOBODY_LISTENS, Step.OWNER_CONNECTS),
        _NEVER,
        (Options.ALL,),
    ),
    Row(
        "CLOSE, new",
        S.CLOSE,
        "never bound, never connected",
        "`ENOTCONN` when it reads; may connect",
        "nothing has to be done",
        (),
        _NEVER,
        _OWNERS,
    ),
    Row(
        "CLOSE, bound",
        S.CLOSE,
        "bound, never connected",
        "`ENOTCONN` when it reads; its name; may connect",
        "`bind`",
        (Step.OWNER_BINDS,),
        _NEVER,
        _OWNERS,
    ),
    Row(
        "CLOSE, ended",
        S.CLOSE,
        "both sides have closed, and know it",
        "`read() == 0` after the last byte; `EPIPE` when it writes",
        "connected in repair mode to its own address, a reset is played, the error cleared",
        (Step.CONNECTED, Step.PEER_CLOSES, Step.OWNER_CLOSES),
        _ENDED,
        _OWNERS,
    ),
    Row(
        "CLOSE, reset",
        S.CLOSE,
        "the peer has reset the connection",
        "after the last byte `ECONNRESET` once, then `read() == 0`",
        "connected in repair mode to its own address, a reset is played",
        (Step.CONNECTED, Step.PEER_RESETS),
        _ENDED,
        _OWNERS,
        errno.ECONNRESET,
    ),
    Row(
        "CLOSE, reset after FIN",
        S.CLOSE,
        "the peer has closed its side, then reset the connection",
        "`read() == 0` after the last byte; `EPIPE` once as `SO_ERROR`",
        "as before, with a FIN before the reset",
        (Step.CONNECTED, Step.PEER_CLOSES, Step.PEER_RESETS),
        _ENDED,
        _OWNERS,
        errno.EPIPE,
    ),
    Row(
        "CLOSE, refused",
        S.CLOSE,
        "the owner connected to where nobody listens",
        "`ECONNREFUSED` once",
        "`connect` to a port of its own at which nobody listens",
        (Step.NOBODY_LISTENS, Step.OWNER_CONNECTS),
        _FAILED,
        _OWNERS,
        errno.ECONNREFUSED,
    ),
    Row(
        "CLOSE, timed out",
        S.CLOSE,
        "the peer has not answered for too long",
        "`ECONNRESET` once instead of `ETIMEDOUT` (reported), then `read() == 0`",
        "as reset: only time could cause the true error",
        (Step.CONNECTED, Step.PEER_DEAF, Step.OWNER_WAITS_IN_VAIN),
        _ENDED,
        (Options.ALL,),
        errno.ETIMEDOUT,
        errno.ECONNRESET,
    ),
    Row(
        "LISTEN",
        S.LISTEN,
        "the owner waits for connections",
        "nothing",
        "`listen` with the same backlog",
        cannot=_NEVER,
        elsewhere=_QUEUE_TEST,
    ),
    Row(
        "accept queue",
        S.ESTABLISHED,
        "complete, not accepted; perhaps with bytes that the peer has sent, perhaps closed by it",
        "`accept` gives it, in order",
        "the handshake is played to the new listener, then what the peer has sent",
        elsewhere=_QUEUE_TEST,
    ),
    Row(
        "SYN_RECV",
        S.SYN_RECV,
        "the handshake is under way; the listener does not know of it",
        "`accept` gives it",
        "completed on the source, then as before; the peer is answered once more",
        elsewhere=_QUEUE_TEST,
    ),
)


@dataclass(frozen=True)
class Cell:
    """One test: all that can be chosen."""

    row: Row
    family: str
    queues: Queues
    options: Options
    address: Address = Address.KEPT
    way: Way = Way.MOVED

    def __str__(self) -> str:
        parts = [str(self.row), self.family, self.queues.name.lower(), self.options.name.lower()]
        if self.address is not Address.KEPT:
            parts.append(f"{self.address.name.lower()}_new")
        if self.way is not Way.MOVED:
            parts.append(self.way.name.lower())
        return "-".join(parts)


def cells() -> Iterator[Cell]:
    """All of them, in the order of the table."""
    rows = [row for row in TABLE if not row.elsewhere]
    yield from _moved(rows)
    yield from _readdressed(rows)
    yield from _stays(rows)


def _moved(rows: list[Row]) -> Iterator[Cell]:
    """Every content of a row's queues with every family and every option.

    Each option with one of the families; which one changes from line to line.
    """
    lines = [(row, queues) for row in rows for queues in row.queues()]
    for turn, (row, queues) in enumerate(lines):
        count = max(len(FAMILIES), len(row.options))
        for number in range(count):
            yield Cell(
                row,
                FAMILIES[(number + turn) % len(FAMILIES)],
                queues,
                row.options[number % len(row.options)],
            )


def _readdressed(rows: list[Row]) -> Iterator[Cell]:
    """Both kinds of new addresses in every state that has a peer, with two contents of queues."""
    turn = itertools.count()
    for row in rows:
        contents = [queues for queues in (Queues.UNREAD, Queues.FULL) if queues in row.queues()]
        for address, queues in itertools.product((Address.LOCAL, Address.BOTH), contents):
            if row.established:
                family = FAMILIES[next(turn) % len(FAMILIES)]
                yield Cell(row, family, queues, Options.ALL, address)


def _stays(rows: list[Row]) -> Iterator[Cell]:
    """A look at it and a rollback: the least and the most that the queues can hold.

    Once in SYN_SENT: it takes a second, until the source sends its SYN again.
    """
    turn = itertools.count()
    for row in rows:
        if row.state is S.SYN_SENT and row.name != row.state.name:
            continue
        possible = row.queues()
        for queues in dict.fromkeys((possible[0], possible[-1])):
            for way in (Way.PEEKED, Way.ROLLED_BACK):
                family = FAMILIES[next(turn) % len(FAMILIES)]
                yield Cell(row, family, queues, Options.ALL, way=way)
