"""Translations live as long as their connections: no leftovers, no collisions."""

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop
from netfilter_lab import (
    PORT,
    Lab,
    assert_talks,
    readable,
    service_lab,
    tuple_of,
    wait_until,
)

from mycoproxy import sockdiag
from mycoproxy.addresses import Endpoint, FourTuple
from mycoproxy.netfilter.conntrack import Conntrack
from mycoproxy.netfilter.endings import Ending
from mycoproxy.netfilter.lifetimes import TranslationLifetimes
from mycoproxy.netfilter.translate import Move, Translate
from mycoproxy.sockdiag import DestroyedSockets, SocketLookup
from mycoproxy.tcp import capture, establish, release

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

VERSIONS = pytest.mark.parametrize("version", [4, 6])
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
ABORT = struct.pack("ii", 1, 0)  # SO_LINGER of 0: close(2) sends a reset

TRACKING = """\
table inet t {
    chain c { type filter hook forward priority 0; ct state new accept; }
}
"""


@pytest.fixture
def lab(network: Any) -> Iterator[Lab]:
    with service_lab(network, nat=False) as made:
        yield made


@pytest.fixture
def translate(lab: Lab) -> Translate:
    return Translate(lab.nft["client"])


def _dial(lab: Lab, address: str, port: int = PORT, *, from_port: int = 0) -> socket.socket:
    """Dial from a port of choice, or any, which another socket may bind as well."""
    version = 6 if ":" in address else 4
    sock: socket.socket = lab.keep(lab.client.call(socket.socket, FAMILY[version]))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.settimeout(10)
    sock.bind((lab.address["client", version], from_port))
    try:
        sock.connect((address, port))
    except OSError:
        sock.close()
        raise
    return sock


def _listen(lab: Lab, version: int, port: int) -> socket.socket:
    where = (lab.address["a", version], port)
    listener = lab.a.call(socket.create_server, where, family=FAMILY[version])
    listener.settimeout(10)
    return lab.keep(listener)  # type: ignore[no-any-return]


@dataclass
class Moved:
    """A connection of the client's that has moved from a to b. ``a`` goes on listening at the
    address, as a new pod does that was given it."""

    client: socket.socket
    server: socket.socket
    dialled: FourTuple
    listener: socket.socket

    @property
    def port(self) -> int:
        return self.dialled.remote.port

    @property
    def name(self) -> FourTuple:
        """As the client's socket is called."""
        return FourTuple(local=self.dialled.remote, remote=self.dialled.local)

    def end(self, by: str) -> None:
        """Both ends are closed; see what is left of them."""
        if by == "reset":
            self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
            self.client.close()
            wait_until(lambda: readable(self.server), "the server is told")
            self.server.close()
            return
        first, second = (self.client, self.server) if by == "client" else (self.server, self.client)
        first.shutdown(socket.SHUT_WR)
        assert second.recv(1) == b""
        second.close()
        assert first.recv(1) == b""
        first.close()


def _moved(lab: Lab, version: int, *, port: int = PORT, where: str = "client") -> Moved:
    listener = _listen(lab, version, port)
    client = _dial(lab, lab.address["a", version], port)
    server = lab.keep(listener.accept()[0])
    dialled = tuple_of(server)
    move = Move(dialled, Endpoint(lab.address["b", version], port))
    lab.node(where).call(Translate(lab.nft[where]).add, [move])
    state = lab.a.call(capture, server)
    moved = lab.keep(lab.b.call(socket.socket, server.family))
    moved.settimeout(10)
    lab.b.call(establish, moved, state, local=move.new)
    server.close()  # in repair mode: silently
    lab.b.call(release, moved, state)
    return Moved(client, moved, dialled, listener)


def _drive(
    lab: Lab,
    act: Callable[[TranslationLifetimes], Coroutine[Any, Any, None]],
    *,
    where: str = "client",
    attended: bool = True,
    **settings: Any,
) -> TranslationLifetimes:
    """Run ``act`` beside an agent's loop that cares for the translations of a node."""

    async def run() -> TranslationLifetimes:
        lifetimes = TranslationLifetimes(lab.node(where).worker, **settings)
        await lifetimes.open()
        try:
            async with asyncio.timeout(30):
                await lifetimes.sweep()
                task = asyncio.create_task(lifetimes.attend(every_seconds=1000))
                try:
                    if not attended:
                        task.cancel()
                    await act(lifetimes)
                    assert not attended or not task.done(), task.result()
                finally:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
        finally:
            await lifetimes.close()
        return lifetimes

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def _reserved(lab: Lab) -> str:
    sysctl = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")
    found: str = lab.client.call(sysctl.read_text).strip()
    return found


@VERSIONS
def test_a_translation_goes_with_its_connection_and_the_table_with_the_last(
    lab: Lab, version: int
) -> None:
    first, second = _moved(lab, version), _moved(lab, version, port=PORT + 1)

    async def act(lifetimes: TranslationLifetimes) -> None:
        assert lifetimes.remaining == 2
        await asyncio.to_thread(first.end, "server")  # whose end is in TIME_WAIT then
        await _until(lambda: lifetimes.remaining == 1)
        assert _reserved(lab) == str(second.port)
        await asyncio.to_thread(assert_talks, second.client, second.server)
        await asyncio.to_thread(second.end, "server")
        await _until(lambda: lifetimes.remaining == 0)

    assert _drive(lab, act).removed[Ending.TOLD] == 2
    assert lab.ruleset("client") == ""
    assert _reserved(lab) == ""


@VERSIONS
def test_a_program_that_resets_its_connection_ends_the_translation(lab: Lab, version: int) -> None:
    """The kernel tells of such a socket without the name that it had."""
    moved = _moved(lab, version)

    async def act(lifetimes: TranslationLifetimes) -> None:
        await asyncio.to_thread(moved.end, "reset")
        await _until(lambda: lifetimes.remaining == 0)

    assert _drive(lab, act).removed[Ending.TOLD] == 1
    assert lab.ruleset("client") == ""


@VERSIONS
def test_what_remains_of_a_closed_socket_is_still_translated(lab: Lab, version: int) -> None:
    """A FIN_WAIT2 without owner goes after tcp_fin_timeout."""
    lab.client.sysctl("net.ipv4.tcp_fin_timeout", 2)
    moved = _moved(lab, version)
    lookup = lab.on("client", SocketLookup)

    async def act(lifetimes: TranslationLifetimes) -> None:
        moved.client.close()
        await asyncio.to_thread(moved.server.recv, 1)
        await _until(lambda: lifetimes.look_in() is not None)
        found = lab.client.call(lookup.find, moved.name)
        assert found is not None and found.expires is not None and found.expires <= 2000
        assert lifetimes.remaining == 1
        await _until(lambda: lifetimes.remaining == 0)
        assert lab.client.call(lookup.find, moved.name) is None

    assert _drive(lab, act).removed[Ending.TOLD] == 1


@VERSIONS
def test_a_connection_in_time_wait_is_still_translated(
    lab: Lab, translate: Translate, version: int
) -> None:
    moved = _moved(lab, version)
    lookup = lab.on("client", SocketLookup)

    def waits() -> bool:
        found = lab.client.call(lookup.find, moved.name)
        return found is not None and found.expires is not None and found.expires > 30_000

    async def act(lifetimes: TranslationLifetimes) -> None:
        await asyncio.to_thread(moved.end, "client")
        # It is looked at a first time when the socket of the connection has gone, which may be
        # before the one in TIME_WAIT can be found.
        await _until(lambda: lifetimes.look_in() is not None)
        await _until(waits)
        await lifetimes.sweep()
        assert lifetimes.remaining == 1

    assert _drive(lab, act).removed.total() == 0
    assert moved.dialled in lab.client.call(translate.list)


@pytest.mark.parametrize("turns", range(4))
def test_who_is_told_to_end_while_it_is_woken_ends(lab: Lab, turns: int) -> None:
    async def scenario() -> None:
        lifetimes = TranslationLifetimes(lab.client.worker)
        await lifetimes.open()
        try:
            task = asyncio.create_task(lifetimes.attend())
            await asyncio.sleep(0.1)  # it waits by now, or the test is true for nothing
            lifetimes._woken.set()
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            done, _ = await asyncio.wait({task}, timeout=5)
            assert done, "it goes on"
        finally:
            await lifetimes.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


def test_a_sweep_finds_what_ended_while_nobody_listened(lab: Lab) -> None:
    _moved(lab, 4).end("server")

    async def act(lifetimes: TranslationLifetimes) -> None:
        assert lifetimes.remaining == 1  # it is looked for once more, a little later
        await _until(lambda: lifetimes.remaining == 0)

    assert _drive(lab, act).removed[Ending.MISSED] == 1
    assert lab.ruleset("client") == ""


def test_events_that_were_lost_lose_no_ending(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockdiag, "_EVENTS_BUFFER", 4096)
    moved = _moved(lab, 4)
    missed = []
    read = DestroyedSockets.read

    def watched(events: DestroyedSockets) -> Any:
        told = read(events)
        missed.append(told.missed)
        return told

    monkeypatch.setattr(DestroyedSockets, "read", watched)

    async def act(lifetimes: TranslationLifetimes) -> None:
        for _ in range(100):
            lab.dial(lab.address["a", 4]).close()
        await asyncio.to_thread(moved.end, "server")
        while lifetimes.remaining:
            await lifetimes.react()
            await asyncio.sleep(0.05)

    # The kernel tells a little late: of the last one it may have told after all.
    assert _drive(lab, act, attended=False).removed.total() == 1
    assert any(missed)


@pytest.mark.parametrize("which", ["a", "b", "client"])
def test_what_is_being_moved_is_left_alone(lab: Lab, which: str) -> None:
    moved = _moved(lab, 4)
    moving = {lab.address[which, 4]}

    async def act(lifetimes: TranslationLifetimes) -> None:
        await asyncio.to_thread(moved.end, "server")
        await _until(lambda: lifetimes.look_in() is not None)
        await lifetimes.sweep()
        await lifetimes.sweep()
        assert lifetimes.remaining == 1
        moving.clear()
        await _until(lambda: lifetimes.remaining == 0)

    assert _drive(lab, act, moving=lambda: frozenset(moving)).removed[Ending.TOLD] == 1


def test_an_empty_table_stays_while_something_is_being_moved(
    lab: Lab, translate: Translate
) -> None:
    """A move makes it ahead of the freeze."""
    lab.client.call(translate.install)
    moving = {"192.0.2.1"}

    async def act(lifetimes: TranslationLifetimes) -> None:
        assert "mycoproxy-moved" in lab.ruleset("client")
        moving.clear()
        await lifetimes.sweep()

    _drive(lab, act, moving=lambda: frozenset(moving))
    assert lab.ruleset("client") == ""


@VERSIONS
@pytest.mark.parametrize("events", [1, 2])
def test_where_it_is_only_forwarded_a_translation_lives_as_long_as_its_entry(
    lab: Lab, version: int, events: int
) -> None:
    """With nf_conntrack_events = 2 nobody is told of an entry that is older than who listens."""
    lab.router.sysctl("net.netfilter.nf_conntrack_events", events)
    lab.run("router", TRACKING)
    moved = _moved(lab, version, where="router")
    other = _dial(lab, lab.address["a", version])  # so that something is tracked in the end, too
    conntrack = lab.on("router", Conntrack)

    async def act(lifetimes: TranslationLifetimes) -> None:
        await lifetimes.sweep()
        assert lifetimes.remaining == 1
        await asyncio.to_thread(assert_talks, moved.client, moved.server)
        entry = lab.router.call(conntrack.find, [moved.dialled])[moved.dialled]
        assert lab.router.call(conntrack.delete, [entry]) == [0]
        if events == 2:
            await lifetimes.sweep()
        await _until(lambda: lifetimes.remaining == 0)

    removed = _drive(lab, act, where="router").removed
    assert removed.total() == 1
    if events == 1:  # otherwise it depends on who else listens in this namespace's lifetime
        assert removed[Ending.TOLD] == 1
    other.close()


def test_where_nothing_is_tracked_a_forwarded_translation_stays(lab: Lab) -> None:
    moved = _moved(lab, 4, where="router")

    async def act(lifetimes: TranslationLifetimes) -> None:
        await lifetimes.sweep()
        await lifetimes.sweep()
        assert lifetimes.remaining == 1
        assert lifetimes.look_in() is None

    _drive(lab, act, where="router")
    assert_talks(moved.client, moved.server)


@VERSIONS
def test_a_reused_address_is_reached_by_whoever_dials_it(lab: Lab, version: int) -> None:
    moved = _moved(lab, version)
    client = _dial(lab, lab.address["a", version])
    assert_talks(client, lab.keep(moved.listener.accept()[0]))
    with pytest.raises(OSError) as refused:  # by the client's kernel: its socket has that name
        _dial(lab, lab.address["a", version], from_port=moved.port)
    assert refused.value.errno == errno.EADDRNOTAVAIL
    assert_talks(moved.client, moved.server)


@VERSIONS
@pytest.mark.parametrize("by", ["reset", "client"])
def test_a_reused_address_is_reached_from_the_same_port_though_nobody_has_cleared_up(
    lab: Lab, translate: Translate, version: int, by: str
) -> None:
    lab.client.sysctl("net.ipv4.tcp_tw_reuse", 1)
    moved = _moved(lab, version)
    at_b = lab.listen("b", version)
    moved.end(by)
    assert moved.dialled in lab.client.call(translate.list)
    client = _dial_once_it_may(lab, lab.address["a", version], moved.port)
    assert lab.client.call(translate.list) == {}
    server = lab.keep(moved.listener.accept()[0])
    assert tuple_of(server) == moved.dialled
    assert_talks(client, server)
    assert not readable(at_b)

    async def act(lifetimes: TranslationLifetimes) -> None:
        assert lifetimes.remaining == 0

    assert _drive(lab, act).removed[Ending.SUPERSEDED] == 1
    assert lab.ruleset("client") == ""
    assert _reserved(lab) == ""
    assert_talks(client, server)


def _dial_once_it_may(lab: Lab, address: str, from_port: int) -> socket.socket:
    """A TIME_WAIT can be reused a second after the last segment."""
    made: list[socket.socket] = []

    def dialled() -> bool:
        try:
            made.append(_dial(lab, address, from_port=from_port))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
        return bool(made)

    wait_until(dialled, "the port can be used again")
    return made[0]


@VERSIONS
def test_a_connection_of_a_reused_name_may_move_in_its_turn(
    lab: Lab, translate: Translate, version: int
) -> None:
    moved = _moved(lab, version)
    moved.end("reset")
    client = _dial(lab, lab.address["a", version], from_port=moved.port)
    server = lab.keep(moved.listener.accept()[0])
    lab.client.call(translate.add, [Move(tuple_of(server), lab.endpoint("b", version))])
    assert_talks(client, lab.move(server, "a", "b"))
    assert lab.client.call(translate.list) == {moved.dialled: lab.endpoint("b", version)}
    lab.client.call(translate.clear)
    assert _reserved(lab) == ""


@VERSIONS
def test_a_connection_that_is_not_open_yet_sends_its_syn_to_the_new_address_again(
    lab: Lab, translate: Translate, version: int
) -> None:
    """Its first SYN went to ``a``, and was lost."""
    lab.run("a", "add table inet t")
    lab.run("a", "add chain inet t c { type filter hook input priority 0; }")
    lab.run("a", f"add rule inet t c tcp dport {PORT} drop")
    listener = lab.listen("b", version)
    client: socket.socket = lab.keep(lab.client.call(socket.socket, FAMILY[version]))
    client.setblocking(False)
    client.bind((lab.address["client", version], 0))
    assert client.connect_ex((lab.address["a", version], PORT)) == errno.EINPROGRESS
    name = FourTuple(lab.endpoint("a", version), Endpoint(*client.getsockname()[:2]))
    lab.client.call(translate.add, [Move(name, lab.endpoint("b", version))])
    server = lab.keep(listener.accept()[0])  # after a second, the SYN's first repetition
    client.setblocking(True)
    assert_talks(client, server)
    assert client.getpeername()[0] == lab.address["a", version]


@VERSIONS
def test_a_moved_connections_port_is_not_chosen_towards_the_new_address(
    lab: Lab, version: int
) -> None:
    moved = _moved(lab, version)
    lab.client.sysctl("net.ipv4.ip_local_port_range", f"{moved.port} {moved.port + 1}")
    first, accepted = lab.connect(lab.listen("b", version), lab.address["b", version])
    assert first.getsockname()[1] == moved.port + 1
    with pytest.raises(OSError) as refused:
        lab.dial(lab.address["b", version])
    assert refused.value.errno == errno.EADDRNOTAVAIL
    assert_talks(first, accepted)
    assert_talks(moved.client, moved.server)


@VERSIONS
def test_a_moved_connections_port_is_refused_towards_the_new_address_as_long_as_it_is_in_use(
    lab: Lab, translate: Translate, version: int
) -> None:
    """If a program asks for just that port; otherwise it is not chosen."""
    moved = _moved(lab, version)
    lab.listen("b", version)
    with pytest.raises(ConnectionRefusedError):
        _dial(lab, lab.address["b", version], from_port=moved.port)
    assert_talks(moved.client, moved.server)
    moved.end("reset")
    lab.client.call(translate.remove, [moved.dialled])
    assert _dial(lab, lab.address["b", version], from_port=moved.port).getpeername()


def test_thousands_of_sockets_are_looked_up_at_once(lab: Lab) -> None:
    listener = lab.listen("a", 4)
    pairs = [lab.connect(listener, lab.address["a", 4]) for _ in range(200)]
    lookup = lab.on("client", SocketLookup)
    names = [tuple_of(client) for client, _ in pairs]
    nobody = [
        name._replace(local=name.local._replace(port=port + 1)) for port, name in enumerate(names)
    ]
    asked = [name for pair in zip(names, nobody, strict=True) for name in pair] * 10
    found = lab.client.call(lookup.find_all, asked)
    assert list(found) == names
    for (client, _), name in zip(pairs, names, strict=True):
        assert found[name].inode == os.fstat(client.fileno()).st_ino
