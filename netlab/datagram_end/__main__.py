"""A workload that speaks UDP, in every way that a move has to think of. The standard library alone.

Sockets bound to every address (``any4``, ``any6``, and ``dual``, which takes both), bound to the
pod's own address (``own4``, ``own6``), and connected ones to whomever it is told to call. All are
served alike, one text datagram at a time:

* ``echo N``: answered with ``echo N NAME``, the socket's name;
* ``play N``: from now on whoever sent it gets ``tick K N`` at every beat, with K counting up and
  the last N that came from there: a game, or a stream with feedback;
* ``call HOST PORT NAME``: a connected socket sends ``call K`` there at every beat;
* ``report``: answered with a JSON list of the sockets: where they are bound, what came in.

A beat is a deadline and no timer, so a process that stood still does not make up for it. The TCP
listener is there to tell that the program has started.
"""

import argparse
import json
import select
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

_LARGEST = 1 << 16
_IP_PKTINFO = 8  # include/uapi/linux/in.h
_ANYWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}

Address = tuple[Any, ...]


@dataclass
class _Socket:
    """``players``: who plays, with (ticks sent, last number that came)."""

    name: str
    sock: socket.socket
    calls: int = 0
    received: int = 0
    calling: bool = False
    last: str = ""
    sources: set[str] = field(default_factory=set)
    players: dict[Address, list[int]] = field(default_factory=dict)

    def beat(self) -> None:
        for address, state in self.players.items():
            state[0] += 1
            self._send(f"tick {state[0]} {state[1]}", address)
        if self.calling:
            self.calls += 1
            with suppress(OSError):  # ECONNREFUSED: nobody is there, yet
                self.sock.send(f"call {self.calls}".encode())

    def _send(self, text: str, address: Address) -> None:
        with suppress(OSError):
            self.sock.sendto(text.encode(), address)

    def serve(self, end: "End") -> None:
        try:
            data, address = self.sock.recvfrom(_LARGEST)
        except OSError:  # an ICMP error about something sent
            return
        self.received += 1
        self.sources.add(address[0])
        self.last = data.decode(errors="replace")[:100]
        match self.last.split():
            case ["echo", number]:
                self._send(f"echo {number} {self.name}", address)
            case ["play", number]:
                self.players.setdefault(address, [0, 0])[1] = int(number)
            case ["call", host, port, name]:
                end.call(host, int(port), name)
            case ["report"]:
                self._send(json.dumps(end.report()), address)

    def report(self) -> dict[str, object]:
        try:
            peer = list(self.sock.getpeername()[:2])
        except OSError:
            peer = []
        return {
            "name": self.name,
            "local": list(self.sock.getsockname()[:2]),
            "peer": peer,
            "calls": self.calls,
            "received": self.received,
            "sources": sorted(self.sources),
            "last": self.last,
            "pktinfo": self.sock.getsockopt(socket.IPPROTO_IP, _IP_PKTINFO),
            "tos": self.sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS),
        }


class End:
    """The program. ``beat`` is seconds; ``port`` is that of the sockets for every address."""

    def __init__(self, port: int, beat: float) -> None:
        self._beat = beat
        self._sockets: list[_Socket] = []
        self._listeners = [
            socket.create_server((address, port), family=family)
            for address, family in (("0.0.0.0", socket.AF_INET), ("::", socket.AF_INET6))
        ]
        self._bind("any4", socket.AF_INET, "0.0.0.0", port)
        self._bind("any6", socket.AF_INET6, "::", port)
        self._bind("dual", socket.AF_INET6, "::", port + 2, both=True)
        for name, family in (("own4", socket.AF_INET), ("own6", socket.AF_INET6)):
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((_ANYWHERE[family], 9))
                self._bind(name, family, probe.getsockname()[0], port + 1)

    def _bind(self, name: str, family: int, address: str, port: int, *, both: bool = False) -> None:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        sock.bind((address, port))
        # What servers ask for: CRIU does not.
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xB8)
        self._sockets.append(_Socket(name, sock))

    def call(self, host: str, port: int, name: str) -> None:
        """Send to somebody at every beat, from a connected socket."""
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect((host, port))
        self._sockets.append(_Socket(name, sock, calling=True))

    def report(self) -> list[dict[str, object]]:
        """Of every socket."""
        return [each.report() for each in self._sockets]

    def run(self) -> None:
        """For ever."""
        due = time.monotonic() + self._beat
        while True:
            by_descriptor = {each.sock: each for each in self._sockets}
            wait = max(due - time.monotonic(), 0)
            ready, _, _ = select.select([*by_descriptor, *self._listeners], [], [], wait)
            for one in ready:
                if one in by_descriptor:
                    by_descriptor[one].serve(self)
                else:
                    one.accept()[0].close()
            now = time.monotonic()
            if now >= due:
                for each in self._sockets:
                    each.beat()
                due = max(due + self._beat, now)


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--beat", type=float, default=0.02)
    arguments = parser.parse_args()
    End(arguments.port, arguments.beat).run()


if __name__ == "__main__":
    main()
