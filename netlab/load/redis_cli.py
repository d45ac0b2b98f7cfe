"""Debian's own clients as load: redis-cli, watched line by line, and redis-benchmark.

redis-cli repeats INCR over one connection; the answers must be consecutive numbers. When its
connection breaks it ends (7.0, on an end of stream) or reconnects in silence. So the socket that it
holds is looked at with every line (``/proc/PID/fd``): another socket is a lost connection. The
count of SYNs in a packet capture says the same independently.

When it sends is not seen from outside. It sleeps ``interval`` after each answer and then asks; so a
request is taken to be sent one interval after the answer before it (never later than its answer).
"""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from mycoproxy.errors import MycoError
from netlab.load.content import count_wrong
from netlab.load.lifetime import DRAIN_SECONDS, Lifetime, say_ready
from netlab.load.samples import SampleWriter, Verdict
from netlab.load.summary import ClientSummary, LostConnection

_KEY = "count:redis-cli:{name}"


@dataclass(frozen=True)
class RedisCliOptions:
    """``interval`` is the pause between two requests in seconds (redis-cli's ``-i``)."""

    host: str
    port: int
    interval: float
    name: str
    group: str


class Count:
    """Checks that the lines are consecutive numbers. Pure."""

    def __init__(self) -> None:
        self.next: int | None = None
        self.lines = 0
        self.bytes_checked = 0
        self.bytes_wrong = 0
        self.wrong: list[str] = []

    def line(self, line: bytes) -> bool:
        """Take redis-cli's next line; True if it is the number that must follow. The first number
        is taken as it is: the key may have been counted up before."""
        self.lines += 1
        if self.next is None and line.strip().isdigit():
            self.next = int(line)
        expected = b"%d\n" % (self.next or 0)
        self.bytes_checked += len(expected)
        if self.next is not None and line == expected:
            self.next += 1
            return True
        self.bytes_wrong += max(count_wrong(expected, line), 1)
        if len(self.wrong) < 10:
            self.wrong.append(f"line {self.lines}: {expected!r} expected, {line[:60]!r} found")
        return False


def held_sockets(pid: int) -> frozenset[str]:
    """The sockets among a process's descriptors, as ``socket:[inode]`` (proc(5), /proc/pid/fd)."""
    found = set()
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            target = str(descriptor.readlink())
            if target.startswith("socket:"):
                found.add(target)
    except (FileNotFoundError, ProcessLookupError):
        return frozenset()
    return frozenset(found)


def local_port_of(pid: int, inode_name: str) -> int:
    """The local port of a process's TCP socket, from /proc/PID/net/tcp and tcp6; 0 if not found."""
    inode = inode_name.removeprefix("socket:[").removesuffix("]")
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = row.split()
            if fields[9] == inode:
                return int(fields[1].rsplit(":", 1)[1], 16)
    return 0


class _Watched:
    """redis-cli as it runs: its lines, its errors, the socket it holds."""

    def __init__(
        self, options: RedisCliOptions, child: asyncio.subprocess.Process, out: SampleWriter
    ) -> None:
        self.options = options
        self.child = child
        self.out = out
        self.count = Count()
        self.lost: list[LostConnection] = []
        self.local_ports: list[int] = []
        self.longest_wait = 0.0
        self.last_answer = time.monotonic()
        self._sockets: frozenset[str] = frozenset()

    async def read_answers(self, limit: int | None = None) -> int:
        """Read until redis-cli ends, or ``limit`` answers; how many there were."""
        before = self.count.lines
        assert self.child.stdout is not None
        async for line in self.child.stdout:
            now = time.monotonic()
            right = self.count.line(line)
            sent = min(self.last_answer + self.options.interval, now)
            self.longest_wait = max(self.longest_wait, now - sent)
            self.last_answer = now
            verdict = Verdict.RIGHT if right else Verdict.WRONG
            self.out.request(0, sent, now, verdict, len(line))
            self._look_at_socket(now)
            if self.count.lines == 1:
                say_ready()
            if limit is not None and self.count.lines - before >= limit:
                break
        return self.count.lines - before

    def _look_at_socket(self, now: float) -> None:
        held = held_sockets(self.child.pid)
        if held == self._sockets or not held:
            return
        # Its standard output may be a socket as well (uvloop's pipes are): only TCP has a port.
        ports = {local_port_of(self.child.pid, each) for each in held - self._sockets} - {0}
        if self._sockets and ports:
            self.lost.append(LostConnection(0, "redis-cli has reconnected", now))
        self._sockets = held
        self.local_ports += sorted(ports)

    async def one_more_answer(self, seconds: float) -> None:
        """Wait for the next answer: the proof that the connection still works at the end."""
        reading = asyncio.ensure_future(self.read_answers(limit=1))
        done, _ = await asyncio.wait({reading}, timeout=seconds)
        if done and reading.result():
            return
        reading.cancel()
        now = time.monotonic()
        sent = min(self.last_answer + self.options.interval, now)
        reason = f"no answer for {now - sent:.3f} s, at the end"
        self.lost.append(LostConnection(0, reason, now))
        self.out.request(0, sent, now, Verdict.UNANSWERED, 0)
        self.longest_wait = max(self.longest_wait, now - sent)

    async def read_errors(self) -> None:
        assert self.child.stderr is not None
        async for line in self.child.stderr:
            reason = f"redis-cli says: {line.decode(errors='replace').strip()}"
            self.lost.append(LostConnection(0, reason, time.monotonic()))


async def redis_cli(
    options: RedisCliOptions, lifetime: Lifetime, out: SampleWriter
) -> ClientSummary:
    """Run redis-cli until the lifetime ends."""
    started = time.monotonic()
    key = _KEY.format(name=options.name)
    arguments = [
        "-h",
        options.host,
        "-p",
        str(options.port),
        "-r",
        "-1",
        "-i",
        str(options.interval),
    ]
    child = await _start(["redis-cli", *arguments, "INCR", key])
    watched = _Watched(options, child, out)
    with lifetime.watched():
        answers = asyncio.ensure_future(watched.read_answers())
        errors = asyncio.ensure_future(watched.read_errors())
        ended_by_itself = await lifetime.until_stopping(answers, drain=0)
        if ended_by_itself:
            lost = LostConnection(0, "redis-cli ended by itself", time.monotonic())
            watched.lost.append(lost)
        else:
            await watched.one_more_answer(DRAIN_SECONDS + options.interval)
        await _end(child)
        await asyncio.wait({errors}, timeout=1)
        errors.cancel()
    return ClientSummary(
        client="redis-cli",
        name=options.name,
        group=options.group,
        connections=1,
        local_ports=tuple(watched.local_ports),
        lost=tuple(watched.lost),
        requests=watched.count.lines,
        bytes_checked=watched.count.bytes_checked,
        bytes_wrong=watched.count.bytes_wrong,
        wrong=tuple(watched.count.wrong),
        longest_wait_s=(round(watched.longest_wait, 6),),
        started=started,
        ended=time.monotonic(),
        stopped_by=lifetime.stopped_by or "redis-cli ended by itself",
    )


async def redis_benchmark(
    options: RedisCliOptions, connections: int, lifetime: Lifetime
) -> ClientSummary:
    """Run redis-benchmark (SET and GET, as fast as it can, in a loop) until the lifetime ends.

    It checks no answers and is not watched request by request. It ends with an error when one of
    its connections breaks: that is what is reported. ``details`` has its last line of figures.
    """
    started = time.monotonic()
    where = ["-h", options.host, "-p", str(options.port), "-c", str(connections)]
    child = await _start(["redis-benchmark", *where, "-t", "set,get", "-l", "-q", "-d", "512"])
    lost: list[LostConnection] = []
    said: list[bytes] = []

    async def read() -> None:
        assert child.stdout is not None
        while data := await child.stdout.read(4096):
            if not said:
                say_ready()
            said[:] = [line for line in data.replace(b"\r", b"\n").split(b"\n") if line.strip()][
                -1:
            ]

    with lifetime.watched():
        if await lifetime.until_stopping(asyncio.ensure_future(read()), drain=0.1):
            assert child.stderr is not None
            reason = (await child.stderr.read()).decode(errors="replace").strip()
            reason = f"redis-benchmark ended by itself: {reason or 'it says nothing'}"
            lost.append(LostConnection(0, reason, time.monotonic()))
        await _end(child)
    return ClientSummary(
        client="redis-benchmark",
        name=options.name,
        group=options.group,
        connections=connections,
        local_ports=(),
        lost=tuple(lost),
        requests=0,
        bytes_checked=0,
        bytes_wrong=0,
        wrong=(),
        longest_wait_s=(),
        started=started,
        ended=time.monotonic(),
        stopped_by=lifetime.stopped_by or "redis-benchmark ended by itself",
        details={"last_line": said[-1].decode(errors="replace").strip() if said else ""},
    )


async def _start(arguments: list[str]) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    try:
        return await asyncio.create_subprocess_exec(
            *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )
    except FileNotFoundError:
        raise MycoError(
            f"{arguments[0]} is not installed (Debian: apt install redis-tools)"
        ) from None


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        child.terminate()
        try:
            async with asyncio.timeout(2):
                await child.wait()
        except TimeoutError:
            child.kill()
    await child.wait()
