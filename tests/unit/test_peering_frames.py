"""Frames: what goes in comes out, and whatever else comes in is an error that says what is wrong.

MYCOPROXY_FUZZ_COUNT damaged frames (50,000 if it is not set) from MYCOPROXY_FUZZ_SEED on (random if
it is not set).
"""

import os
import random
import secrets
import struct
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mycoproxy.peering.errors import FrameError
from mycoproxy.peering.frames import FrameDecoder, Shape, check, encode, pack, unpack

COUNT = int(os.environ.get("MYCOPROXY_FUZZ_COUNT", "50000"))
SEED = int(os.environ.get("MYCOPROXY_FUZZ_SEED", secrets.randbits(32)))

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=40)
    | st.binary(max_size=300)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=8), inner, max_size=20)
    ),
    max_leaves=40,
)


@given(VALUES)
def test_any_value_comes_back_equal(value: Any) -> None:
    try:
        frame = encode(value)
    except FrameError as error:
        assert "nested" in str(error)
    else:
        assert list(FrameDecoder().feed(frame)) == [value]


@given(st.lists(VALUES, max_size=5), st.lists(st.integers(1, 200), min_size=1, max_size=30))
def test_frames_come_out_whole_however_they_are_cut(values: list[Any], cuts: list[int]) -> None:
    stream = b"".join(map(encode, values))
    found: list[Any] = []
    decoder, position = FrameDecoder(), 0
    while position < len(stream):
        size = cuts[position % len(cuts)]
        found += decoder.feed(stream[position : position + size])
        position += size
    assert found == values
    assert decoder.buffered == 0


@given(st.binary(max_size=200))
def test_the_walk_accepts_only_what_msgpack_decodes(payload: bytes) -> None:
    try:
        value = unpack(payload)
    except FrameError:
        return
    assert unpack(pack(value)) == value or value != value  # noqa: PLR0124 - not a number


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "cut short"),
        (b"\xc1", "0xc1"),
        (b"\xd4\x01\x00", "extension"),
        (b"\xd6\xff\x00\x00\x00\x00", "extension"),  # a timestamp
        (b"\xc7\x01\x05x", "extension"),
        (b"\xc0\xc0", "1 bytes after"),
        (b"\xa5abc", "cut short"),
        (b"\xdb\xff\xff\xff\xffabc", "cut short"),
        (b"\xc6\x00", "length is missing"),
        (b"\xdd\xff\xff\xff\xff", "4294967296 values"),
        (b"\xdf\x7f\xff\xff\xff", "values"),
        (b"\x91" * 17 + b"\xc0", "nested deeper than 16"),
        (b"\x81\x01\x02", "key"),
        (b"\x81\xc4\x01a\x02", "key"),
        (b"\x82\xa1a\x01\xa1a\x02", "same key twice"),
        (b"\xa2\xff\xfe", "UTF-8"),
        (b"\x82\xa1a", "cut short"),
    ],
)
def test_what_is_wrong_is_named(payload: bytes, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        unpack(payload)


def test_map_keys_are_looked_at_behind_inner_values_too() -> None:
    assert unpack(msgpack.packb({"a": [1, 2], "b": {"c": 3}, "d": 4})) == {
        "a": [1, 2],
        "b": {"c": 3},
        "d": 4,
    }
    with pytest.raises(FrameError, match="key"):
        unpack(b"\x82\xa1a\x92\x01\x02\x05\x01")


@pytest.mark.parametrize("length", [0, 262145, 0xFFFFFFFF])
def test_a_wrong_length_is_refused_before_its_payload_comes(length: int) -> None:
    with pytest.raises(FrameError, match=f"{length} bytes"):
        list(FrameDecoder().feed(struct.pack(">I", length)))


def test_a_value_that_does_not_fit_is_refused_where_it_is_sent() -> None:
    with pytest.raises(FrameError, match="body"):
        encode(bytes(256 * 1024))
    with pytest.raises(FrameError, match="values"):
        encode([0] * 70000)
    with pytest.raises(FrameError, match="key"):
        encode({1: 2})


def test_the_shape_can_be_narrower() -> None:
    check(msgpack.packb([[1]]), Shape(depth=2, elements=3))
    with pytest.raises(FrameError, match="nested"):
        check(msgpack.packb([[1]]), Shape(depth=1))
    with pytest.raises(FrameError, match="values"):
        check(msgpack.packb([[1, 2]]), Shape(elements=3))


def test_headers_that_promise_much_cost_nothing() -> None:
    """msgpack's decoder alone would allocate 1,000 lists of 200,000 elements, 1.6 GB, for this."""
    hostile = b"\xdd\x00\x03\x0d\x40" * 1000 + bytes(200_000)
    tracemalloc.start()
    try:
        with pytest.raises(FrameError):
            unpack(hostile)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


SAMPLES = [
    [1, 12345, 7, "move.prepare", 5000, {"move": "x", "n": [1, 2, {"a": None}]}, True],
    [0, 0, {"versions": [1, 1], "features": ["a", "b"], "nonce": bytes(16), "window": 1 << 20}],
    [4, 99, 3, bytes(range(256)) * 4, False],
    [[["10.0.0.1", 80, "fd00::1", 65535, -1, 1.5, True]] * 10, {"k": {"k": {"k": []}}}],
]
INTERESTING = bytes((0x80, 0x90, 0xC1, 0xC4, 0xC6, 0xC7, 0xD4, 0xD9, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF))


def _damaged(random_: random.Random) -> bytes:
    frame = bytearray(encode(random_.choice(SAMPLES)))
    for _ in range(random_.randint(1, 4)):
        at = random_.randrange(len(frame))
        match random_.randrange(6):
            case 0:
                frame[at] = random_.randrange(256)
            case 1:
                frame[at] = random_.choice(INTERESTING)
            case 2:
                del frame[at : at + random_.randint(1, 8)]
            case 3:
                frame[at:at] = random_.randbytes(random_.randint(1, 8))
            case 4:
                frame[at : at + 5] = b"\xdd" + random_.randbytes(4)
            case 5:
                frame = bytearray(encode([0])[:4]) + frame[4:]
                frame[:4] = struct.pack(">I", random_.choice((len(frame) - 4, len(frame))))
        if not frame:
            return bytes(4)
    return bytes(frame)


def test_damaged_frames_are_an_error_or_a_value() -> None:
    refused = 0
    tracemalloc.start()
    try:
        for number in range(COUNT):
            frame = _damaged(random.Random(SEED + number))
            decoder = FrameDecoder()
            try:
                for value in decoder.feed(frame):
                    pack(value)
                assert decoder.buffered <= len(frame)
            except FrameError as error:
                assert str(error)
                refused += 1
            except BaseException as error:
                error.add_note(f"MYCOPROXY_FUZZ_SEED={SEED + number} MYCOPROXY_FUZZ_COUNT=1")
                raise
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    assert refused or COUNT < 100
