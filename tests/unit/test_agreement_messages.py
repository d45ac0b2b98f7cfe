"""Messages and records on the wire: what goes out comes in; nothing else is let in."""

import contextlib
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycoproxy.agreement import messages as m
from mycoproxy.agreement.effects import Keys, Record, RecordKind

MOVE = m.MoveId("node-a", "0123456789abcdef", 7)
PLAN = m.Plan(MOVE, "node-b", ("node-c", "node-d"), b"c" * 32, b"a" * 32)
MESSAGES = [
    m.Prepare(MOVE, PLAN, 99),
    m.Vote(MOVE, yes=True),
    m.Vote(MOVE, yes=False),
    m.Inquiry(MOVE),
    m.Undecided(MOVE),
    m.Lost(MOVE),
    m.Commit(MOVE, b"k" * 32),
    m.Abort(MOVE, b"k" * 32),
    m.Abort(MOVE, b""),
    m.Live(MOVE),
    m.Dead(MOVE),
    m.Finish(MOVE),
    m.Finished(MOVE),
    m.Undone(MOVE),
    m.Closed(MOVE),
]
RECORDS = [
    Record(RecordKind.BEGUN, PLAN, Keys(b"c" * 32, b"a" * 32)),
    Record(RecordKind.BEGUN, PLAN),
    *(Record(kind) for kind in RecordKind if kind is not RecordKind.BEGUN),
    Record(RecordKind.COMMITTED, key=b"k" * 32),
]


def over_the_wire(plain: Any) -> Any:
    return msgpack.unpackb(msgpack.packb(plain))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_arrives_as_it_was_sent(message: m.Message) -> None:
    assert m.message_from_plain(over_the_wire(m.message_to_plain(message))) == message


def test_every_message_is_tried() -> None:
    assert {type(message) for message in MESSAGES} == set(m._KINDS.values())


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.kind.name)
def test_a_record_is_read_as_it_was_written(record: Record) -> None:
    assert Record.from_plain(over_the_wire(record.to_plain())) == record


def test_a_move_has_one_name_that_can_be_read_back() -> None:
    assert str(MOVE) == "node-a:0123456789abcdef:7"
    assert m.MoveId.parse(str(MOVE)) == MOVE


@pytest.mark.parametrize(
    "text", ["", "a", "a:b:c", "a:0123456789abcdef:-1", "a:0123456789abcdef:1_0", "a/b:0:1", ":::"]
)
def test_what_names_no_move_is_refused(text: str) -> None:
    with pytest.raises(m.MessageError):
        m.MoveId.parse(text)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_field_too_many_or_too_few_is_refused(message: m.Message) -> None:
    plain = m.message_to_plain(message)
    with pytest.raises(m.MessageError):
        m.message_from_plain({**plain, "more": 1})
    for name in plain:
        with pytest.raises(m.MessageError):
            m.message_from_plain({key: plain[key] for key in plain if key != name})


WRONG: list[tuple[m.Message, dict[str, Any]]] = [
    (MESSAGES[0], {"life": -1}),
    (MESSAGES[0], {"life": True}),
    (MESSAGES[0], {"life": 2**63}),
    (MESSAGES[0], {"move": ["node-a", "0123456789abcdef", 8]}),
    (MESSAGES[0], {"plan": {**PLAN.to_plain(), "target": "node-a"}}),
    (MESSAGES[0], {"plan": {**PLAN.to_plain(), "peers": ["node-c", "node-c"]}}),
    (MESSAGES[0], {"plan": {**PLAN.to_plain(), "peers": [f"n{n}" for n in range(1025)]}}),
    (MESSAGES[0], {"plan": {**PLAN.to_plain(), "commit_lock": b"short"}}),
    (MESSAGES[1], {"yes": 1}),
    (MESSAGES[1], {"move": ["../x", "0123456789abcdef", 7]}),
    (MESSAGES[1], {"move": ["node-a", "0123456789ABCDEF", 7]}),
    (MESSAGES[1], {"move": ["n" * 254, "0123456789abcdef", 7]}),
    (MESSAGES[6], {"key": b""}),
    (MESSAGES[6], {"key": "k" * 32}),
    (MESSAGES[7], {"key": b"k" * 33}),
    (MESSAGES[9], {"kind": "launch"}),
    (MESSAGES[9], {"kind": b"live"}),
]


@pytest.mark.parametrize(("message", "change"), WRONG, ids=lambda value: repr(value)[:40])
def test_a_wrong_value_is_refused(message: m.Message, change: dict[str, Any]) -> None:
    with pytest.raises(m.MessageError):
        m.message_from_plain({**m.message_to_plain(message), **change})


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(anything, st.sampled_from([m.message_to_plain(message) for message in MESSAGES]), st.data())
def test_whatever_comes_in_is_a_message_or_refused(
    value: Any, plain: dict[str, Any], data: st.DataObject
) -> None:
    field = data.draw(st.sampled_from(sorted(plain)))
    for wild in (value, {**plain, field: value}):
        for read in (m.message_from_plain, Record.from_plain, m.MoveId.from_plain):
            with contextlib.suppress(m.MessageError):
                read(wild)


@pytest.mark.parametrize(
    "plain",
    [
        {"kind": "begun"},
        {"kind": "prepared", "plan": PLAN.to_plain()},
        {"kind": "begun", "plan": PLAN.to_plain(), "keys": [b"c" * 32]},
        {"kind": "committed", "key": b""},
        {"kind": "unknown"},
        {"kind": ["begun"]},
        {"kind": "live", "more": 1},
        None,
    ],
)
def test_what_is_no_record_is_refused(plain: Any) -> None:
    with pytest.raises(m.MessageError):
        Record.from_plain(plain)
