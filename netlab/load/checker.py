"""Many long-lived connections; each asks, waits, checks every byte of the answer, thinks, repeats.

One asyncio protocol object per connection on uvloop: a request costs some 40 µs, so that fifty
connections with a think time of 20 ms take about a tenth of one core. That matters, for the clients
share the machine with the move that they measure.
"""

import asyncio
import random
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

from netlab.load import resp
from netlab.load.content import count_wrong
from netlab.load.lifetime import DRAIN_SECONDS, Lifetime, say_ready
from netlab.load.plan import Preloaded, Request, plan
from netlab.load.samples import SampleWriter, Verdict
from netlab.load.summary import ClientSummary, LostConnection

_STEP_SECONDS = 0.05


@dataclass(frozen=True)
class CheckerOptions:
    """``think_seconds`` is the mean pause between an answer and the next request."""

    host: str
    port: int
    connections: int
    think_seconds: float
    preloaded: Preloaded
    name: str
    group: str
    drain_seconds: float = DRAIN_SECONDS


class Tally:
    """What all connections found, together."""

    def __init__(self) -> None:
        self.requests = 0
        self.bytes_checked = 0
        self.bytes_wrong = 0
        self.wrong: list[str] = []
        self.lost: list[LostConnection] = []

    def wrong_answer(self, connection: int, expected: bytes, found: bytes) -> None:
        """Count an answer that is not what the plan says."""
        self.bytes_wrong += count_wrong(expected, found)
        if len(self.wrong) < 10:
            self.wrong.append(
                f"connection {connection}: {expected[:60]!r} expected, {found[:60]!r} found"
            )


class CheckedConnection(asyncio.Protocol):
    """One connection and its closed loop."""

    def __init__(
        self,
        number: int,
        requests: Iterator[Request],
        think: float,
        tally: Tally,
        out: SampleWriter,
    ) -> None:
        self.number = number
        self.local_port = 0
        self.longest_wait = 0.0
        self.answers = 0
        self.alive = False
        self.stopping = False
        self.waiting = False
        self._requests = requests
        self._request = Request(b"", b"")
        self._think = think
        self._tally = tally
        self._out = out
        self._sent = 0.0
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask the first question at once."""
        self._transport = cast(asyncio.Transport, transport)
        self.local_port = transport.get_extra_info("sockname")[1]
        self.alive = True
        self._ask()

    def _ask(self) -> None:
        if self.stopping or self._transport is None:
            return
        self._request = next(self._requests)
        self.waiting = True
        self._sent = time.monotonic()
        self._transport.write(self._request.sent)

    def data_received(self, data: bytes) -> None:
        """Compare, once the answer is complete."""
        now = time.monotonic()
        if not self.waiting:
            self._tally.wrong_answer(self.number, b"", data)
            return
        if not self._buffer and data == self._request.expected:
            self._answered(now, data)
            return
        self._buffer += data
        try:
            end = resp.reply_end(self._buffer)
        except resp.ProtocolError as error:
            self._answered(now, bytes(self._buffer))
            self._give_up(f"no answer in redis' protocol: {error}")
            return
        if end < 0:
            return
        answer, surplus = bytes(self._buffer[:end]), bytes(self._buffer[end:])
        self._buffer.clear()
        if surplus:
            self._tally.wrong_answer(self.number, b"", surplus)
        self._answered(now, answer)

    def _answered(self, now: float, answer: bytes) -> None:
        expected = self._request.expected
        self.waiting = False
        self.answers += 1
        self.longest_wait = max(self.longest_wait, now - self._sent)
        self._tally.requests += 1
        self._tally.bytes_checked += len(expected)
        verdict = Verdict.RIGHT
        if answer != expected:
            verdict = Verdict.WRONG
            self._tally.wrong_answer(self.number, expected, answer)
        self._out.request(self.number, self._sent, now, verdict, len(answer))
        if not self.stopping:
            # Uneven pauses keep the connections from falling into step after a common wait.
            pause = self._think * random.uniform(0.5, 1.5)  # noqa: S311
            self._timer = asyncio.get_running_loop().call_later(pause, self._ask)

    def connection_lost(self, exc: Exception | None) -> None:
        """Not asked for: a lost connection."""
        if self.alive:
            self._give_up("end of stream" if exc is None else f"{type(exc).__name__}: {exc}")

    def _give_up(self, reason: str) -> None:
        now = time.monotonic()
        self.alive = False
        self._tally.lost.append(LostConnection(self.number, reason, now))
        if self.waiting:
            self.longest_wait = max(self.longest_wait, now - self._sent)
            self._out.request(self.number, self._sent, now, Verdict.UNANSWERED, 0)
            self.waiting = False
        self._close()

    def _close(self) -> None:
        self.stopping = True
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.close()

    def finish(self) -> None:
        """The end: close. A request that is still unanswered makes the connection a lost one."""
        if not self.alive:
            return
        if self.waiting:
            self._give_up(f"no answer for {time.monotonic() - self._sent:.3f} s, at the end")
        self.alive = False
        self._close()


async def check(options: CheckerOptions, lifetime: Lifetime, out: SampleWriter) -> ClientSummary:
    """Run the checker until the lifetime ends."""
    started = time.monotonic()
    tally = Tally()
    connections = [
        CheckedConnection(
            number,
            plan(options.name, number, options.preloaded),
            options.think_seconds,
            tally,
            out,
        )
        for number in range(options.connections)
    ]
    with lifetime.watched():
        for connection in connections:
            await _open(connection, options, tally)
        await _until(lifetime, lambda: all(each.answers or not each.alive for each in connections))
        say_ready()
        await _until(lifetime, lambda: not any(each.alive for each in connections))
        lifetime.stop("no connection is left")
        for connection in connections:
            connection.stopping = True
        drained = time.monotonic() + options.drain_seconds
        while any(each.waiting for each in connections) and time.monotonic() < drained:
            await asyncio.sleep(_STEP_SECONDS)
        for connection in connections:
            connection.finish()
        await asyncio.sleep(0)  # the transports close in the loop's next turn
    return ClientSummary(
        client="checker",
        name=options.name,
        group=options.group,
        connections=options.connections,
        local_ports=tuple(each.local_port for each in connections),
        lost=tuple(tally.lost),
        requests=tally.requests,
        bytes_checked=tally.bytes_checked,
        bytes_wrong=tally.bytes_wrong,
        wrong=tuple(tally.wrong),
        longest_wait_s=tuple(round(each.longest_wait, 6) for each in connections),
        started=started,
        ended=time.monotonic(),
        stopped_by=lifetime.stopped_by,
    )


async def _open(connection: CheckedConnection, options: CheckerOptions, tally: Tally) -> None:
    loop = asyncio.get_running_loop()
    try:
        transport, _ = await loop.create_connection(lambda: connection, options.host, options.port)
    except OSError as error:
        lost = LostConnection(connection.number, f"connect: {error}", time.monotonic())
        tally.lost.append(lost)
        return
    plain = transport.get_extra_info("socket")
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def _until(lifetime: Lifetime, condition: Callable[[], bool]) -> None:
    while not lifetime.stopping.is_set() and not condition():
        try:
            async with asyncio.timeout(_STEP_SECONDS):
                await lifetime.stopping.wait()
        except TimeoutError:
            continue
