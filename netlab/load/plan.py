"""What one connection of the checker asks, and what the answers must be.

Pure: a plan knows no socket and no clock. It assumes that each of its requests is answered once and
in order; if a request were lost, done twice or done by a server with older state, an answer would
differ from the plan: the counter is the check for "exactly once".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from netlab.load import resp
from netlab.load.content import content, key_name


@dataclass(frozen=True)
class Request:
    """The bytes to send, and the answer's bytes, all of them."""

    sent: bytes
    expected: bytes


@dataclass(frozen=True)
class Preloaded:
    """The keys that `netlab.load.preload` has filled: ``keys`` of them, ``value_bytes`` each."""

    keys: int
    value_bytes: int
    seed: int = 0


def plan(
    client: str, connection: int, preloaded: Preloaded, own_value_bytes: int = 512
) -> Iterator[Request]:
    """The endless list of requests of one connection: first its counter is set to zero, then
    rounds of SET and GET of its own key, INCR of its counter, and GET of any preloaded key."""
    random = Random(f"{preloaded.seed} {client} {connection}")  # noqa: S311  not for secrets
    counter = b"count:%b:%d" % (client.encode(), connection)
    own = b"own:%b:%d" % (client.encode(), connection)
    yield Request(resp.command(b"SET", counter, b"0"), resp.OK)
    number = 0
    while True:
        number += 1
        value = content(b"%b:%d" % (own, number), random.randint(1, 2 * own_value_bytes))
        yield Request(resp.command(b"SET", own, value), resp.OK)
        yield Request(resp.command(b"INCR", counter), resp.integer(number))
        yield Request(resp.command(b"GET", own), resp.bulk(value))
        if preloaded.keys:
            key = key_name(random.randrange(preloaded.keys))
            there = content(key, preloaded.value_bytes, preloaded.seed)
            yield Request(resp.command(b"GET", key), resp.bulk(there))
