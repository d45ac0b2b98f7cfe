"""Where an answer of redis ends, and what the keys hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netlab.load import resp
from netlab.load.content import content, count_wrong, key_name

ANSWERS = st.one_of(
    st.just(resp.OK),
    st.integers().map(resp.integer),
    st.binary(max_size=200).map(resp.bulk),
    st.just(b"$-1\r\n"),
    st.just(b"-ERR unknown command\r\n"),
    st.lists(st.binary(max_size=20), max_size=4).map(lambda parts: resp.command(*parts)),
)


@given(ANSWERS, st.binary(max_size=20))
def test_an_answer_ends_where_it_ends_whatever_follows(answer: bytes, behind: bytes) -> None:
    assert resp.reply_end(answer + behind) == len(answer)


@given(ANSWERS, st.data())
def test_a_part_of_an_answer_is_incomplete(answer: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(answer) - 1))
    assert resp.reply_end(answer[:cut]) == -1


def test_an_answer_may_begin_in_the_middle_of_a_buffer() -> None:
    buffer = resp.OK + resp.bulk(b"a\r\nb") + resp.integer(7)
    first = resp.reply_end(buffer)
    second = resp.reply_end(buffer, first)
    assert (first, second, resp.reply_end(buffer, second)) == (5, 15, len(buffer))


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400\r\n", b"$x\r\n", b"\0" * 70_000])
def test_what_cannot_be_an_answer_is_an_error(garbage: bytes) -> None:
    with pytest.raises(resp.ProtocolError):
        resp.reply_end(garbage)


def test_content_follows_from_key_seed_and_size_alone() -> None:
    assert content(key_name(3), 1000, 1) == content(key_name(3), 1000, 1)
    assert len({content(key_name(key), 64, seed) for key in range(50) for seed in range(2)}) == 100
    assert content(b"k", 10) == content(b"k", 1000)[:10]


@pytest.mark.parametrize(
    ("found", "wrong"),
    [(b"abcd", 0), (b"abxd", 1), (b"abc", 1), (b"abcdef", 2), (b"", 4), (b"wxyz", 4)],
)
def test_every_differing_missing_or_surplus_byte_is_wrong(found: bytes, wrong: int) -> None:
    assert count_wrong(b"abcd", found) == wrong
