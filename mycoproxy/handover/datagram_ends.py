"""The workload's UDP sockets in namespaces of this machine: where it was, and where it is."""

import os
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

from mycoproxy.addresses import Endpoint
from mycoproxy.handover.datagrams import DatagramEnd
from mycoproxy.marks import PLAYED
from mycoproxy.namespaces import NamespaceWorker
from mycoproxy.netfilter.elements import on_the_wire, packed
from mycoproxy.sockets import tasks_of
from mycoproxy.sockets.datagram import Datagram, HeldDatagramSocket, take_datagram_sockets
from mycoproxy.sockets.datagram_options import read_options, set_options
from mycoproxy.sockets.tasks import Task
from mycoproxy.tcp.segments import checksum_of

_UDP = struct.Struct("!HHHH")  # source port, destination port, length, checksum
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_TTL = 255
_DONT_FRAGMENT = 0x4000


class LocalDatagramSource:
    """See ``DatagramSource``. ``worker`` is in the workload's old namespace."""

    def __init__(self, worker: NamespaceWorker, init_pid: int) -> None:
        self._worker = worker
        self._init_pid = init_pid
        self._sockets: list[HeldDatagramSocket] = []

    async def collect(self) -> Sequence[DatagramEnd]:
        """See ``DatagramSource``."""
        return await self._worker.run(self._collect)

    def _collect(self) -> Sequence[DatagramEnd]:
        before = {_inode(one): one.dropped for one in self._sockets}
        self._close()
        self._sockets = take_datagram_sockets(self._tasks())
        for one in self._sockets:
            one.dropped = before.get(_inode(one), one.dropped)
        return [
            DatagramEnd(one.local, one.remote, one.names, read_options(one.sock))
            for one in self._sockets
        ]

    def _tasks(self) -> Iterator[Task]:
        """They are looked for only if somebody wants to know: it takes milliseconds."""
        yield from tasks_of(self._init_pid)

    async def arrived(self) -> Sequence[Datagram]:
        """See ``DatagramSource``."""
        return await self._worker.run(
            lambda: [datagram for one in self._sockets for datagram in one.arrived()]
        )

    async def drops(self) -> Mapping[Endpoint, int]:
        """See ``DatagramSource``."""
        counted = {one.local: one.drops() for one in self._sockets}
        return {local: count for local, count in counted.items() if count}

    async def close(self) -> None:
        """Close the duplicates, also of a ``collect`` that was given up."""
        await self._worker.run(self._close)

    def _close(self) -> None:
        sockets, self._sockets = self._sockets, []
        for one in sockets:
            one.sock.close()


def _inode(held: HeldDatagramSocket) -> int:
    return os.fstat(held.sock.fileno()).st_ino


class LocalDatagramTarget:
    """See ``DatagramTarget``. ``worker`` is in the workload's new namespace."""

    def __init__(self, worker: NamespaceWorker) -> None:
        self._worker = worker
        self._init_pid = 0
        self._pids: Sequence[int] = ()

    def found(self, init_pid: int, pids: Iterable[int]) -> None:
        """The copy is there; as ``LocalTarget.collect``."""
        self._init_pid, self._pids = init_pid, tuple(pids)

    async def restore(self, ends: Sequence[DatagramEnd]) -> Sequence[str]:
        """See ``DatagramTarget``. Raises ``OSError``."""
        return await self._worker.run(self._restore, ends)

    def _restore(self, ends: Sequence[DatagramEnd]) -> list[str]:
        remarks = []
        taken = take_datagram_sockets(tasks_of(self._init_pid, self._pids))
        copies = {name: held for held in taken for name in held.names}
        for end in ends:
            held = next((copies[name] for name in end.names if name in copies), None)
            if held is None:
                remarks.append(f"UDP {end.local}: the copy does not have this socket")
            elif refused := set_options(held.sock, end.options):
                remarks.append(f"UDP {end.local}: {', '.join(refused)} could not be set again")
        for held in taken:
            held.sock.close()
        return remarks

    async def deliver(self, datagrams: Sequence[Datagram]) -> None:
        """See ``DatagramTarget``. Raises ``OSError`` for the first that could not be delivered."""
        if datagrams:
            await self._worker.run(deliver, datagrams)


def deliver(datagrams: Sequence[Datagram]) -> None:
    """Hand datagrams to the UDP sockets of the calling thread's network namespace, over loopback.

    They go through its hooks, marked ``marks.PLAYED``. Needs CAP_NET_RAW. Raises ``OSError`` for
    the first that could not be sent; the others were.
    """
    raw: dict[int, socket.socket] = {}
    failures: list[OSError] = []
    try:
        for one in datagrams:
            version = one.flow.local.version
            if version not in raw:
                family = socket.AF_INET if version == 4 else socket.AF_INET6
                raw[version] = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
                raw[version].setsockopt(socket.SOL_SOCKET, socket.SO_MARK, PLAYED)
            local = on_the_wire(one.flow.local)
            try:
                raw[version].sendto(ip_packet(one), (local.address, 0))
            except OSError as error:
                failures.append(error)
    finally:
        for sock in raw.values():
            with suppress(OSError):
                sock.close()
    if failures:
        number = failures[0].errno or 0
        raise OSError(number, f"{len(failures)} datagrams not delivered: {os.strerror(number)}")


def ip_packet(datagram: Datagram) -> bytes:
    """The datagram from ``flow.remote`` to ``flow.local`` as an IP packet."""
    local, remote = (on_the_wire(end) for end in datagram.flow)
    addresses = packed(remote.address) + packed(local.address)
    length = _UDP.size + len(datagram.payload)
    pseudo = addresses + struct.pack("!II", length, socket.IPPROTO_UDP)
    blank = _UDP.pack(remote.port, local.port, length, 0) + datagram.payload
    # Zero stands for no checksum, so what comes to zero is sent as all ones (RFC 768).
    checksum = checksum_of(pseudo + blank) or 0xFFFF
    filled = _UDP.pack(remote.port, local.port, length, checksum) + datagram.payload
    if local.version == 4:
        # The kernel fills in identification and header checksum (raw_send_hdrinc).
        total = _IPV4.size + length
        header = _IPV4.pack(
            *(0x45, 0, total, 0, _DONT_FRAGMENT, _TTL, socket.IPPROTO_UDP, 0),
            *(addresses[:4], addresses[4:]),
        )
    else:
        header = struct.pack("!IHBB", 6 << 28, length, socket.IPPROTO_UDP, _TTL) + addresses
    return header + filled
