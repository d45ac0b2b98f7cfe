"""What one idle connection costs: time to capture and to establish it, and memory."""

import gc
import socket
import time
import tracemalloc
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

from mycoproxy import tcp
from netlab.tcp_bench.child import Child
from netlab.tcp_bench.connections import connected, read_settings
from netlab.tcp_bench.places import Places


class Time(NamedTuple):
    """Microseconds a connection. ``options`` and ``capture`` together are ``tcp.capture`` as it is
    called by who has nothing read beforehand."""

    options: float
    capture: float
    establish: float


class Memory(NamedTuple):
    """Bytes a connection: the highest mark of Python's heap while all are captured and encoded,
    above what it was, and the length of the encoding."""

    heap: float
    encoded: float


def capture_and_establish(places: Places, peer: Child, count: int) -> Time:
    """Capture ``count`` idle connections, then establish all, in one process, one thread a time.

    Into sockets that are there already. Raises ``MycoError``, ``OSError``.
    """
    with ExitStack() as stack:
        socks = stack.enter_context(connected(places, peer, count))
        fresh: list[socket.socket] = places.target.call(_sockets, count)
        for sock in fresh:
            stack.callback(sock.close)
        gc.collect()
        gc.disable()
        try:
            begin = time.perf_counter()
            settings = places.source.call(_read_settings, socks)
            read = time.perf_counter()
            states = places.source.call(_capture, socks, settings)
            captured = time.perf_counter()
            places.target.call(_establish, fresh, states)
            end = time.perf_counter()
        finally:
            gc.enable()
    times = (read - begin, captured - read, end - captured)
    return Time(*(seconds / count * 1e6 for seconds in times))


def memory(places: Places, peer: Child, count: int) -> Memory:
    """Capture and encode ``count`` idle connections with every allocation counted."""
    with connected(places, peer, count) as socks:
        places.source.call(lambda: tcp.encode(tcp.capture(socks[0], peek=True)))
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            settings = places.source.call(_read_settings, socks)
            states = places.source.call(_capture, socks, settings)
            encoded = [tcp.encode(state) for state in states]
            highest = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    return Memory((highest - before) / count, sum(map(len, encoded)) / count)


def _sockets(count: int) -> list[socket.socket]:
    return [socket.socket() for _ in range(count)]


def _read_settings(socks: Sequence[socket.socket]) -> list[tcp.Settings]:
    return [read_settings(sock) for sock in socks]


def _capture(
    socks: Sequence[socket.socket], settings: Sequence[tcp.Settings]
) -> list[tcp.TcpState]:
    return [tcp.capture(sock, settings=each) for sock, each in zip(socks, settings, strict=True)]


def _establish(socks: Sequence[socket.socket], states: Sequence[tcp.TcpState]) -> None:
    for sock, state in zip(socks, states, strict=True):
        tcp.establish(sock, state)
