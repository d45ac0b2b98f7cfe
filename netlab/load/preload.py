"""Fills a server with keys, and reads them all back to check them.

Pipelined: 100 MB take a second or two.
"""

import socket
import time

from mycoproxy.errors import MycoError
from netlab.load import resp
from netlab.load.content import content, count_wrong, key_name
from netlab.load.plan import Preloaded
from netlab.load.summary import ClientSummary, LostConnection

_BATCH_KEYS = 500
_RECV_BYTES = 1 << 20


def preload(host: str, port: int, preloaded: Preloaded, *, seconds: float) -> ClientSummary:
    """SET every key. The summary's ``details`` say how many bytes and how long it took."""
    return _all_keys("preload", host, port, preloaded, seconds=seconds)


def verify(host: str, port: int, preloaded: Preloaded, *, seconds: float) -> ClientSummary:
    """GET every key and compare every byte."""
    return _all_keys("verify", host, port, preloaded, seconds=seconds)


def _requests(client: str, keys: range, preloaded: Preloaded) -> tuple[bytes, list[bytes]]:
    values = [content(key_name(key), preloaded.value_bytes, preloaded.seed) for key in keys]
    if client == "preload":
        sent = [
            resp.command(b"SET", key_name(key), value)
            for key, value in zip(keys, values, strict=True)
        ]
        return b"".join(sent), [resp.OK] * len(keys)
    sent = [resp.command(b"GET", key_name(key)) for key in keys]
    return b"".join(sent), [resp.bulk(value) for value in values]


def _all_keys(
    client: str, host: str, port: int, preloaded: Preloaded, *, seconds: float
) -> ClientSummary:
    started = time.monotonic()
    lost: list[LostConnection] = []
    wrong: list[str] = []
    requests = checked = wrong_bytes = 0
    ports: tuple[int, ...] = ()
    try:
        with socket.create_connection((host, port), timeout=seconds) as connection:
            ports = (connection.getsockname()[1],)
            for first in range(0, preloaded.keys, _BATCH_KEYS):
                keys = range(first, min(first + _BATCH_KEYS, preloaded.keys))
                sent, expected = _requests(client, keys, preloaded)
                found = _exchange(connection, sent, len(keys), started + seconds)
                for key, want, got in zip(keys, expected, found, strict=True):
                    requests += 1
                    checked += len(want)
                    if got != want:
                        wrong_bytes += count_wrong(want, got)
                        wrong.append(f"{key_name(key).decode()}: {want[:40]!r}, found {got[:40]!r}")
    except (OSError, resp.ProtocolError, MycoError) as error:
        lost.append(LostConnection(0, str(error) or type(error).__name__, time.monotonic()))
    ended = time.monotonic()
    return ClientSummary(
        client=client,
        name=client,
        group="",
        connections=1,
        local_ports=ports,
        lost=tuple(lost),
        requests=requests,
        bytes_checked=checked,
        bytes_wrong=wrong_bytes,
        wrong=tuple(wrong[:10]),
        longest_wait_s=(),
        started=started,
        ended=ended,
        stopped_by="",
        details={
            "keys": preloaded.keys,
            "content_bytes": preloaded.keys * preloaded.value_bytes,
            "seconds": round(ended - started, 3),
        },
    )


def _exchange(connection: socket.socket, sent: bytes, answers: int, deadline: float) -> list[bytes]:
    # A batch of answers (500 values) may not fit the socket buffers while redis still reads the
    # batch of requests. redis then queues its output in memory, so sendall cannot deadlock.
    connection.settimeout(max(deadline - time.monotonic(), 0.001))
    connection.sendall(sent)
    buffer = bytearray()
    found: list[bytes] = []
    start = 0
    while len(found) < answers:
        end = resp.reply_end(buffer, start)
        if end < 0:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            data = connection.recv(_RECV_BYTES)
            if not data:
                raise MycoError("end of stream from the server")
            buffer += data
            continue
        found.append(bytes(buffer[start:end]))
        start = end
    return found
