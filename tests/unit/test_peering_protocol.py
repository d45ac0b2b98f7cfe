"""The state machine of a link, both sides of it in memory: no sockets, no time."""

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mycoproxy.peering.errors import (
    FrameError,
    HandshakeError,
    PeeringError,
    ProtocolError,
)
from mycoproxy.peering.exchange import TABLE, Half, Step
from mycoproxy.peering.frames import FrameDecoder, encode
from mycoproxy.peering.hello import Agreement, Introduction, Role, first_number
from mycoproxy.peering.limits import LinkLimits
from mycoproxy.peering.messages import (
    KINDS,
    Cancel,
    Credit,
    Data,
    Failure,
    Goodbye,
    Hello,
    Ping,
    Pong,
    Reply,
    Request,
    as_value,
)
from mycoproxy.peering.protocol import Event, LinkProtocol

WINDOW = 64 * 1024
LIMITS = LinkLimits(window=WINDOW, requests=3)
CLIENT_NONCE, SERVER_NONCE = b"c" * 16, b"s" * 16


def client(**changes: Any) -> LinkProtocol:
    fields: dict[str, Any] = {
        "node": "a",
        "wanted": "b",
        "limits": LIMITS,
        "nonce": CLIENT_NONCE,
    } | changes
    return LinkProtocol(Role.CLIENT, Introduction(**fields), "b")


def server(**changes: Any) -> LinkProtocol:
    fields: dict[str, Any] = {"node": "b", "limits": LIMITS, "nonce": SERVER_NONCE} | changes
    return LinkProtocol(Role.SERVER, Introduction(**fields), "a")


def carry(source: LinkProtocol, target: LinkProtocol) -> list[Event]:
    return list(target.receive(source.to_send()))


def linked(**changes: Any) -> tuple[LinkProtocol, LinkProtocol]:
    a, b = client(**changes), server(**changes)
    assert isinstance(carry(a, b)[0], Agreement)
    assert isinstance(carry(b, a)[0], Agreement)
    return a, b


def sent(source: LinkProtocol) -> list[Any]:
    """The frames that it sends now, as values."""
    return list(FrameDecoder().feed(source.to_send()))


def give(target: LinkProtocol, *messages: Any, number: int | None = None) -> list[Event]:
    """Feed frames that are numbered rightly, or from ``number`` on."""
    first = target._receiving if number is None else number
    stream = b"".join(encode(as_value(first + i, one)) for i, one in enumerate(messages))
    return list(target.receive(stream))


# The hellos.


def test_both_sides_agree_on_version_and_common_features() -> None:
    a = client(versions=(1, 4), features=frozenset({"x", "y"}))
    b = server(versions=(2, 3), features=frozenset({"y", "z"}))
    (at_server,) = carry(a, b)
    (at_client,) = carry(b, a)
    assert isinstance(at_server, Agreement)
    assert isinstance(at_client, Agreement)
    assert at_server.version == at_client.version == 3
    assert at_server.features == at_client.features == {"y"}
    assert (at_server.peer, at_client.peer) == ("a", "b")
    assert at_server.sending == at_client.receiving != at_client.sending == at_server.receiving


def test_unknown_features_and_fields_are_ignored() -> None:
    b = server(features=frozenset({"known"}))
    fields = Introduction("a", LIMITS, wanted="b", nonce=CLIENT_NONCE).fields()
    fields |= {"features": ["known", "from-the-future"], "another": {"deep": [1]}}
    (agreement,) = give(b, Hello(fields))
    assert isinstance(agreement, Agreement)
    assert agreement.features == {"known"}


def test_no_common_version_is_told_to_the_other_side() -> None:
    a, b = client(versions=(3, 4)), server(versions=(1, 2))
    with pytest.raises(HandshakeError, match="3 to 4") as caught:
        carry(a, b)
    assert caught.value.reason == "version"
    (goodbye,) = carry(b, a)
    assert isinstance(goodbye, Goodbye)
    assert goodbye.code == "version"


def hello(**changes: Any) -> Hello:
    fields = Introduction("a", LIMITS, wanted="b", nonce=CLIENT_NONCE).fields() | changes
    return Hello({name: value for name, value in fields.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"protocol": "http"}, ProtocolError, "protocol is not"),
        ({"protocol": None}, ProtocolError, "protocol is not"),
        ({"node": "other"}, HandshakeError, "certificate of a says hello as 'other'"),
        ({"wanted": "other"}, HandshakeError, "wanted 'other'; this is b"),
        ({"wanted": None}, HandshakeError, "this is b"),
        ({"nonce": b"short"}, ProtocolError, "nonce"),
        ({"nonce": "c" * 16}, ProtocolError, "nonce"),
        ({"nonce": SERVER_NONCE}, ProtocolError, "nonce"),
        ({"versions": [2, 1]}, ProtocolError, "versions"),
        ({"versions": [True, True]}, ProtocolError, "versions"),
        ({"versions": 1}, ProtocolError, "versions"),
        ({"features": ["x"] * 65}, ProtocolError, "features"),
        ({"features": [1]}, ProtocolError, "features"),
        ({"window": 1}, ProtocolError, "window"),
        ({"window": 1 << 40}, ProtocolError, "window"),
        ({"requests": 0}, ProtocolError, "requests"),
        ({"requests": True}, ProtocolError, "requests"),
    ],
)
def test_a_wrong_hello_is_refused(
    changes: dict[str, Any], error: type[PeeringError], message: str
) -> None:
    with pytest.raises(error, match=message):
        give(server(), hello(**changes))


@pytest.mark.parametrize("message", [Request(1, "m", 1, {}, False), Ping(), Data(1, b"x", True)])
def test_nothing_is_taken_before_the_hello(message: Any) -> None:
    with pytest.raises(ProtocolError, match="before the hello"):
        give(server(), message)


def test_a_large_first_frame_is_refused() -> None:
    with pytest.raises(ProtocolError, match="4096"):
        give(server(), hello(extra="x" * 5000))


def test_a_second_hello_ends_the_link() -> None:
    _, b = linked()
    with pytest.raises(ProtocolError, match="second hello"):
        give(b, hello())


# Numbers.


@pytest.mark.parametrize("offset", [-1, 1, 1000])
def test_a_repeated_or_missing_frame_ends_the_link(offset: int) -> None:
    _, b = linked()
    with pytest.raises(ProtocolError, match="was due"):
        give(b, Request(1, "m", 1, {}, False), number=b._receiving + offset)


def test_a_frame_that_is_replayed_on_its_own_link_is_refused() -> None:
    a, b = linked()
    a.request("m", 1000, {}, body=False)
    frame = a.to_send()
    assert len(list(b.receive(frame))) == 1
    with pytest.raises(ProtocolError, match="was due"):
        list(b.receive(frame))


def test_a_frame_of_another_link_is_refused() -> None:
    a, _ = linked()
    a.request("m", 1000, {}, body=False)
    frame = a.to_send()
    later_client, later_server = client(nonce=b"d" * 16), server(nonce=b"t" * 16)
    carry(later_client, later_server)
    with pytest.raises(ProtocolError, match="was due"):
        list(later_server.receive(frame))


def test_a_frame_that_is_sent_back_is_refused() -> None:
    a, _ = linked()
    a.ping()
    with pytest.raises(ProtocolError, match="was due"):
        list(a.receive(a.to_send()))


def test_first_numbers_depend_on_both_nonces_and_the_direction() -> None:
    numbers = {
        first_number(role, one, other)
        for role in Role
        for one in (b"a" * 16, b"b" * 16)
        for other in (b"c" * 16, b"d" * 16)
    }
    assert len(numbers) == 8
    # As docs/peer-protocol.md has it.
    assert first_number(Role.CLIENT, bytes(16), bytes(range(16))) == 0xBCB28FE22BCC
    assert first_number(Role.SERVER, bytes(16), bytes(range(16))) == 0xE8D23E3F00D8


# Exchanges.


def test_a_request_and_its_reply() -> None:
    a, b = linked()
    request = a.request("move.prepare", 1500, {"move": "m"}, body=False)
    assert carry(a, b) == [Request(request, "move.prepare", 1500, {"move": "m"}, False)]
    b.reply(request, {"ready": True}, body=False)
    assert carry(b, a) == [Reply(request, {"ready": True}, False)]
    assert a.open == b.open == 0


def test_bodies_go_both_ways() -> None:
    a, b = linked()
    request = a.request("m", 1, {}, body=True)
    a.data(request, b"one", last=False)
    a.data(request, b"two", last=True)
    assert carry(a, b)[1:] == [Data(request, b"one", False), Data(request, b"two", True)]
    b.reply(request, {}, body=True)
    b.data(request, memoryview(b"three"), last=False)
    b.data(request, b"", last=True)
    assert carry(b, a)[1:] == [Data(request, b"three", False), Data(request, b"", True)]
    assert a.open == b.open == 0


def test_several_exchanges_are_open_at_once_and_end_in_any_order() -> None:
    a, b = linked()
    first, second = (a.request(name, 1, {}, body=False) for name in "xy")
    carry(a, b)
    b.reply(second, {}, body=False)
    b.fail(first, "no", "not now")
    assert carry(b, a) == [Reply(second, {}, False), Failure(first, "no", "not now")]
    assert a.open == b.open == 0


def test_more_requests_than_allowed_are_not_sent_and_not_taken() -> None:
    a, b = linked()
    for _ in range(3):
        a.request("m", 1, {}, body=False)
    assert not a.may_request
    with pytest.raises(ValueError, match="no request"):
        a.request("m", 1, {}, body=False)
    carry(a, b)
    with pytest.raises(ProtocolError, match="3 are open"):
        give(b, Request(4, "m", 1, {}, False))


def test_arguments_that_do_not_fit_are_refused_and_the_link_lives() -> None:
    a, b = linked()
    with pytest.raises(FrameError, match="body"):
        a.request("m", 1, {"x": bytes(300_000)}, body=False)
    request = a.request("m", 1, {}, body=False)
    assert len(carry(a, b)) == 1
    with pytest.raises(FrameError, match="body"):
        b.reply(request, {"x": bytes(300_000)}, body=False)
    b.fail(request, "failed", "too big")
    assert carry(b, a) == [Failure(request, "failed", "too big")]


REQUEST = Request(1, "m", 1000, {}, True)
BARE = Request(1, "m", 1000, {}, False)


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([Request(2, "m", 1, {}, False)], "request 2 came; 1 was due"),
        ([BARE, BARE], "request 1 came; 2 was due"),
        ([Data(1, b"x", True)], "never was"),
        ([Cancel(7)], "never was"),
        ([Credit(7, 1)], "never was"),
        ([BARE, Data(1, b"x", True)], "LAST_DATA when ASKED"),
        ([REQUEST, Data(1, b"x", True), Data(1, b"x", True)], "LAST_DATA when ASKED"),
        ([REQUEST, Cancel(1), Data(1, b"x", False)], "DATA when CANCELLED"),
        ([REQUEST, Cancel(1), Cancel(1)], "CANCEL when CANCELLED"),
        ([REQUEST, Data(1, b"", False)], "empty Data"),
        ([REQUEST, Data(1, bytes(WINDOW), False), Data(1, b"x", False)], "the window is 65536"),
        ([BARE, *[Credit(1, 1 << 30)] * 2], "CREDIT up to"),
        ([Reply(1, {}, False)], "a client does not send Reply"),
        ([Failure(1, "x", "")], "a client does not send Failure"),
        ([Pong()], "Pong without a ping"),
        ([Goodbye(0, "", ""), BARE], "after the goodbye"),
    ],
)
def test_a_server_ends_the_link_of_a_client_that_breaks_the_rules(
    messages: list[Any], error: str
) -> None:
    _, b = linked()
    with pytest.raises(ProtocolError, match=error):
        give(b, *messages)
    kind, _, _, code, message = sent(b)[-1]
    assert KINDS[kind] is Goodbye
    assert code == "protocol"
    assert error in message


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([Reply(2, {}, False)], "never was"),
        ([Reply(1, {}, False), Reply(1, {}, False)], "not open"),
        ([Reply(1, {}, True), Reply(1, {}, True)], "REPLY_WITH_BODY when ANSWERING"),
        ([Data(1, b"x", False)], "DATA when WAITING"),
        ([Failure(1, "x", ""), Data(1, b"x", True)], "not open"),
        ([Reply(1, {}, True), Data(1, bytes(WINDOW + 1), False)], "the window is"),
        ([BARE], "a server does not send Request"),
        ([Cancel(1)], "a server does not send Cancel"),
        ([Goodbye(2, "", "")], "1 was the latest"),
    ],
)
def test_a_client_ends_the_link_of_a_server_that_breaks_the_rules(
    messages: list[Any], error: str
) -> None:
    a, b = linked()
    a.request("m", 1, {}, body=False)
    carry(a, b)
    with pytest.raises(ProtocolError, match=error):
        give(a, *messages)


@pytest.mark.parametrize(
    "value",
    [
        1,
        {},
        [],
        [1],
        [99, 0],
        [-1, 0],
        [True, 0],
        ["1", 0],
        [7, -1],
        [7, True],
        [7, 0, 1],
        [1, 0, 0, "m", 1, {}, False],
        [1, 0, 1, "", 1, {}, False],
        [1, 0, 1, "m" * 65, 1, {}, False],
        [1, 0, 1, "m", 0, {}, False],
        [1, 0, 1, "m", 1.0, {}, False],
        [1, 0, 1, "m", 10**9, {}, False],
        [1, 0, 1, "m", 1, [], False],
        [1, 0, 1, "m", 1, {}, 0],
        [4, 0, 1, "text", True],
        [5, 0, 1, 0],
        [5, 0, 1, -5],
        [9, 0, -1, "", ""],
    ],
)
def test_a_frame_that_is_no_message_ends_the_link(value: Any) -> None:
    _, b = linked()
    if isinstance(value, list) and len(value) > 1 and value[1] == 0:
        value = [value[0], b._receiving, *value[2:]]
    with pytest.raises(ProtocolError):
        list(b.receive(encode(value)))


# Flow control.


def test_credit_is_given_in_halves_as_the_body_is_read() -> None:
    a, b = linked()
    request = a.request("m", 1, {}, body=True)
    a.data(request, bytes(WINDOW), last=False)
    assert a.may_send(request) == 0
    with pytest.raises(ValueError, match="the credit is 0"):
        a.data(request, b"x", last=False)
    carry(a, b)
    b.consumed(request, WINDOW // 2 - 1)
    assert carry(b, a) == []
    b.consumed(request, 1)
    assert carry(b, a) == [Credit(request, WINDOW // 2)]
    assert a.may_send(request) == WINDOW // 2


def test_no_credit_is_given_for_a_body_that_is_complete() -> None:
    a, b = linked()
    request = a.request("m", 1, {}, body=True)
    a.data(request, bytes(WINDOW), last=True)
    carry(a, b)
    b.consumed(request, WINDOW)
    assert sent(b) == []


# Cancelling, and races.


def test_a_cancelled_request_is_ended_by_the_server() -> None:
    a, b = linked()
    request = a.request("m", 1, {}, body=True)
    a.cancel(request)
    assert carry(a, b)[1:] == [Cancel(request)]
    assert a.open == b.open == 1
    b.fail(request, "cancelled", "")
    assert carry(b, a) == []
    assert a.open == b.open == 0


def test_a_cancel_may_cross_the_reply() -> None:
    a, b = linked()
    request = a.request("m", 1, {}, body=False)
    carry(a, b)
    b.reply(request, {}, body=False)
    a.cancel(request)
    assert carry(a, b) == []
    assert carry(b, a) == []
    assert a.open == b.open == 0


def test_credit_may_cross_the_end_of_the_body() -> None:
    a, b = linked()
    request = a.request("m", 1, {}, body=False)
    carry(a, b)
    b.reply(request, {}, body=True)
    b.data(request, bytes(WINDOW // 2), last=False)
    carry(b, a)
    b.data(request, b"x", last=True)
    a.consumed(request, WINDOW // 2)
    assert carry(a, b) == []
    assert carry(b, a) == [Data(request, b"x", True)]
    assert a.open == b.open == 0


def test_what_comes_of_a_body_after_the_reply_is_dropped_until_the_client_ends_it() -> None:
    a, b = linked()
    request = a.request("m", 1, {}, body=True)
    carry(a, b)
    a.data(request, b"late", last=False)
    b.fail(request, "no", "")
    assert b.open == 1
    assert carry(a, b) == []
    assert carry(b, a) == [Failure(request, "no", "")]
    assert a.open == 0
    assert sent(a)[-1][0] == KINDS.index(Cancel)


def test_the_body_after_the_reply_stays_within_its_window() -> None:
    _, b = linked()
    give(b, REQUEST)
    b.fail(1, "no", "")
    give(b, Data(1, bytes(WINDOW), False))
    with pytest.raises(ProtocolError, match="window"):
        give(b, Data(1, b"x", False))


# Ping and goodbye.


def test_one_ping_is_answered_by_one_pong() -> None:
    a, b = linked()
    a.ping()
    a.ping()
    assert carry(a, b) == [Ping()]
    b.pong()
    assert carry(b, a) == [Pong()]
    a.ping()
    assert carry(a, b) == [Ping()]


def test_a_server_that_says_goodbye_finishes_what_it_has_taken() -> None:
    a, b = linked()
    taken = a.request("m", 1, {}, body=False)
    carry(a, b)
    b.goodbye()
    crossing = a.request("m", 1, {}, body=True)
    a.data(crossing, b"x", last=True)
    assert carry(a, b) == []  # it is not taken, nor an error
    assert carry(b, a) == [Goodbye(taken, "", "")]
    assert a.open == 1
    assert not a.may_request
    b.reply(taken, {}, body=False)
    assert carry(b, a) == [Reply(taken, {}, False)]
    assert a.open == b.open == 0


# Any course at all.


@settings(max_examples=200)
@given(st.integers(0, 2**32))
def test_two_sides_that_keep_the_rules_never_see_an_error(seed: int) -> None:
    course = random.Random(seed)
    a, b = linked()
    bodies: dict[tuple[str, int], list[bytes]] = {}
    came: dict[tuple[str, int], list[bytes]] = {}
    at_server: set[int] = set()
    cancelled: set[int] = set()

    def deliver(source: LinkProtocol, target: LinkProtocol) -> None:
        stream = source.to_send()
        while stream:  # in pieces
            size = course.randint(1, len(stream))
            for event in target.receive(stream[:size]):
                heard(target, event)
            stream = stream[size:]

    def heard(side: LinkProtocol, event: Event) -> None:
        match event:
            case Request():
                at_server.add(event.id)
            case Data():
                came.setdefault((side.role.value, event.id), []).append(event.data)
                if course.random() < 0.7:
                    side.consumed(event.id, len(event.data))
            case Cancel():
                cancelled.add(event.id)

    def send_some(side: LinkProtocol, request: int) -> None:
        if side.is_sending(request):
            data = course.randbytes(min(side.may_send(request), course.choice((0, 1, 9000, 40000))))
            bodies.setdefault((side.role.other.value, request), []).append(data)
            side.data(request, data, last=course.random() < 0.2)

    def act() -> None:
        match course.randrange(7):
            case 0 if a.may_request:
                a.request("m", 1, {"n": 1}, body=course.random() < 0.5)
            case 1 | 2 if a._latest:
                send_some(a, course.randint(1, a._latest))
            case 3 if at_server:
                request = course.choice(sorted(at_server))
                if b.is_sending(request):
                    send_some(b, request)
                elif b.is_unanswered(request):
                    if request in cancelled or course.random() < 0.3:
                        b.fail(request, "no", "")
                    else:
                        b.reply(request, {}, body=course.random() < 0.5)
            case 4:
                deliver(a, b)
            case 5:
                deliver(b, a)
            case 6 if a._latest and course.random() < 0.2:
                request = course.randint(1, a._latest)
                exchange = a._exchanges.get(request)
                if exchange is not None and exchange._mine is not Half.CANCELLED:
                    a.cancel(request)

    for _ in range(120):
        act()
    for _ in range(4):
        deliver(a, b)
        deliver(b, a)
    for key, chunks in came.items():
        whole = b"".join(bodies[key])
        assert whole.startswith(b"".join(chunks))


def _sessions() -> list[bytes]:
    """Streams of a client that keeps the rules, from the hello on."""
    streams = []
    for acts in range(3):
        a, b = client(), server()
        stream = a.to_send()
        list(b.receive(stream))
        carry(b, a)
        request = a.request("m", 1000, {"k": [1, 2, {"x": None}]}, body=acts > 0)
        if acts:
            a.data(request, b"x" * 200, last=acts == 1)
        if acts == 2:
            a.cancel(request)
        a.ping()
        streams.append(stream + a.to_send())
    return streams


def test_damaged_streams_end_the_link_or_are_understood() -> None:
    sessions = _sessions()
    course = random.Random(7)
    ended = 0
    for _ in range(5000):
        stream = bytearray(course.choice(sessions))
        for _ in range(course.randint(1, 3)):
            stream[course.randrange(len(stream))] = course.randrange(256)
        b = server()
        try:
            for event in b.receive(bytes(stream)):
                assert isinstance(event, Agreement) or type(event) in KINDS
        except (ProtocolError, HandshakeError):
            ended += 1
    assert ended > 1000


def test_the_table_leads_from_each_state_to_an_end() -> None:
    ends = {Half.ASKED, Half.CANCELLED, Half.ENDED}
    reached: dict[Half, set[Half]] = {half: {half} for half in Half}
    for _ in Half:
        for (before, _step), after in TABLE.items():
            reached[before] |= reached[after]
    assert all(reached[half] & ends for half in Half)
    assert {step for _, step in TABLE} == set(Step)


def test_acts_that_the_table_does_not_list_are_bugs() -> None:
    a, b = linked()
    request = a.request("m", 1, {}, body=False)
    carry(a, b)
    acts: list[Callable[[], None]] = [
        lambda: a.reply(request, {}, body=False),
        lambda: a.data(request, b"x", last=True),
        lambda: b.cancel(request),
        lambda: b.data(request, b"x", last=True),
    ]
    for act in acts:
        with pytest.raises(ValueError, match=r"may do that|cannot be sent"):
            act()
    assert carry(a, b) == carry(b, a) == []


def test_the_docs_list_the_messages_as_they_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "peer-protocol.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (\w+) \| (.*?) ?\|$", page, re.MULTILINE)
    listed = []
    for number, name, _, fields in rows:
        words = re.sub(r"\(.*?\)", "", fields)
        listed.append((int(number), name, words.count(",") + 1 if words else 0))
    assert (
        listed[1:]
        == [(number, kind.__name__, len(kind._fields)) for number, kind in enumerate(KINDS)][1:]
    )
    assert listed[0][:2] == (0, "Hello")
