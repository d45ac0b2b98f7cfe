"""One link as a state machine without I/O: bytes in, events out; acts in, bytes out.

The two rules:

* Whatever is not expressly allowed ends the link: a frame out of its number, an id that is not
  there, a message in the wrong role or state (``exchange.TABLE``), a body beyond its credit.
* Nothing that the other side sends makes this side hold more than ``LinkLimits`` says: bodies are
  bounded by credit and requests by their number. What is answered leaves that bound: so a driver
  must not answer, nor pong, while the other side takes nothing of what is sent (``link.py``).

Two races are no errors, because they are in the nature of a link: CREDIT and CANCEL may cross the
message that ended their exchange. An exchange that the server ends while the client is still
sending its body is kept until the client's last DATA or CANCEL; what comes of it is dropped.
"""

import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final

from mycoproxy.peering import frames
from mycoproxy.peering.errors import FrameError, HandshakeError, ProtocolError
from mycoproxy.peering.exchange import Exchange, Step
from mycoproxy.peering.hello import Agreement, Introduction, Role, agree
from mycoproxy.peering.limits import LARGEST_HELLO, LONGEST_MESSAGE, LONGEST_WORD
from mycoproxy.peering.messages import (
    NUMBERS,
    Cancel,
    Credit,
    Data,
    Failure,
    Goodbye,
    Hello,
    Message,
    Ping,
    Pong,
    Reply,
    Request,
    as_value,
    parse,
)

Event = Agreement | Message

_DATA: Final = NUMBERS[Data]
_DATA_HEAD: Final = struct.Struct(">IBBBQBQBI")
_TRUE, _FALSE = b"\xc3", b"\xc2"


class LinkProtocol:
    """One side of one link. ``peer`` is the node that the other side's certificate names."""

    def __init__(self, role: Role, introduction: Introduction, peer: str) -> None:
        self.role = role
        self.peer = peer
        self.agreement: Agreement | None = None
        self._introduction = introduction
        self._decoder = frames.FrameDecoder(largest=LARGEST_HELLO)
        self._exchanges: dict[int, Exchange] = {}
        self._latest = 0  # the highest id so far
        self._taken: int | None = None  # server: the highest one taken, once goodbye is said
        self._leaving = False
        self._peer_leaving = False
        self._pinged = False
        self._sending = 0
        self._receiving = 0
        self._out: list[bytes | memoryview] = []
        self.frames_in = 0
        self.frames_out = 0
        if role is Role.CLIENT:
            self._send(Hello(introduction.fields()))

    # What this side knows.

    @property
    def open(self) -> int:
        """Exchanges that are not over."""
        return len(self._exchanges)

    @property
    def may_request(self) -> bool:
        """A request can be sent now."""
        return (
            self.agreement is not None
            and not self._leaving
            and not self._peer_leaving
            and len(self._exchanges) < self.agreement.requests
        )

    @property
    def leaving(self) -> bool:
        """One of the two sides has said goodbye."""
        return self._leaving or self._peer_leaving

    def may_send(self, request: int) -> int:
        """Bytes of this side's body that the other side takes now."""
        exchange = self._exchanges.get(request)
        return exchange.may_send if exchange is not None and exchange.sending else 0

    def is_sending(self, request: int) -> bool:
        """This side's body of that exchange is still to be sent."""
        exchange = self._exchanges.get(request)
        return exchange is not None and exchange.sending

    def is_unanswered(self, request: int) -> bool:
        """The exchange still waits for the end of the reply."""
        exchange = self._exchanges.get(request)
        return exchange is not None and exchange.unanswered

    # Acts of this side. ``ValueError``: not now, a bug of the caller.

    def request(self, method: str, deadline_ms: int, args: Mapping[str, Any], *, body: bool) -> int:
        """Send a request; its id. Raises ``FrameError`` if the arguments do not fit a frame."""
        agreement = self._agreed(Role.CLIENT)
        if not self.may_request:
            raise ValueError("no request can be sent now")
        request = self._latest + 1
        self._send(Request(request, method, deadline_ms, dict(args), body))
        self._latest = request
        self._exchanges[request] = Exchange(
            client=True,
            body=body,
            window=self._introduction.limits.window,
            may_send=agreement.window,
        )
        return request

    def reply(self, request: int, result: Mapping[str, Any], *, body: bool) -> None:
        """Answer. Raises ``FrameError``, and sends nothing, if the result does not fit a frame."""
        self._agreed(Role.SERVER)
        message = Reply(request, dict(result), body)
        encoded = frames.encode(as_value(self._sending, message))
        self._exchanges[request].send(Step.REPLY_WITH_BODY if body else Step.REPLY)
        self._append(encoded)
        self._settle(request)

    def fail(self, request: int, code: str, message: str) -> None:
        """Answer that it is not done, or break off the reply's body."""
        self._agreed(Role.SERVER)
        self._exchanges[request].send(Step.FAILURE)
        self._send(Failure(request, _word(code), message[:LONGEST_MESSAGE]))
        self._settle(request)

    def data(self, request: int, data: bytes | memoryview, *, last: bool) -> None:
        """Send the next bytes of this side's body, within the credit (``may_send``)."""
        if not data and not last:
            return
        exchange = self._exchanges[request]
        exchange.spend(len(data))
        exchange.send(Step.LAST_DATA if last else Step.DATA)
        # Put together by hand, in the widest forms: it spares the check and a copy of the body.
        size = _DATA_HEAD.size - 4 + len(data) + 1
        head = (size, 0x95, _DATA, 0xCF, self._sending, 0xCF, request, 0xC6, len(data))
        self._append(_DATA_HEAD.pack(*head), data, _TRUE if last else _FALSE)
        self._settle(request)

    def cancel(self, request: int) -> None:
        """The reply is not wanted any more; the server still ends the exchange."""
        self._agreed(Role.CLIENT)
        exchange = self._exchanges.get(request)
        if exchange is not None:
            exchange.send(Step.CANCEL)
            self._send(Cancel(request))
            self._settle(request)

    def consumed(self, request: int, size: int) -> None:
        """So many bytes of the other side's body have been read; gives credit for them."""
        exchange = self._exchanges.get(request)
        if exchange is not None and (given := exchange.consumed(size)):
            self._send(Credit(request, given))

    def ping(self) -> None:
        """Ask for a sign of life, unless that has been asked already."""
        if self.agreement is not None and not self._pinged:
            self._pinged = True
            self._send(Ping())

    def pong(self) -> None:
        """Answer a ping. To be called when the other side takes what is sent, not before."""
        self._send(Pong())

    def goodbye(self, code: str = "", message: str = "") -> None:
        """Nothing new from this side: no requests, or none taken. What is open goes on.

        Before the hellos it stands in the place of the server's, and says why there is none; a
        client has nothing to say there.
        """
        if self.agreement is None and self.role is Role.CLIENT:
            return
        if self._taken is None:
            self._taken = self._latest if self.role is Role.SERVER else 0
        self._leaving = True
        self._send(Goodbye(self._taken, _word(code, least=0), message[:LONGEST_MESSAGE]))

    def to_send(self) -> bytes:
        """What has to go to the other side now; each byte is handed out once."""
        parts, self._out = self._out, []
        return parts[0] if len(parts) == 1 and type(parts[0]) is bytes else b"".join(parts)

    # What the other side does.

    def receive(self, data: bytes | memoryview) -> Iterator[Event]:
        """The events in the bytes that came. The iterator must be used up.

        Raises ``ProtocolError`` or ``HandshakeError``: the link is over; what ``to_send`` has then
        tells the other side why.
        """
        try:
            for value in self._decoder.feed(data):
                number, message = parse(value)
                if number != self._receiving:
                    raise ProtocolError(f"frame {number} came; {self._receiving} was due")
                self.frames_in += 1
                self._receiving += 1
                event = self._received(message)
                if event is not None:
                    yield event
        except HandshakeError as error:
            self.goodbye(error.reason, str(error))
            raise
        except (FrameError, ProtocolError) as error:
            self.goodbye("protocol", str(error))
            raise ProtocolError(f"{self.peer}: {error}") from error

    def _received(self, message: Message) -> Event | None:  # noqa: PLR0911
        if self.agreement is None and type(message) not in (Hello, Goodbye):
            raise ProtocolError(f"{type(message).__name__} before the hello")
        match message:
            case Data():
                return self._received_data(message)
            case Request():
                return self._received_request(message)
            case Reply() | Failure():
                return self._received_answer(message)
            case Credit():
                return self._received_credit(message)
            case Cancel():
                return self._received_cancel(message)
            case Hello():
                return self._received_hello(message)
            case Goodbye():
                return self._received_goodbye(message)
            case Pong():
                if not self._pinged:
                    raise ProtocolError("Pong without a ping")
                self._pinged = False
                return message
            case Ping():
                return message

    def _received_hello(self, message: Hello) -> Event:
        if self.agreement is not None:
            raise ProtocolError("a second hello")
        agreement = agree(self.role, self._introduction, message.fields, self.peer)
        if self.role is Role.SERVER:
            self._send(Hello(self._introduction.fields()))
        self.agreement = agreement
        self._sending, self._receiving = agreement.sending, agreement.receiving
        self._decoder.largest = frames.LARGEST_FRAME
        return agreement

    def _received_request(self, message: Request) -> Event | None:
        self._must_be(Role.SERVER, message)
        if self._peer_leaving:
            raise ProtocolError("Request after the goodbye")
        if message.id != self._latest + 1:
            raise ProtocolError(f"request {message.id} came; {self._latest + 1} was due")
        self._latest = message.id
        if self._taken is not None:
            return None  # it crossed the goodbye, which says that it is not taken
        limits, agreement = self._introduction.limits, self._agreed(Role.SERVER)
        if len(self._exchanges) >= limits.requests:
            raise ProtocolError(f"request {message.id}: {limits.requests} are open already")
        self._exchanges[message.id] = Exchange(
            client=False, body=message.body, window=limits.window, may_send=agreement.window
        )
        return message

    def _received_answer(self, message: Reply | Failure) -> Event | None:
        self._must_be(Role.CLIENT, message)
        exchange = self._exchange(message.id, message)
        if exchange is None:
            raise ProtocolError(f"{type(message).__name__} for {message.id}, which is not open")
        if isinstance(message, Failure):
            exchange.receive(Step.FAILURE)
        else:
            exchange.receive(Step.REPLY_WITH_BODY if message.body else Step.REPLY)
        return self._delivered(message, exchange)

    def _received_data(self, message: Data) -> Event | None:
        if not message.data and not message.last:
            raise ProtocolError("empty Data that is not the last")
        exchange = self._exchange(message.id, message)
        if exchange is None:
            if self._untaken(message.id):
                return None
            raise ProtocolError(f"Data for {message.id}, which is not open")
        exchange.take(len(message.data))
        exchange.receive(Step.LAST_DATA if message.last else Step.DATA)
        return self._delivered(message, exchange)

    def _delivered(self, message: Reply | Failure | Data, exchange: Exchange) -> Event | None:
        wanted = exchange.wanted
        if self.role is Role.CLIENT and not exchange.unanswered and exchange.asking:
            # The server has ended it and wants no more of the body: so it is told the body's end.
            exchange.send(Step.CANCEL)
            self._send(Cancel(message.id))
        self._settle(message.id)
        return message if wanted else None

    def _received_credit(self, message: Credit) -> Event | None:
        exchange = self._exchange(message.id, message)
        if exchange is None:
            return None  # it crossed the end of the exchange
        exchange.credit(message.size)
        return message if exchange.sending else None

    def _received_cancel(self, message: Cancel) -> Event | None:
        self._must_be(Role.SERVER, message)
        exchange = self._exchange(message.id, message)
        if exchange is None:
            return None  # it crossed the end of the exchange
        exchange.receive(Step.CANCEL)
        self._settle(message.id)
        return message if exchange.unanswered else None

    def _received_goodbye(self, message: Goodbye) -> Event:
        if self.role is Role.CLIENT:
            if message.last > self._latest:
                raise ProtocolError(f"Goodbye with {message.last}; {self._latest} was the latest")
            for request in [request for request in self._exchanges if request > message.last]:
                del self._exchanges[request]
        self._peer_leaving = True
        return message

    # Ids.

    def _exchange(self, request: int, message: Message) -> Exchange | None:
        """The open exchange of that id, none if it is over; an id that never was is an error."""
        if request > self._latest:
            raise ProtocolError(f"{type(message).__name__} for {request}, which never was")
        return self._exchanges.get(request)

    def _untaken(self, request: int) -> bool:
        """A request that crossed the server's goodbye."""
        return self._taken is not None and self.role is Role.SERVER and request > self._taken

    def _settle(self, request: int) -> None:
        if self._exchanges[request].over:
            del self._exchanges[request]

    def _must_be(self, role: Role, message: Message) -> None:
        if self.role is not role:
            raise ProtocolError(f"a {self.role.other.value} does not send {type(message).__name__}")

    def _agreed(self, role: Role) -> Agreement:
        if self.agreement is None or self.role is not role:
            raise ValueError(f"only a {role.value} after the hellos may do that")
        return self.agreement

    # Out.

    def _send(self, message: Message) -> None:
        self._append(frames.encode(as_value(self._sending, message)))

    def _append(self, *parts: bytes | memoryview) -> None:
        self._out += parts
        self._sending += 1
        self.frames_out += 1


def _word(code: str, *, least: int = 1) -> str:
    return code[:LONGEST_WORD] if len(code) >= least else "failed"
