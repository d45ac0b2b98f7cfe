"""The program's event loop: listeners, streams, a beat, and the control socket.

One thread, one ``select.epoll``. The beat is a deadline of the wait and no timer of the kernel's:
a process that stood still (frozen, dumped, restored) does not make up for the beats it missed.
"""

import argparse
import errno
import json
import os
import select
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from netlab.paths.end.stream import StrangerError, Stream

_CONTROL_SECONDS = 5.0  # for a command that has begun, and for taking its answer
_BACKLOG = 512


class End:
    """The program. ``beat`` is seconds; ``port`` is listened on for IPv4 and IPv6."""

    def __init__(self, port: int, control: Path, beat: float, *, stdin_stops: bool) -> None:
        self._beat = beat
        self._epoll = select.epoll()
        self._streams: dict[int, Stream] = {}
        self._all: list[Stream] = []
        self._listeners = {each.fileno(): each for each in (_listen(port, 4), _listen(port, 6))}
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        control.unlink(missing_ok=True)
        self._control.bind(str(control))
        self._control.listen(8)
        self._going = True
        for number in (*self._listeners, self._control.fileno()):
            self._epoll.register(number, select.EPOLLIN)
        if stdin_stops:
            self._epoll.register(0, select.EPOLLIN)

    def run(self) -> None:
        """Until it is told to quit, or standard input ends."""
        due = time.monotonic() + self._beat
        while self._going:
            events = self._epoll.poll(max(due - time.monotonic(), 0))
            now = time.monotonic()
            for number, event in events:
                self._handle(number, event, now)
            if now >= due:
                for stream in list(self._streams.values()):
                    stream.beat()
                    self._forget_ended(stream)
                due = max(due + self._beat, now)

    def _handle(self, number: int, event: int, now: float) -> None:
        if number in self._streams:
            self._serve(number, event, now)
        elif number in self._listeners:
            self._accept(self._listeners[number])
        elif number == self._control.fileno():
            self._obey(now)
        elif number == 0 and not os.read(0, 4096):
            self._going = False

    def _accept(self, listener: socket.socket) -> None:
        with suppress(BlockingIOError, ConnectionAbortedError):
            self._add(Stream(listener.accept()[0]), select.EPOLLIN)

    def _add(self, stream: Stream, events: int) -> None:
        number = stream.socket.fileno()
        self._streams[number] = stream
        self._all.append(stream)
        self._epoll.register(number, events)

    def _serve(self, number: int, event: int, now: float) -> None:
        stream = self._streams[number]
        if event & select.EPOLLOUT:  # connected, or not: asked for by the opener only
            failure = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failure:
                stream.failed_to_connect(failure)
            else:
                self._epoll.modify(number, select.EPOLLIN)
                stream.greet()
        elif event:
            try:
                stream.read(now)
            except StrangerError:
                stream.reset()
                self._all.remove(stream)
        self._forget_ended(stream, number)

    def _forget_ended(self, stream: Stream, number: int | None = None) -> None:
        """A closed descriptor has left epoll by itself."""
        if not stream.ended:
            return
        if number is None:
            number = next(each for each, other in self._streams.items() if other is stream)
        del self._streams[number]
        if stream.number < 0 and stream in self._all:  # it never said who it was
            self._all.remove(stream)

    # --- what it is told ------------------------------------------------------------------

    def _obey(self, now: float) -> None:
        connection, _ = self._control.accept()
        with connection:
            connection.settimeout(_CONTROL_SECONDS)
            # Whoever asks may be gone before it has the answer: that is no concern of ours.
            with suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
                with connection.makefile("rb") as lines:
                    line = lines.readline()
                if line:
                    answer = self._command(json.loads(line), now)
                    connection.sendall(json.dumps(answer).encode() + b"\n")

    def _command(self, command: dict[str, Any], now: float) -> object:
        do = command["do"]
        if do == "open":
            for wanted in command["connections"]:
                self._open(wanted)
        elif do == "status":
            return [[each.number, each.opener, each.open, each.ended] for each in self._all]
        elif do == "report":
            return [stream.report() for stream in self._all]
        elif do == "forget":
            for stream in self._streams.values():
                stream.socket.close()
            self._streams.clear()
            self._all.clear()
        elif do == "quit":
            self._going = False
        else:
            self._each(command, now)
        return "done"

    def _each(self, command: dict[str, Any], now: float) -> None:
        """What is for all streams, or for those that ``of`` names: [connection, opener]."""
        wanted = command.get("of")
        for stream in self._all:
            if stream.ended or (
                wanted is not None and [stream.number, stream.opener] not in wanted
            ):
                continue
            number = stream.socket.fileno()
            match command["do"]:
                case "begin":
                    stream.begin(now)
                case "ask":
                    stream.ask(now)
                case "stop":
                    stream.stop()
                case "spoil":
                    stream.spoil()
                case "reset":
                    stream.reset()
                case unknown:
                    raise ValueError(f"no command {unknown!r}")
            self._forget_ended(stream, number)

    def _open(self, wanted: dict[str, Any]) -> None:
        host = wanted["host"]
        connection = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        hello = (wanted["connection"], wanted["opener_bytes"], wanted["acceptor_bytes"])
        if wanted["from_port"]:
            # Another connection of it, to another address, may have that port too.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            connection.bind(("", wanted["from_port"]))
        stream = Stream(connection, hello=hello)
        self._add(stream, select.EPOLLOUT)
        failure = connection.connect_ex((host, wanted["port"]))
        if failure not in (0, errno.EINPROGRESS):
            number = connection.fileno()
            stream.failed_to_connect(failure)
            self._forget_ended(stream, number)


def _listen(port: int, version: int) -> socket.socket:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    listener = socket.create_server(("", port), family=family, backlog=_BACKLOG)
    listener.setblocking(False)
    return listener


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m netlab.paths.end")
    parser.add_argument("--port", type=int, required=True, help="listen on it, IPv4 and IPv6")
    parser.add_argument("--control", type=Path, required=True, help="the control socket's path")
    parser.add_argument("--beat", type=float, default=0.01, help="seconds between two sends")
    parser.add_argument("--stdin-stops", action="store_true", help="end when standard input does")
    options = parser.parse_args()
    End(options.port, options.control, options.beat, stdin_stops=options.stdin_stops).run()


if __name__ == "__main__":
    main()
