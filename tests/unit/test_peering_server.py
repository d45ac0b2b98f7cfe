"""The server's bounds, and the pool of links of the client's side."""

import asyncio
import contextlib
import ssl
from typing import Any

import pytest
from test_peering_link import Held, until
from test_peering_tls import (
    DEADLINE,
    certificate,
    context,
    echo,
    issue,
    peers,
    run,
    serving,
)

from mycoproxy.peering import (
    Body,
    DeadlineError,
    HandshakeError,
    LinkLimits,
    LinkLost,
    PeerServer,
    Reply,
    ServerLimits,
)
from mycoproxy.peering.server import _host
from mycoproxy.peering.serving import agreement

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def silent(server: PeerServer, source: str = "127.0.0.1") -> Streams:
    """A connection that says nothing."""
    return await asyncio.open_connection(*server.addresses[0], local_addr=(source, 0))


async def is_closed(streams: Streams) -> bool:
    with contextlib.suppress(ConnectionError):
        return await streams[0].read() == b""
    return True


def test_strangers_are_bounded_and_the_oldest_of_the_most_goes() -> None:
    async def main() -> None:
        limits = ServerLimits(strangers=10)
        async with serving(server_limits=limits) as server, peers(server) as pool:
            other = await silent(server, "127.0.0.2")
            flood = []
            for _ in range(30):
                flood.append(await silent(server))
                # It is taken when the server counts it.
                await until(lambda: server._local.counters.accepted == len(flood) + 1)
            assert server.strangers <= 10
            async with asyncio.timeout(DEADLINE):
                for streams in flood[:21]:
                    assert await is_closed(streams)
            assert server._local.counters.refused == {"crowded": 21}
            assert not other[0].at_eof()
            # A good peer comes in, at the cost of one of the flood.
            assert (await pool.call("b", "m", deadline=DEADLINE)).result["peer"] == "a"
            assert not other[0].at_eof()
            for _, writer in [other, *flood]:
                writer.close()

    run(main())


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("fd00:1:2:3::1", _host("fd00:1:2:3:ffff::9")),
        ("", ""),
    ],
)
def test_a_host_is_an_address_or_a_64(address: str, host: str) -> None:
    assert _host(address) == host
    assert _host("fd00:1:2:3::1") != _host("fd00:1:2:4::1")


def test_a_stranger_has_to_be_done_within_the_deadline() -> None:
    async def main() -> None:
        limits = LinkLimits(handshake=0.2, linger=0.1)
        async with serving(limits=limits) as server:
            streams = await silent(server)
            async with asyncio.timeout(DEADLINE):
                assert await is_closed(streams)
            streams[1].close()
            await until(lambda: server.strangers == 0)
            assert server._local.counters.refused == {"deadline": 1}

    run(main())


def test_a_peer_that_says_no_hello_has_to_go() -> None:
    async def main() -> None:
        async with serving(limits=LinkLimits(hello=0.2, linger=0.1)) as server:
            made = context("client", certificate("a"))
            reader, writer = await asyncio.open_connection(*server.addresses[0], ssl=made)
            async with asyncio.timeout(DEADLINE):
                await is_closed((reader, writer))
            assert server._local.counters.refused == {"deadline": 1}
            assert server.links == {}
            writer.close()

    run(main())


def test_when_it_is_full_more_links_are_refused() -> None:
    async def main() -> None:
        limits = ServerLimits(links=1)
        async with (
            serving(server_limits=limits) as server,
            peers(server) as first,
            peers(server, node="c") as second,
        ):
            await first.call("b", "m", deadline=DEADLINE)
            with pytest.raises(LinkLost, match="b has 1 links already") as caught:
                await second.call("b", "m", deadline=DEADLINE)
                await second.call("b", "m", deadline=DEADLINE)
            assert caught.value.may_have_run in (False, True)
            await first.call("b", "m", deadline=DEADLINE)
            await until(lambda: server.links == {"a": 1})
            assert server._local.counters.refused["busy"] >= 1

    run(main())


def test_the_oldest_link_of_a_node_gives_way_to_a_newer_one() -> None:
    async def main() -> None:
        limits = ServerLimits(links_per_node=2)
        async with (
            serving(server_limits=limits) as server,
            peers(server) as one,
            peers(server) as two,
            peers(server) as three,
        ):
            for pool in (one, two, three):
                await pool.call("b", "m", deadline=DEADLINE)
            await until(lambda: not one.connected)
            assert server.links == {"a": 2}
            assert two.connected
            assert three.connected

    run(main())


def test_a_node_that_is_dropped_loses_its_links() -> None:
    async def main() -> None:
        async with (
            serving() as server,
            peers(server) as pool,
            peers(server, node="c") as other,
        ):
            await pool.call("b", "m", deadline=DEADLINE)
            await other.call("b", "m", deadline=DEADLINE)
            server.drop("a")
            await until(lambda: not pool.connected)
            assert other.connected
            assert server.links == {"c": 1}

    run(main())


def test_the_server_s_goodbye_lets_calls_end_and_takes_no_more() -> None:
    async def main() -> None:
        held = Held()
        async with serving(held) as server, peers(server) as pool:
            call = asyncio.create_task(pool.call("b", "slow", deadline=DEADLINE))
            await held.begun.wait()
            closing = asyncio.create_task(server.close(grace=DEADLINE))
            await until(lambda: not pool.connected)
            with pytest.raises(LinkLost) as caught:
                await pool.call("b", "quick", deadline=DEADLINE)
            assert not caught.value.may_have_run
            assert not call.done()
            held.go.set()
            assert (await call).result == {"done": "slow"}
            async with asyncio.timeout(DEADLINE):
                await closing
            assert server._local.counters.lost == 0

    run(main())


def test_what_outlasts_the_grace_is_stopped() -> None:
    async def main() -> None:
        held = Held()
        async with serving(held) as server, peers(server) as pool:
            call = asyncio.create_task(pool.call("b", "slow", deadline=DEADLINE))
            await held.begun.wait()
            await server.close(grace=0.05)
            assert held.stopped.is_set()
            with pytest.raises(LinkLost) as caught:
                await call
            assert caught.value.may_have_run

    run(main())


def test_handlers_see_what_was_agreed() -> None:
    async def handler(peer: str, method: str, args: dict[str, Any], body: Body) -> Reply:
        return Reply({"features": sorted(agreement.get().features)})

    async def main() -> None:
        async with (
            serving(handler, features=frozenset({"udp", "zstd"})) as server,
            peers(server, features=frozenset({"udp", "new"})) as pool,
        ):
            answer = await pool.call("b", "m", deadline=DEADLINE)
            assert answer.result == {"features": ["udp"]}

    run(main())


# Certificates are exchanged without a restart.


def test_new_links_use_the_new_context_and_old_ones_go_on() -> None:
    async def main() -> None:
        new_authority = issue("new authority")
        async with serving() as server, peers(server) as pool:
            await pool.call("b", "m", deadline=DEADLINE)
            server.set_context(context("server", issue("b", new_authority), new_authority))
            await pool.call("b", "m", deadline=DEADLINE)
            assert server._local.counters.accepted == 1
            async with peers(server) as old:
                with pytest.raises(HandshakeError):
                    await old.call("b", "m", deadline=DEADLINE)
            pool.set_context(context("client", issue("a", new_authority), new_authority))
            await pool.call("b", "m", deadline=DEADLINE)
            await until(lambda: server.links == {"a": 1})

    run(main())


def test_calls_that_run_go_on_when_the_client_s_context_is_exchanged() -> None:
    async def main() -> None:
        held = Held()
        async with serving(held) as server, peers(server) as pool:
            call = asyncio.create_task(pool.call("b", "slow", deadline=DEADLINE))
            await held.begun.wait()
            pool.set_context(context("client", certificate("a")))
            await pool.call("b", "quick", deadline=DEADLINE)
            assert server.links == {"a": 2}
            held.go.set()
            assert (await call).result == {"done": "slow"}
            await until(lambda: server.links == {"a": 1})

    run(main())


# The pool.


def test_first_calls_at_once_share_one_dial() -> None:
    async def main() -> None:
        async with serving() as server, peers(server) as pool:
            await asyncio.gather(*(pool.call("b", "m", deadline=DEADLINE) for _ in range(50)))
            assert server._local.counters.accepted == 1
            assert pool._local.counters.dialled == 1

    run(main())


def test_a_node_that_is_not_there_was_never_sent_anything_and_is_not_hammered() -> None:
    async def main() -> None:
        async with serving() as server:
            address = server.addresses[0]
        async with peers(address) as pool:
            with pytest.raises(LinkLost, match=r"(?i)refused|connect") as caught:
                await pool.call("b", "m", deadline=DEADLINE)
            assert not caught.value.may_have_run
            assert caught.value.retry_after > 0
            with pytest.raises(LinkLost, match="not tried again") as caught:
                await pool.call("b", "m", deadline=DEADLINE)
            assert not caught.value.may_have_run
            assert pool._local.counters.dialled == 1

    run(main())


def test_a_node_that_comes_back_is_reached_again() -> None:
    async def main() -> None:
        async with serving() as server:
            address = server.addresses[0]
            async with peers(address) as pool:
                await pool.call("b", "m", deadline=DEADLINE)
                await server.close(grace=1)
                await until(lambda: not pool.connected)
                with pytest.raises(LinkLost):
                    await pool.call("b", "m", deadline=DEADLINE)
                async with serving(port=address[1]), asyncio.timeout(DEADLINE):
                    while True:
                        try:
                            answer = await pool.call("b", "m", deadline=DEADLINE)
                        except LinkLost as error:
                            assert not error.may_have_run
                            await asyncio.sleep(error.retry_after)
                        else:
                            break
                    assert answer.result["peer"] == "a"

    run(main())


def test_a_dial_outlives_a_caller_that_gave_up() -> None:
    async def main() -> None:
        async with serving() as server, peers(server) as pool:
            with pytest.raises(DeadlineError) as caught:
                await pool.call("b", "m", deadline=0.0)
            assert not caught.value.may_have_run
            await pool.call("b", "m", deadline=DEADLINE)
            assert server._local.counters.accepted == 1

    run(main())


def test_a_closed_pool_calls_nobody() -> None:
    async def main() -> None:
        async with serving() as server, peers(server) as pool:
            await pool.call("b", "m", deadline=DEADLINE)
            await pool.close(grace=1)
            with pytest.raises(LinkLost, match="closes"):
                await pool.call("b", "m", deadline=DEADLINE)
            await until(lambda: server.links == {})
            assert server._local.counters.lost == 0

    run(main())


def test_a_server_that_answers_nonsense_ends_only_its_link() -> None:
    """It has a good certificate, and sends anything but the protocol."""

    async def nonsense(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    async def main() -> None:
        made: ssl.SSLContext = context("server", certificate("b"))
        other = await asyncio.start_server(nonsense, "127.0.0.1", 0, ssl=made)
        async with serving(echo) as server, peers(server) as good:
            async with peers(other.sockets[0].getsockname()[:2]) as pool:
                with pytest.raises(LinkLost, match="1213486160 bytes"):
                    await pool.call("b", "m", deadline=DEADLINE)
            await good.call("b", "m", deadline=DEADLINE)
        other.close()
        await other.wait_closed()

    run(main())
