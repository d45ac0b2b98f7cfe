"""``python -m netlab.load``: the load clients as commands. Their contract: see the package.

argparse rather than click: a client's start-up is part of every test and of every demo.
Exit status 0: no connection lost and no byte wrong. 1: something was; the summary says what.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

from mycoproxy.errors import MycoError
from netlab.load.checker import CheckerOptions, check
from netlab.load.lifetime import Lifetime, say_ready, say_summary
from netlab.load.plan import Preloaded
from netlab.load.preload import preload, verify
from netlab.load.redis_cli import RedisCliOptions, redis_benchmark, redis_cli
from netlab.load.samples import SampleWriter
from netlab.load.summary import ClientSummary
from netlab.load.transfer import TransferOptions, download, upload

Client = Callable[[Lifetime, SampleWriter], Coroutine[Any, Any, ClientSummary]]


def _parser() -> argparse.ArgumentParser:
    server = argparse.ArgumentParser(add_help=False)
    server.add_argument("--host", required=True, help="the server's address, IPv4 or IPv6")
    server.add_argument("--port", type=int, default=6379)
    server.add_argument("--seconds", type=float, default=600, help="end by then at the latest")
    server.add_argument("--stdin-stops", action="store_true", help="end when standard input does")
    keys = argparse.ArgumentParser(add_help=False)
    keys.add_argument("--keys", type=int, default=100_000, help="preloaded keys")
    keys.add_argument("--value-bytes", type=int, default=1000, help="bytes in each of them")
    keys.add_argument("--seed", type=int, default=0)
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--name", required=True, help="the client's name; its keys carry it")
    named.add_argument("--group", default="service", help="the path it takes: service, direct")
    named.add_argument("--samples", type=Path, help="write samples to this file")
    transfer = argparse.ArgumentParser(add_help=False)
    transfer.add_argument("--size", type=int, default=64 << 20, help="bytes of the value")
    transfer.add_argument("--rate", type=float, default=16e6, help="bytes per second")
    transfer.add_argument("--seed", type=int, default=0)
    transfer.add_argument("--buffer-bytes", type=int, default=256 << 10, help="0: the kernel's")
    transfer.add_argument("--once", action="store_true", help="one transfer only")

    parser = argparse.ArgumentParser(prog="python -m netlab.load", description=__doc__)
    commands = parser.add_subparsers(dest="client", required=True)
    commands.add_parser("preload", parents=[server, keys], help="fill the server with keys")
    commands.add_parser("verify", parents=[server, keys], help="read all keys, compare every byte")
    checker = commands.add_parser(
        "checker", parents=[server, named, keys], help="many connections; check every answer"
    )
    checker.add_argument("--connections", type=int, default=25)
    checker.add_argument("--think", type=float, default=0.02, help="mean pause, seconds")
    checker.add_argument("--drain", type=float, default=5, help="wait for answers at the end, s")
    cli = commands.add_parser("redis-cli", parents=[server, named], help="watch redis-cli count")
    cli.add_argument("--interval", type=float, default=0.02, help="pause, seconds")
    benchmark = commands.add_parser(
        "benchmark", parents=[server, named], help="redis-benchmark, as fast as it can"
    )
    benchmark.add_argument("--connections", type=int, default=4)
    commands.add_parser(
        "download", parents=[server, named, transfer], help="read a large value slowly, repeatedly"
    )
    commands.add_parser(
        "upload", parents=[server, named, transfer], help="write a large value slowly, repeatedly"
    )
    return parser


def _checker(options: argparse.Namespace) -> Client:
    checker = CheckerOptions(
        host=options.host,
        port=options.port,
        connections=options.connections,
        think_seconds=options.think,
        preloaded=Preloaded(options.keys, options.value_bytes, options.seed),
        name=options.name,
        group=options.group,
        drain_seconds=options.drain,
    )
    return lambda lifetime, out: check(checker, lifetime, out)


def _redis_cli(options: argparse.Namespace) -> Client:
    cli = RedisCliOptions(options.host, options.port, options.interval, options.name, options.group)
    return lambda lifetime, out: redis_cli(cli, lifetime, out)


def _benchmark(options: argparse.Namespace) -> Client:
    cli = RedisCliOptions(options.host, options.port, 0, options.name, options.group)
    return lambda lifetime, _: redis_benchmark(cli, options.connections, lifetime)


def _transfer(options: argparse.Namespace) -> Client:
    transfer = TransferOptions(
        host=options.host,
        port=options.port,
        size=options.size,
        rate=options.rate,
        name=options.name,
        group=options.group,
        seed=options.seed,
        buffer_bytes=options.buffer_bytes,
        repeat=not options.once,
    )
    direction = download if options.client == "download" else upload
    return lambda lifetime, out: direction(transfer, lifetime, out)


_CLIENTS: dict[str, tuple[Callable[[argparse.Namespace], Client], str]] = {
    "checker": (_checker, "requests"),
    "redis-cli": (_redis_cli, "requests"),
    "benchmark": (_benchmark, "requests"),
    "download": (_transfer, "progress"),
    "upload": (_transfer, "progress"),
}


async def _run(options: argparse.Namespace) -> ClientSummary:
    make, kind = _CLIENTS[options.client]
    lifetime = Lifetime(seconds=options.seconds, stdin_stops=options.stdin_stops)
    # A bug in a callback must end the client with a traceback, not leave it silently idle.
    bugs: list[dict[str, Any]] = []

    def bug(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        bugs.append(context)
        lifetime.stop(f"bug: {context['message']}")

    asyncio.get_running_loop().set_exception_handler(bug)
    with SampleWriter(options.samples, kind=kind, name=options.name, group=options.group) as out:
        summary = await make(options)(lifetime, out)
    if bugs:
        raise bugs[0].get("exception") or RuntimeError(bugs[0]["message"])
    return summary


def main() -> int:
    """Run the client that the command line names. The exit status."""
    options = _parser().parse_args()
    try:
        if options.client in ("preload", "verify"):
            say_ready()
            every_key = preload if options.client == "preload" else verify
            summary = every_key(
                options.host,
                options.port,
                Preloaded(options.keys, options.value_bytes, options.seed),
                seconds=options.seconds,
            )
        else:
            summary = uvloop.run(_run(options))
    except MycoError as error:
        sys.stderr.write(f"netlab.load {options.client}: {error}\n")
        return error.exit_status
    say_summary(summary)
    return 0 if summary.ok else 1


if __name__ == "__main__":
    sys.exit(main())
