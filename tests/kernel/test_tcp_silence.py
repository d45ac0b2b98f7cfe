"""What is on the wire, and what is not: rollback, silent closing, the first segment's size."""

import errno
import socket
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from tcp_lab import Move, exchange, fill, receive_exactly

from mycoproxy import tcp
from mycoproxy.addresses import Endpoint
from mycoproxy.tcp import repair

pytestmark = [pytest.mark.root, pytest.mark.timeout(30)]

ETH_P_ALL = 3  # linux/if_ether.h
RST, FIN = 4, 1


VNET_HEADER = struct.Struct("=BBHHHH")  # linux/virtio_net.h; the fourth is gso_size
ETHERNET_HEADER = 14
PACKET_VNET_HDR = 15  # linux/if_packet.h
PACKET_OUTGOING = 4
SOL_PACKET = 263


class Segment(NamedTuple):
    """``length`` is the payload's; ``size`` that of the pieces it will be cut into (TSO)."""

    outgoing: bool
    flags: int
    length: int
    size: int


class Sniffer:
    """All TCP/IPv4 segments that leave or enter a node."""

    def __init__(self, node: Any) -> None:
        self._sock: socket.socket = node.call(
            socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)
        )
        self._sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self._sock.setblocking(False)

    def segments(self) -> list[Segment]:
        """What was seen since the last call."""
        found = []
        while True:
            try:
                frame, address = self._sock.recvfrom(1 << 17)
            except BlockingIOError:
                return found
            gso_size = VNET_HEADER.unpack_from(frame)[3]
            packet = frame[VNET_HEADER.size + ETHERNET_HEADER :]
            if packet[0] >> 4 == 4 and packet[9] == socket.IPPROTO_TCP:
                header = (packet[0] & 15) * 4
                total = struct.unpack_from("!H", packet, 2)[0]
                offset, flags = packet[header + 12] >> 4, packet[header + 13]
                length = total - header - offset * 4
                outgoing = address[2] == PACKET_OUTGOING
                found.append(Segment(outgoing, flags, length, gso_size or length))

    def sent(self) -> list[Segment]:
        """Of those, what the node sent itself."""
        return [segment for segment in self.segments() if segment.outgoing]

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
def move(network: Any) -> Iterator[Move]:
    made = Move(network, "v4")
    try:
        yield made
    finally:
        made.close()


def sniff(move: Move, place: str) -> Sniffer:
    sniffer = Sniffer(getattr(move, place))
    move.stack.callback(sniffer.close)
    return sniffer


@pytest.mark.parametrize("reuse", [0, 1])
def test_resume_leaves_the_connection_as_it_was(move: Move, reuse: int) -> None:
    move.build()
    move.connect()
    move.server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
    move.client.sendall(b"before")
    state = move.capture()
    move.roll_back(state)
    assert move.server.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == reuse
    assert receive_exactly(move.server, 6) == b"before"
    exchange(move.client, move.server)


def test_closing_a_captured_socket_sends_nothing(move: Move) -> None:
    move.build()
    move.connect()
    exchange(move.client, move.server)
    sniffer = sniff(move, "a")
    tcp.capture(move.server)
    move.server.close()
    assert sniffer.sent() == []


def test_closing_a_discarded_socket_sends_nothing_even_with_unread_bytes(move: Move) -> None:
    move.build()
    move.connect()
    move.client.sendall(b"never read")
    sniffer = sniff(move, "a")
    tcp.discard(move.server)
    move.server.close()
    assert [s for s in sniffer.sent() if s.flags & (RST | FIN)] == []


def test_closing_an_established_socket_before_release_sends_nothing(move: Move) -> None:
    move.build()
    move.connect()
    move.server.sendall(b"unacknowledged perhaps")
    move.client.sendall(b"unread")
    state = move.capture()
    sniffer = sniff(move, "b")
    move.establish(state).close()
    assert sniffer.sent() == []


def test_abort_is_silent_and_the_socket_can_be_established_again(move: Move) -> None:
    move.build()
    move.connect()
    exchange(move.client, move.server)
    state = move.capture()
    sniffer = sniff(move, "b")
    sock = move.establish(state)
    tcp.abort(sock)
    assert sniffer.sent() == []
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    tcp.establish(sock, state)
    move.shield("b", up=False)
    tcp.release(sock, state)
    exchange(move.client, sock)


def test_a_failed_establish_leaves_a_closed_silent_socket(move: Move) -> None:
    move.build()
    move.connect()
    state = move.capture()
    sniffer = sniff(move, "b")
    sock = move.socket_in("b")
    with pytest.raises(tcp.TcpError, match=r"bind to 10\.99\.0\.1.*must exist"):
        tcp.establish(sock, state)  # the address is not there yet
    assert repair.connection_state(sock) is tcp.TcpConnectionState.CLOSE
    sock.close()
    assert sniffer.sent() == []
    # and the source can still take over
    move.roll_back(state)
    exchange(move.client, move.server)


@pytest.mark.parametrize("mtu", [1500, 9000, 1280])
def test_the_first_segment_after_a_move_is_of_full_size(move: Move, mtu: int) -> None:
    move.build(mtu=mtu)
    move.connect()
    exchange(move.client, move.server)
    move.move()
    sniffer = sniff(move, "b")
    data = bytes(3 * mtu)
    move.moved.sendall(data)
    assert receive_exactly(move.client, len(data)) == data
    first = next(s for s in sniffer.sent() if s.length)
    assert first.size == mtu - 20 - 20 - 12  # IPv4, TCP, timestamps


@pytest.mark.parametrize("chunk", [65536, 16])
@pytest.mark.parametrize("moved", [True, False], ids=["moved", "rolled-back"])
def test_a_full_upload_goes_on_with_the_first_read(move: Move, chunk: int, moved: bool) -> None:
    """The client believes in a closed window, and would ask for itself only much later."""
    move.build()
    move.connect(SO_RCVBUF=20_000, SO_SNDBUF=400_000)
    data = fill(move.client, chunk)
    state = move.capture()
    if moved:
        move.move(state)
    else:
        move.roll_back(state)
    reader = move.moved if moved else move.server
    sniffer = sniff(move, "b" if moved else "a")
    got = reader.recv(1 << 20)
    assert got == state.receive.data
    assert sniffer.segments()[0].outgoing  # our window update, not the client's question
    assert got + receive_exactly(reader, len(data) - len(got)) == data
    exchange(move.client, reader)


def test_a_listening_socket_is_refused_by_name(network: Any) -> None:
    node = network.node("n")
    with (
        node.call(socket.create_server, ("127.0.0.1", 0)) as listener,
        pytest.raises(tcp.UnsupportedStateError, match="LISTEN"),
    ):
        tcp.capture(listener)


def test_other_sockets_are_refused_by_name(network: Any) -> None:
    node = network.node("n")
    with (
        node.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as datagram,
        pytest.raises(tcp.UnsupportedSocketError, match="not a TCP socket"),
    ):
        tcp.capture(datagram)


def test_a_connected_socket_is_not_overwritten(move: Move) -> None:
    move.build()
    move.connect()
    exchange(move.client, move.server)
    state = tcp.capture(move.server)
    tcp.resume(move.server, state)
    with pytest.raises(tcp.TcpError, match="ESTABLISHED, not closed"):
        tcp.establish(move.server, state)
    exchange(move.client, move.server)


def test_a_socket_of_another_family_is_refused(move: Move) -> None:
    move.build()
    move.connect()
    state = tcp.capture(move.server)
    with (
        move.b.call(socket.socket, socket.AF_INET6, socket.SOCK_STREAM) as sock,
        pytest.raises(tcp.UnsupportedSocketError, match="AF_INET"),
    ):
        tcp.establish(sock, state)


def test_a_target_without_a_route_is_named(network: Any, move: Move) -> None:
    move.build()
    move.connect()
    state = move.capture()
    lonely = network.node("d")
    lonely.add_address("lo", "10.99.0.1", 32)
    with (
        lonely.call(socket.socket) as sock,
        pytest.raises(tcp.TcpError, match="a route must exist") as caught,
    ):
        tcp.establish(sock, state, local=Endpoint("10.99.0.1", 4000))
    cause = caught.value.__cause__
    assert isinstance(cause, OSError)
    assert cause.errno == errno.ENETUNREACH
