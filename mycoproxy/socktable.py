"""The addresses in use in a network namespace: TCP's for the preflight's "address taken", UDP's.

Read from ``/proc/thread-self/net/`` (proc_pid_net(5)), so call it on the namespace's worker:
``worker.call(addresses_in_use)``. A TCP socket that is bound but neither listens nor is connected
is not in there.
"""

import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from mycoproxy.addresses import Endpoint

_NET = Path("/proc/thread-self/net")
_TCP_LISTEN = 10  # include/net/tcp_states.h
_WORDS = {8: 1, 32: 4}


@dataclass(frozen=True, slots=True)
class AddressInUse:
    """A line of /proc/net/tcp. ``remote`` is None for a listening socket; ``inode`` is 0 for one
    that no descriptor refers to."""

    local: Endpoint
    remote: Endpoint | None
    state: int
    inode: int


def addresses_in_use() -> tuple[AddressInUse, ...]:
    """All TCP sockets of the calling thread's network namespace that have an address."""
    return _read("tcp", "tcp6")


def datagram_addresses_in_use() -> tuple[AddressInUse, ...]:
    """All UDP sockets of the calling thread's network namespace that are bound.

    ``remote`` is port 0 of no address unless they are connected.
    """
    return _read("udp", "udp6")


def _read(*names: str) -> tuple[AddressInUse, ...]:
    lines: list[str] = []
    for name in names:
        table = _NET / name
        if table.exists():  # no tcp6, udp6 where IPv6 is off
            lines += table.read_text().splitlines()[1:]
    return tuple(parse_line(line) for line in lines)


def parse_line(line: str) -> AddressInUse:
    """Read one line of /proc/net/tcp or tcp6."""
    _, local, remote, state, _, _, _, _, _, inode, *_ = line.split()
    listening = int(state, 16) == _TCP_LISTEN
    return AddressInUse(
        local=_endpoint(local),
        remote=None if listening else _endpoint(remote),
        state=int(state, 16),
        inode=int(inode),
    )


def _endpoint(text: str) -> Endpoint:
    """Addresses stand there as 32-bit words in the machine's byte order, ports in plain hex."""
    digits, port = text.split(":")
    count = _WORDS[len(digits)]
    words = (int(digits[8 * index : 8 * index + 8], 16) for index in range(count))
    family = socket.AF_INET if count == 1 else socket.AF_INET6
    # inet_ntop writes mapped addresses as getsockname does; ipaddress does not before 3.13.
    address = socket.inet_ntop(family, struct.pack(f"={count}I", *words))
    return Endpoint(address, int(port, 16))
