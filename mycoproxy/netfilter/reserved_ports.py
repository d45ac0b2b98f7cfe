"""Keep the kernel from choosing certain local ports (net.ipv4.ip_local_reserved_ports, also IPv6).

A client whose connection is translated from A to B could open another connection, to B itself, from
the same port: its packets could not be told from the translated ones. A port that is reserved is
not chosen for a connect by itself (an explicit bind still gets it).

The sysctl belongs to the network namespace of the thread that opens it.
"""

import os
from collections.abc import Iterable

_SYSCTL = "/proc/sys/net/ipv4/ip_local_reserved_ports"

# The kernel gives out the list in one read only, cut where the reader's buffer ends. All ports,
# with their commas, fit in this.
_LONGEST_LIST_BYTES = 1 << 19


def reserve_ports(ports: Iterable[int]) -> set[int]:
    """Reserve ports in this thread's namespace. Returns those that were not reserved before."""
    wanted = set(ports)
    if not wanted:
        return set()
    reserved = _read()
    new = wanted - reserved
    if new:
        _write(reserved | new)
    return new


def release_ports(ports: Iterable[int]) -> None:
    """Let the kernel choose these ports again."""
    unwanted = set(ports)
    if unwanted:
        _write(_read() - unwanted)


def read_ranges(text: str) -> set[int]:
    """``1024,2000-2002`` as a set of ports."""
    ports: set[int] = set()
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            ports.update(range(int(first), int(last or first) + 1))
    return ports


def write_ranges(ports: Iterable[int]) -> str:
    """A set of ports in the kernel's notation, ending with a newline."""
    ranges: list[list[int]] = []
    for port in sorted(ports):
        if ranges and port == ranges[-1][1] + 1:
            ranges[-1][1] = port
        else:
            ranges.append([port, port])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in ranges) + "\n"


def _read() -> set[int]:
    handle = os.open(_SYSCTL, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_ranges(os.read(handle, _LONGEST_LIST_BYTES).decode())
    finally:
        os.close(handle)


def _write(ports: Iterable[int]) -> None:
    # The kernel takes a page at a time. A write at offset 0 replaces the list, one that goes on
    # adds to it (kernel/sysctl.c, proc_do_large_bitmap).
    handle = os.open(_SYSCTL, os.O_WRONLY | os.O_CLOEXEC)
    try:
        left = write_ranges(ports).encode()
        while left:
            left = left[os.write(handle, left) :]
    finally:
        os.close(handle)
