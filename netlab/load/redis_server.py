"""A redis-server of our own on loopback, to try the clients without a lab (and for their tests)."""

import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from mycoproxy.errors import MycoError
from netlab.load import resp


def redis_server_binary() -> str:
    """redis-server, or redis-check-rdb, which is the same program (redis' main() looks at argv[0])
    and comes with Debian's redis-tools. Raises ``MycoError`` if neither is installed."""
    for name in ("redis-server", "redis-check-rdb"):
        if found := shutil.which(name):
            return found
    raise MycoError("redis-server is not installed (Debian: apt install redis-server)")


class RedisServer:
    """A running redis-server, without persistence, on ``host`` and a free port."""

    def __init__(self, host: str = "127.0.0.1", *, ready_seconds: float = 10) -> None:
        self.host = host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.bind((host, 0))
            self.port: int = probe.getsockname()[1]
        options = ["--bind", host, "--port", str(self.port), "--save", "", "--appendonly", "no"]
        options += ["--protected-mode", "no"]  # else only loopback clients are served
        self.process = subprocess.Popen(
            ["redis-server", *options],
            executable=redis_server_binary(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd=Path("/"),
        )
        deadline = time.monotonic() + ready_seconds
        while True:
            try:
                answer = self.ask(b"PING")
                if answer != b"+PONG\r\n":
                    raise MycoError(f"it answers {answer!r} to PING")
            except (OSError, MycoError) as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.close()
                    raise MycoError(f"redis-server on {host} did not come up: {error}") from error
                time.sleep(0.01)
            else:
                return

    def ask(self, *arguments: bytes) -> bytes:
        """One command over a connection of its own; the raw answer."""
        with socket.create_connection((self.host, self.port), timeout=10) as connection:
            connection.sendall(resp.command(*arguments))
            answer = b""
            while resp.reply_end(answer) < 0:
                data = connection.recv(65536)
                if not data:
                    raise MycoError(f"redis-server closed the connection on {arguments[0]!r}")
                answer += data
            return answer

    def close(self) -> None:
        """Kill it. A SIGSTOPped one too."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
