"""Calls over a real link on loopback: bodies, backpressure, deadlines, and every way to an end."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from test_peering_tls import DEADLINE, peers, run, serving

from mycoproxy.errors import MycoError
from mycoproxy.peering import (
    Body,
    DeadlineError,
    FrameError,
    LinkLimits,
    LinkLost,
    PeerServer,
    Reply,
    RequestError,
)

MIB = 1024 * 1024
SMALL = LinkLimits(window=256 * 1024, requests=4, write_buffer=128 * 1024)


async def until(condition: Any, seconds: float = DEADLINE) -> None:
    """Wait for something that has no event of its own."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


class Relay:
    """A wire between client and server that can be cut, or fall silent in either direction."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._flows = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.chunks: list[bytes] = []
        for flow in self._flows.values():
            flow.set()

    async def open(self) -> tuple[str, int]:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return host, port

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection(*self._target)
        self._writers += [writer, to_writer]
        self._tasks += [
            asyncio.create_task(self._carry("up", reader, to_writer)),
            asyncio.create_task(self._carry("down", to_reader, writer)),
        ]

    async def _carry(
        self, flow: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                await self._flows[flow].wait()
                data = await reader.read(65536)
                await self._flows[flow].wait()
                if not data:
                    break
                if flow == "up":
                    self.chunks.append(data)
                writer.write(data)
                await writer.drain()
            writer.close()

    def silence(self, *flows: str) -> None:
        for flow in flows:
            self._flows[flow].clear()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def close(self) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()


@asynccontextmanager
async def relayed(server: PeerServer) -> AsyncIterator[tuple[Relay, tuple[str, int]]]:
    relay = Relay(server.addresses[0])
    address = await relay.open()
    try:
        yield relay, address
    finally:
        await relay.close()


class Held:
    """A handler that waits until it is let go, and tells how it ended."""

    def __init__(self) -> None:
        self.running = 0
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.stopped = asyncio.Event()

    async def __call__(self, _: str, method: str, __: dict[str, Any], ___: Body) -> Reply:
        if method == "quick":
            return Reply({"quick": True})
        self.running += 1
        self.begun.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.stopped.set()
            raise
        finally:
            self.running -= 1
        return Reply({"done": method})


def test_many_calls_at_once_share_one_link_within_its_limit() -> None:
    most = 0
    running = 0

    async def handler(peer: str, method: str, args: dict[str, Any], body: Body) -> Reply:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        return Reply({"n": args["n"]}, await body.read())

    async def main() -> None:
        async with serving(handler, limits=SMALL) as server, peers(server) as pool:

            async def call(n: int) -> None:
                answer = await pool.call("b", "m", {"n": n}, b"x" * n, deadline=DEADLINE)
                assert answer.result == {"n": n}
                assert await answer.body.read() == b"x" * n

            await asyncio.gather(*map(call, range(300)))
            assert server._local.counters.accepted == 1
            assert server._local.counters.requests_in == 300

    run(main())
    assert 1 < most <= 4


def test_a_small_request_and_its_body_go_in_one_record() -> None:
    async def main() -> None:
        async with (
            serving() as server,
            relayed(server) as (relay, address),
            peers(address) as pool,
        ):
            await pool.call("b", "m", deadline=DEADLINE)
            relay.chunks.clear()
            await pool.call("b", "m", {"k": "v"}, b"body" * 100, deadline=DEADLINE)
            (record,) = relay.chunks
            assert record[:3] == b"\x17\x03\x03"
            assert int.from_bytes(record[3:5]) == len(record) - 5

    run(main())


def _resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_large_bodies_go_both_ways_in_bounded_memory() -> None:
    size = 100 * MIB
    most = 0

    async def body() -> AsyncIterator[bytes]:
        chunk = bytes(range(256)) * 4096
        for _ in range(size // len(chunk)):
            yield chunk

    async def handler(peer: str, method: str, args: dict[str, Any], came: Body) -> Reply:
        nonlocal most
        total = 0
        async for chunk in came:
            total += len(chunk)
            most = max(most, _resident())
        return Reply({"total": total}, body())

    async def main() -> None:
        nonlocal most
        async with serving(handler) as server, peers(server) as pool:
            before = _resident()
            answer = await pool.call("b", "m", {}, body(), deadline=60)
            assert answer.result == {"total": size}
            total = 0
            async for chunk in answer.body:
                assert chunk[:2] == bytes((total % 256, (total + 1) % 256))
                total += len(chunk)
                most = max(most, _resident())
            assert total == size
            assert most - before < 40 * MIB

    run(main())


@pytest.mark.parametrize("direction", ["request", "reply"])
def test_a_body_that_is_not_read_stops_after_one_window(direction: str) -> None:
    made = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal made
        for _ in range(200):
            made += 16384
            yield b"x" * 16384

    async def main() -> None:
        let_go = asyncio.Event()

        async def handler(peer: str, method: str, args: dict[str, Any], came: Body) -> Reply:
            if method == "quick":
                return Reply()
            if direction == "reply":
                return Reply({}, body())
            await let_go.wait()
            return Reply({"size": len(await came.read())})

        async with (
            serving(handler, limits=SMALL) as server,
            peers(server, limits=SMALL) as pool,
        ):
            given = body() if direction == "request" else b""
            call = asyncio.create_task(pool.call("b", "m", {}, given, deadline=DEADLINE))
            await until(lambda: made >= SMALL.window)
            # Others are not held up by it, and it does not go on meanwhile.
            for _ in range(20):
                await pool.call("b", "quick", deadline=DEADLINE)
            assert made <= SMALL.window + 2 * 16384
            let_go.set()
            answer = await call
            if direction == "request":
                assert answer.result == {"size": 200 * 16384}
            else:
                assert len(await answer.body.read()) == 200 * 16384

    run(main())


def test_a_list_of_large_and_small_chunks_is_one_body() -> None:
    async def main() -> None:
        chunks = [b"a" * 10, b"", b"b" * 300_000, b"c"]
        async with serving() as server, peers(server) as pool:
            answer = await pool.call("b", "m", {}, chunks, deadline=DEADLINE)
            assert await answer.body.read() == b"".join(chunks)
            with pytest.raises(MycoError, match="more than 10 bytes"):
                answer = await pool.call("b", "m", {}, b"x" * 11, deadline=DEADLINE)
                await answer.body.read(limit=10)

    run(main())


def test_cancelling_a_call_stops_the_handler_and_nothing_else() -> None:
    async def main() -> None:
        held = Held()
        async with serving(held) as server, peers(server) as pool:
            call = asyncio.create_task(pool.call("b", "slow", deadline=DEADLINE))
            await held.begun.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            async with asyncio.timeout(DEADLINE):
                await held.stopped.wait()
            assert (await pool.call("b", "quick", deadline=DEADLINE)).result == {"quick": True}
            assert server._local.counters.accepted == 1

    run(main())


def test_a_call_that_is_cancelled_at_once_leaves_nothing_open() -> None:
    async def main() -> None:
        held = Held()
        async with serving(held, limits=SMALL) as server, peers(server) as pool:
            await pool.call("b", "quick", deadline=DEADLINE)
            for _ in range(20):
                call = asyncio.create_task(pool.call("b", "slow", deadline=DEADLINE))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                call.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await call
            link = pool._nodes["b"].link
            assert link is not None
            await until(lambda: not link._protocol.open)
            assert held.running == 0
            assert (await pool.call("b", "quick", deadline=DEADLINE)).result == {"quick": True}

    run(main())


def test_the_deadline_stops_both_sides() -> None:
    async def main() -> None:
        held = Held()
        async with serving(held) as server, peers(server) as pool:
            with pytest.raises(DeadlineError, match="slow") as caught:
                await pool.call("b", "slow", deadline=0.1)
            assert caught.value.may_have_run
            async with asyncio.timeout(DEADLINE):
                await held.stopped.wait()
            await pool.call("b", "quick", deadline=DEADLINE)

    run(main())


def test_the_serving_side_keeps_the_deadline_although_the_client_is_silent() -> None:
    async def main() -> None:
        held = Held()
        async with (
            serving(held) as server,
            relayed(server) as (relay, address),
            peers(address) as pool,
        ):
            call = asyncio.create_task(pool.call("b", "slow", deadline=0.3))
            await held.begun.wait()
            relay.silence("up")  # its CANCEL does not come through
            async with asyncio.timeout(DEADLINE):
                await held.stopped.wait()
            with pytest.raises(DeadlineError):
                await call

    run(main())


def test_a_call_that_never_got_its_turn_was_never_sent() -> None:
    async def main() -> None:
        held = Held()
        async with serving(held, limits=SMALL) as server, peers(server) as pool:
            calls = [
                asyncio.create_task(pool.call("b", "slow", deadline=DEADLINE)) for _ in range(4)
            ]
            await until(lambda: held.running == 4)
            with pytest.raises(DeadlineError) as caught:
                await pool.call("b", "quick", deadline=0.05)
            assert not caught.value.may_have_run
            assert held.running == 4
            held.go.set()
            await asyncio.gather(*calls)

    run(main())


def test_the_deadline_covers_the_reply_s_body() -> None:
    async def main() -> None:
        closed = asyncio.Event()

        async def trickle() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"x"
                    await asyncio.sleep(0.01)
            finally:
                closed.set()

        async def handler(peer: str, method: str, args: dict[str, Any], body: Body) -> Reply:
            return Reply({}, trickle())

        async with serving(handler) as server, peers(server) as pool:
            answer = await pool.call("b", "m", deadline=0.2)
            with pytest.raises(DeadlineError):
                await answer.body.read()
            async with asyncio.timeout(DEADLINE):
                await closed.wait()

    run(main())


def test_errors_of_handlers_come_out_of_the_call(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(peer: str, method: str, args: dict[str, Any], body: Body) -> Reply:
        match method:
            case "code":
                raise RequestError("no-such-move", "move 7 is not known here")
            case "myco":
                raise MycoError("disk full")
            case "large":
                return Reply({"x": bytes(300_000)})
            case "late":
                return Reply({}, late())
        raise KeyError("secret")

    async def late() -> AsyncIterator[bytes]:
        yield b"begin"
        raise MycoError("the file is gone")

    async def main() -> None:
        async with serving(handler) as server, peers(server) as pool:

            async def failure(method: str) -> tuple[str, str]:
                with pytest.raises(RequestError) as caught:
                    await (await pool.call("b", method, deadline=DEADLINE)).body.read()
                return caught.value.code, str(caught.value)

            assert await failure("code") == ("no-such-move", "move 7 is not known here")
            assert await failure("myco") == ("failed", "disk full")
            assert await failure("late") == ("failed", "the file is gone")
            assert (await failure("large"))[0] == "failed"
            assert await failure("bug") == ("internal", "bug failed; b logged why")
            assert "secret" in caplog.text
            assert server._local.counters.failures_out == 5
            assert server._local.counters.accepted == 1

    run(main())


def test_what_the_given_body_raises_comes_out_of_the_call() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise OSError("cannot read")

    async def main() -> None:
        async with serving() as server, peers(server) as pool:
            with pytest.raises(OSError, match="cannot read"):
                await pool.call("b", "m", {}, broken(), deadline=DEADLINE)
            with pytest.raises(FrameError, match="body"):
                await pool.call("b", "m", {"x": bytes(300_000)}, deadline=DEADLINE)
            await pool.call("b", "m", deadline=DEADLINE)
            assert server._local.counters.accepted == 1

    run(main())


def test_a_handler_may_answer_without_reading_the_body() -> None:
    async def handler(peer: str, method: str, args: dict[str, Any], body: Body) -> Reply:
        return Reply({"read": 0})

    async def main() -> None:
        async with serving(handler, limits=SMALL) as server, peers(server) as pool:
            for _ in range(10):
                answer = await pool.call("b", "m", {}, [bytes(MIB)] * 2, deadline=DEADLINE)
                assert answer.result == {"read": 0}

    run(main())


def test_a_link_that_is_cut_mid_call_leaves_the_outcome_unknown() -> None:
    async def main() -> None:
        held = Held()
        async with (
            serving(held) as server,
            relayed(server) as (relay, address),
            peers(address) as pool,
        ):
            call = asyncio.create_task(pool.call("b", "slow", deadline=DEADLINE))
            await held.begun.wait()
            relay.cut()
            with pytest.raises(LinkLost) as caught:
                await call
            assert caught.value.may_have_run
            async with asyncio.timeout(DEADLINE):
                await held.stopped.wait()
            assert (await pool.call("b", "quick", deadline=DEADLINE)).result == {"quick": True}

    run(main())


@pytest.mark.parametrize("flows", [("up", "down"), ("down",), ("up",)])
def test_a_half_open_link_is_noticed_by_both_sides(flows: tuple[str, ...]) -> None:
    async def main() -> None:
        held = Held()
        limits = LinkLimits(idle=0.2)
        async with (
            serving(held, limits=limits) as server,
            relayed(server) as (relay, address),
            peers(address, limits=limits) as pool,
        ):
            call = asyncio.create_task(pool.call("b", "slow", deadline=DEADLINE))
            await held.begun.wait()
            relay.silence(*flows)
            with pytest.raises(LinkLost) as caught:
                await call
            assert caught.value.may_have_run
            if "up" in flows:
                await until(lambda: server.links == {})
                assert held.stopped.is_set()

    run(main())


def test_an_idle_link_is_kept_up_by_pings() -> None:
    async def main() -> None:
        limits = LinkLimits(idle=0.1)
        async with (
            serving(limits=limits) as server,
            peers(server, limits=limits) as pool,
        ):
            await pool.call("b", "m", deadline=DEADLINE)
            frames = server._local.counters.frames_in
            await until(lambda: server._local.counters.frames_in >= frames + 6)
            assert pool.connected == ["b"]
            assert server._local.counters.accepted == 1

    run(main())


def test_a_peer_that_takes_nothing_loses_the_link() -> None:
    """It sends pings all the while, and asks for more: only its reading has stopped."""

    async def main() -> None:
        limits = LinkLimits(window=64 * MIB, stall=0.3, idle=2.0, write_buffer=256 * 1024)
        made = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal made
            while True:
                made += 65536
                yield bytes(65536)

        async def handler(peer: str, method: str, args: dict[str, Any], body: Body) -> Reply:
            return Reply({}, endless())

        async with (
            serving(handler, limits=limits) as server,
            relayed(server) as (relay, address),
            peers(address, limits=limits) as pool,
        ):
            answer = await pool.call("b", "m", deadline=DEADLINE)
            relay.silence("down")
            began = time.monotonic()
            await until(lambda: server.links == {})
            assert server._local.counters.lost == 1
            assert time.monotonic() - began < DEADLINE
            assert made < 40 * MIB  # what the sockets hold, the buffer, and what was read before
            relay.cut()
            with pytest.raises(LinkLost):
                await answer.body.read(limit=1 << 40)

    run(main())


def test_replies_do_not_pile_up_for_a_peer_that_does_not_read_them() -> None:
    async def main() -> None:
        limits = LinkLimits(write_buffer=64 * 1024, stall=30.0, idle=30.0)
        reply = {"x": bytes(200_000)}
        served = 0

        async def handler(peer: str, method: str, args: dict[str, Any], body: Body) -> Reply:
            nonlocal served
            served += 1
            if served % 2:
                raise MycoError("x" * 2000)
            return Reply(reply)

        async with (
            serving(handler, limits=limits) as server,
            relayed(server) as (relay, address),
            peers(address) as pool,
        ):
            with contextlib.suppress(RequestError):
                await pool.call("b", "m", deadline=DEADLINE)
            relay.silence("down")
            calls = [
                asyncio.create_task(pool.call("b", "m", deadline=DEADLINE)) for _ in range(2000)
            ]
            await until(lambda: served > 30)
            (link,) = server._links["a"]
            before = -1
            while served != before:  # until it stands still
                before = served
                await asyncio.sleep(0.1)
            assert link._transport.get_write_buffer_size() < 40 * len(reply["x"])
            assert served < 2000
            relay.cut()
            await asyncio.gather(*calls, return_exceptions=True)

    run(main())
