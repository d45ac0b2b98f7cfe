"""A client ``c`` and two places ``a`` and ``b`` that its server can be at.

The server's addresses are on the loopback of both places; the client's route decides which of them
it talks to, and changing the route is all the re-homing there is. The place where the server is not
has its shield up, as a target has before a move and a source after it.
"""

import itertools
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from mycoproxy.addresses import Endpoint
from mycoproxy.netfilter.hold import Hold
from mycoproxy.netfilter.shield import Shield
from mycoproxy.sockets import Listener
from netlab.tcp_soak.place import Place
from netlab.wire.impairment import Impairment
from netlab.wire.wire import Wire

CLIENT: Final = {4: "10.98.0.1", 6: "fd98::1"}
SERVER: Final = {4: "10.99.0.1", 6: "fd99::1"}
FAMILY: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
PORT: Final = 7000
BACKLOG: Final = 256
CLIENT_PORTS: Final = range(10_000, 60_000)

_TCP_RTO_MIN_US: Final = 45  # include/uapi/linux/tcp.h, Linux 6.15
_WIRE: Final = "wire"
_WHOLE: Final = {4: 32, 6: 128}


@dataclass(frozen=True)
class Site:
    """A place the server can be at: its wire to the client, its listeners, hold and shield."""

    place: Place
    wire: Wire
    gateways: dict[int, str]
    listeners: dict[int, Listener]
    hold: Hold
    shield: Shield


class Course:
    """Three namespaces and two wires. The server is at ``here``; ``there`` is shielded.

    A context manager. ``impairment`` is that of both wires. Raises ``MycoError``.
    """

    def __init__(
        self, impairment: Impairment | None = None, *, seed: int = 0, offload: bool = False
    ) -> None:
        with ExitStack() as stack:
            self._stack = stack
            # Closing a packet socket waits 20 ms for the kernel; many can wait at once.
            self.aside = ThreadPoolExecutor(8, thread_name_prefix="aside")
            stack.callback(self.aside.shutdown)
            self._ports = itertools.cycle(CLIENT_PORTS)
            self.client = Place("c")
            stack.callback(self.client.close)
            self.client.configure(
                {"lo": [f"{CLIENT[version]}/{_WHOLE[version]}" for version in (4, 6)]}
            )
            self.here, self.there = (
                self._site(number, label, impairment, seed=seed, offload=offload)
                for number, label in enumerate("ab", 1)
            )
            self.there.place.call(self.there.shield.raise_)
            self.lead_to(self.here)
            self._stack = stack.pop_all()

    def _site(
        self,
        number: int,
        label: str,
        impairment: Impairment | None,
        *,
        seed: int,
        offload: bool,
    ) -> Site:
        place = Place(label)
        self._stack.callback(place.close)
        ifname = f"{_WIRE}-{label}"
        wire = Wire.join(
            self.client,
            ifname,
            place,
            _WIRE,
            impairment,
            seed=2 * seed + number,
            offload=offload,
        )
        self._stack.callback(wire.close)
        left = {4: f"10.90.{number}.1", 6: f"fd90:{number}::1"}
        right = {4: f"10.90.{number}.2", 6: f"fd90:{number}::2"}
        self.client.configure({ifname: [f"{left[4]}/24", f"{left[6]}/64"]})
        place.configure(
            {
                "lo": [f"{SERVER[version]}/{_WHOLE[version]}" for version in (4, 6)],
                _WIRE: [f"{right[4]}/24", f"{right[6]}/64"],
            }
        )
        self.client.introduce(ifname, place.hardware_address(_WIRE), list(right.values()))
        place.introduce(_WIRE, self.client.hardware_address(ifname), list(left.values()))
        for version in (4, 6):
            place.set_route(
                f"{CLIENT[version]}/{_WHOLE[version]}", via=left[version], source=SERVER[version]
            )
        listeners = {version: self._listener(place, version) for version in (4, 6)}
        hold = Hold(place.nft, "course")
        place.call(hold.install)
        return Site(place, wire, right, listeners, hold, Shield(place.nft, "course"))

    def _listener(self, place: Place, version: int) -> Listener:
        sock = place.socket(FAMILY[version])
        self._stack.callback(sock.close)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((SERVER[version], PORT))
        sock.listen(BACKLOG)
        return Listener(0, (), sock, Endpoint(SERVER[version], PORT))

    def client_socket(self, version: int) -> socket.socket:
        """A fresh socket of the client, bound to a port that no connection had before it."""
        sock = self.client.socket(FAMILY[version])
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((CLIENT[version], next(self._ports)))
        except BaseException:
            sock.close()
            raise
        return sock

    def lead_to(self, site: Site) -> None:
        """The client's packets go to ``site``."""
        for version, gateway in site.gateways.items():
            self.client.set_route(
                f"{SERVER[version]}/{_WHOLE[version]}", via=gateway, source=CLIENT[version]
            )

    def swap(self) -> None:
        """The server has moved."""
        self.here, self.there = self.there, self.here

    def impair(self, impairment: Impairment) -> None:
        """From now on do this to packets. Raises ``MycoError``."""
        for site in (self.here, self.there):
            site.wire.impair(impairment)

    def notice_losses_after(self, milliseconds: int) -> None:
        """See `Place`; for connections that are opened, or moved, from now on."""
        for place in (self.client, self.here.place, self.there.place):
            place.notice_losses_after(milliseconds)
        for site in (self.here, self.there):
            for listener in site.listeners.values():
                with suppress(OSError):  # what is accepted has it of the listener
                    listener.sock.setsockopt(
                        socket.IPPROTO_TCP, _TCP_RTO_MIN_US, milliseconds * 1000
                    )

    def close(self) -> None:
        """Take everything down."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
