"""Damaged and hostile encodings: an error or a state, and nothing else.

MYCOPROXY_FUZZ_COUNT cases (100,000 if it is not set) from MYCOPROXY_FUZZ_SEED on (random if it is
not set). Each case has a seed of its own, which a failure tells: with it and a count of 1 the case
comes again.

Most cases get the checksum that belongs to them, as otherwise nothing behind it would be reached.
"""

import os
import random
import secrets
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
from test_tcp_codec import (
    CONNECTING,
    ENDED,
    IDLE,
    IDLE6,
    MAPPED_STATE,
    STATE,
    sealed,
)

from mycoproxy import tcp
from mycoproxy.tcp import codec, codec_options
from mycoproxy.tcp.abi import TcpConnectionState

COUNT = int(os.environ.get("MYCOPROXY_FUZZ_COUNT", "100000"))
SEED = int(os.environ.get("MYCOPROXY_FUZZ_SEED", secrets.randbits(32)))

NOTHING_TO_SEND = tcp.SendQueue(7, b"", b"")
QUEUE = random.Random(1).randbytes(3000)

STATES = [
    STATE,
    IDLE,
    IDLE6,
    MAPPED_STATE,
    CONNECTING,
    ENDED,
    replace(STATE, state=TcpConnectionState.FIN_WAIT1, options=((7, b"x" * 64), (9, -1))),
    replace(STATE, state=TcpConnectionState.FIN_WAIT2, send=NOTHING_TO_SEND, shut_down=True),
    replace(STATE, state=TcpConnectionState.CLOSING, receive=tcp.ReceiveQueue(9, QUEUE)),
    replace(IDLE6, state=TcpConnectionState.LAST_ACK, send=tcp.SendQueue(0, QUEUE, QUEUE)),
    replace(
        STATE,
        state=TcpConnectionState.CLOSE_WAIT,
        negotiated=tcp.Negotiated(48, None, sack=False, timestamps=None, ecn=True),
        options=tuple((number, number << 40) for number in range(128)),
    ),
]
ENCODED = [tcp.encode(state) for state in STATES]

LARGE = [tcp.encode(replace(STATE, send=tcp.SendQueue(7, QUEUE * 100, QUEUE)))]

EDGES = (0, 1, 2, 4, 6, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


REACHED = {
    "message",
    "version",
    "checksum",
    "family",
    "state",
    "flags",
    "local",
    "remote",
    "window snd_wl1",
    "window max_window",
    "window rcv_wup",
    "window_scale",
    "timestamps",
    "mss_clamp",
    "buffers lock",
    "error",
    "option",
    "bytes of options",
    "sent bytes",
    "unsent bytes",
}
"""Errors that are to be expected among 100,000 cases, by what they begin with."""


def flip_bits(message: bytearray, dice: random.Random) -> None:
    for _ in range(dice.choice((1, 1, 2, 8))):
        message[dice.randrange(len(message))] ^= 1 << dice.randrange(8)


def truncate(message: bytearray, dice: random.Random) -> None:
    del message[dice.randrange(len(message)) :]


def cut_out(message: bytearray, dice: random.Random) -> None:
    start = dice.randrange(len(message))
    del message[start : start + dice.randrange(1, 20)]


def insert(message: bytearray, dice: random.Random) -> None:
    at = dice.randrange(len(message) + 1)
    message[at:at] = dice.randbytes(dice.choice((1, 2, 4, 8, 100)))


def splice(message: bytearray, dice: random.Random) -> None:
    """One encoding's beginning, another's end."""
    other = dice.choice(ENCODED)
    message[dice.randrange(len(message)) :] = other[dice.randrange(len(other)) :]


def swap_head(message: bytearray, dice: random.Random) -> None:
    message[: codec._HEAD] = dice.choice(ENCODED)[: codec._HEAD]


def change_numbers(message: bytearray, dice: random.Random) -> None:
    """Numbers of the head, to what lies at the edges of their ranges."""
    numbers = list(codec._NUMBERS.unpack_from(message, codec._PREAMBLE.size))
    for _ in range(dice.choice((1, 1, 2, 4))):
        index = dice.randrange(len(numbers))
        largest = {"B": 0xFF, "H": 0xFFFF, "I": 0xFFFFFFFF}[codec._FIELDS[index][1]]
        near = numbers[index] + dice.randrange(-4, 5)
        numbers[index] = dice.choice((near, dice.choice(EDGES), dice.getrandbits(32))) & largest
    codec._NUMBERS.pack_into(message, codec._PREAMBLE.size, *numbers)


def change_lengths(message: bytearray, dice: random.Random) -> None:
    """Move a border between what follows the head: the sum of the lengths stays right."""
    numbers = list(codec._NUMBERS.unpack_from(message, codec._PREAMBLE.size))
    amount = dice.choice((1, 2, 8, 10, 3000))
    taken, given = dice.sample(range(1, 5), 2)
    numbers[-taken] = (numbers[-taken] - amount) & 0xFFFFFFFF
    numbers[-given] = (numbers[-given] + amount) & 0xFFFFFFFF
    codec._NUMBERS.pack_into(message, codec._PREAMBLE.size, *numbers)


def change_option(message: bytearray, dice: random.Random) -> None:
    """A number or a value, or an integer that becomes the length of bytes."""
    numbers = codec._NUMBERS.unpack_from(message, codec._PREAMBLE.size)
    start = codec._HEAD + 2 * codec._ADDRESS_SIZES[numbers[0]]
    if not numbers[-5]:
        return
    at = start + dice.randrange(numbers[-5]) * codec_options._OPTION.size
    number, value = codec_options._OPTION.unpack_from(message, at)
    number = dice.choice((number, number ^ 0x8000, dice.choice(EDGES) & 0xFFFF))
    value = dice.choice((value, value + dice.randrange(-2, 3), dice.choice(EDGES), -1))
    codec_options._OPTION.pack_into(message, at, number, max(min(value, (1 << 63) - 1), -1 << 63))


MUTATIONS = (
    flip_bits,
    truncate,
    cut_out,
    insert,
    splice,
    swap_head,
    change_numbers,
    change_numbers,
    change_lengths,
    change_option,
)


def mend_lengths(message: bytearray) -> None:
    """Count what was inserted or taken away as unsent bytes, if they can make up for it."""
    numbers = list(codec._NUMBERS.unpack_from(message, codec._PREAMBLE.size))
    size = codec._HEAD + 2 * codec._ADDRESS_SIZES.get(numbers[0], 4)
    size += numbers[-5] * codec_options._OPTION.size + sum(numbers[-4:])
    numbers[-1] = max(numbers[-1] + len(message) - size, 0) & 0xFFFFFFFF
    codec._NUMBERS.pack_into(message, codec._PREAMBLE.size, *numbers)


def mutant(seed: int, encoded: list[bytes]) -> bytes:
    """The case that belongs to ``seed``: one encoding, changed once or twice."""
    dice = random.Random(seed)
    message = bytearray(dice.choice(encoded))
    # Only the first change may take a whole message for granted.
    dice.choice(MUTATIONS)(message, dice)
    if message and dice.random() < 0.2:
        dice.choice((flip_bits, truncate, insert, splice))(message, dice)
    if len(message) < codec._HEAD:
        return bytes(message)
    if dice.random() < 0.7:
        mend_lengths(message)
    return sealed(bytes(message)) if dice.random() < 0.9 else bytes(message)


def cases(count: int, encoded: list[bytes]) -> Iterator[tuple[bytes, str]]:
    """Mutants, and how to get each again."""
    for seed in range(SEED, SEED + count):
        yield mutant(seed, encoded), f"MYCOPROXY_FUZZ_SEED={seed} MYCOPROXY_FUZZ_COUNT=1"


@pytest.mark.timeout(300)
def test_a_mutated_encoding_is_an_error_or_exactly_the_encoding_of_a_state() -> None:
    """So what is accepted is what its state would be written as."""
    refused: Counter[str] = Counter()
    for message, case in cases(COUNT, ENCODED):
        try:
            state = tcp.decode(message)
        except tcp.CodecError as error:
            refused[str(error).partition(":")[0]] += 1
            continue
        except Exception as error:
            raise AssertionError(f"{case}: {message.hex()}: {error!r}") from error
        if tcp.encode(state) != message or tcp.decode(message) != state:
            raise AssertionError(f"{case}: {message.hex()}: written again it is another: {state}")
    if COUNT >= 100_000:  # every kind of check was reached, and some passed them all
        assert refused.total() < 0.95 * COUNT, f"seed {SEED}: {refused}"
        assert not REACHED - set(refused), f"seed {SEED}: {refused}"


@pytest.mark.timeout(300)
def test_a_mutated_encoding_takes_no_more_memory_than_twice_its_size() -> None:
    """Beside the objects that a state consists of, 16 KiB with all the options there can be."""
    tracemalloc.start()
    try:
        for message, case in cases(max(COUNT // 20, 1), ENCODED + LARGE):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                state = tcp.decode(message)
            except tcp.CodecError:
                state = None
            taken = tracemalloc.get_traced_memory()[1] - before
            limit = 2 * len(message) + 32768
            assert taken <= limit, f"{case}: {taken} bytes taken for {len(message)}"
            del state
    finally:
        tracemalloc.stop()
