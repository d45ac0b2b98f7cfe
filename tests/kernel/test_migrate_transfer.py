"""The checkpoint's way between two nodes: images arrive whole, or both ends hear of it at once."""

import asyncio
import os
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgpack
import pytest
from conftest import Link, Network

from migrate.runtime import transfer
from migrate.runtime.transfer import TransferError, connect, send_images
from mycoproxy.errors import RefusedError

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

T = TypeVar("T")
Channel = tuple[socket.socket, socket.socket]
Send = Callable[..., Coroutine[Any, Any, int]]

DEADLINE = 5.0
CONTENT = {
    "core-1.img": b"small",
    "empty.img": b"",
    "mm-1.img": bytes(range(256)) * 20_000,  # 5 MB: more than the sockets hold
}


@pytest.fixture
def channel(netns_pair: Link) -> Iterator[Channel]:
    ends = connect(netns_pair.left.worker, netns_pair.right.worker, netns_pair.right_v4)
    try:
        yield ends
    finally:
        for end in ends:
            end.close()


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    for name, body in CONTENT.items():
        (source / name).write_bytes(body)
    (source / "dump.log").write_text("not an image")
    return source, target


def run(channel: Channel, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to the end, with the threads that it started. A thread that hangs is an error.

    The sockets are shut down then, so that the test's own process can end.
    """
    hung = threading.Event()

    def end_it() -> None:
        hung.set()
        for end in channel:
            end.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(DEADLINE, end_it)
    timer.start()
    try:
        return asyncio.run(coroutine)
    finally:
        timer.cancel()
        timer.join()
        assert not hung.is_set(), "an end of the transfer still waits"


def manifest(*entries: tuple[object, object, object]) -> bytes:
    packed: bytes = msgpack.packb([list(entry) for entry in entries])
    return struct.pack("!I", len(packed)) + packed


@pytest.fixture
def send(monkeypatch: pytest.MonkeyPatch) -> Send:
    """``send_images``, with another sender: one that gives the receiver a stream of our own."""

    def with_stream(target: Path, channel: Channel, stream: bytes, *, end: bool = False) -> Any:
        def send_stream(directory: Path, sock: socket.socket) -> int:
            sock.sendall(stream)
            if end:
                sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) != b"+"
            return 0

        monkeypatch.setattr(transfer, "_send", send_stream)
        return send_images(target, target, channel)

    return with_stream


@pytest.mark.parametrize("version", [4, 6])
def test_a_connection_is_made_between_two_nodes(netns_pair: Link, version: int) -> None:
    address = netns_pair.address("right", version)
    ours, theirs = connect(netns_pair.left.worker, netns_pair.right.worker, address)
    with ours, theirs:
        assert ours.getpeername()[0] == address
        assert theirs.getpeername()[0] == netns_pair.address("left", version)
        assert ours.getsockname()[1] == theirs.getpeername()[1]
        for end in (ours, theirs):
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert end.gettimeout() is None


def test_without_a_route_the_target_is_unreachable(network: Network) -> None:
    a, b, c = network.node("a"), network.node("b"), network.node("c")
    network.link(a, b)
    other = network.link(b, c)
    with pytest.raises(RefusedError, match=f"unreachable.*{other.right_v4}") as refused:
        connect(a.worker, c.worker, other.right_v4, timeout=0.5)
    assert refused.value.exit_status == 3


def test_over_a_link_that_is_down_the_target_is_unreachable(netns_pair: Link) -> None:
    netns_pair.right.link_state(netns_pair.right_ifname, "down")
    # The address stays on the interface, so the target can listen; nobody gets there.
    with pytest.raises(RefusedError, match="unreachable"):
        connect(netns_pair.left.worker, netns_pair.right.worker, netns_pair.right_v4, timeout=0.5)


def test_an_address_of_another_node_is_refused(netns_pair: Link) -> None:
    with pytest.raises(RefusedError, match="no address of the target node"):
        connect(netns_pair.left.worker, netns_pair.right.worker, netns_pair.left_v4, timeout=0.5)


def test_a_refused_connection_leaves_no_descriptor_open(netns_pair: Link) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    netns_pair.right.link_state(netns_pair.right_ifname, "down")
    before = count()
    with pytest.raises(RefusedError):
        connect(netns_pair.left.worker, netns_pair.right.worker, netns_pair.right_v4, timeout=0.2)
    assert count() == before


def test_images_arrive_equal_and_nothing_else_does(
    channel: Channel, images: tuple[Path, Path]
) -> None:
    source, target = images
    sent = run(channel, send_images(source, target, channel))
    assert sent == sum(map(len, CONTENT.values()))
    assert {path.name: path.read_bytes() for path in target.iterdir()} == CONTENT


def test_no_images_are_sent_as_none(channel: Channel, tmp_path: Path) -> None:
    assert run(channel, send_images(tmp_path, tmp_path, channel)) == 0


def test_a_damaged_body_is_an_error_on_both_ends(
    channel: Channel, images: tuple[Path, Path], send: Send
) -> None:
    _, target = images
    body = b"whole"
    stream = manifest(("a.img", len(body), zlib.crc32(body))) + b"wHole"
    with pytest.raises(TransferError, match=r"a\.img arrived damaged"):
        run(channel, send(target, channel, stream))
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("name", ["../../etc/passwd.img", "/etc/x.img", "a/b.img", "passwd", ""])
def test_a_name_that_is_no_image_s_is_refused(
    channel: Channel, images: tuple[Path, Path], send: Send, name: str
) -> None:
    _, target = images
    with pytest.raises(TransferError, match="no name of a CRIU image"):
        run(channel, send(target, channel, manifest((name, 1, zlib.crc32(b"x"))) + b"x"))
    assert list(target.iterdir()) == []


def test_a_manifest_that_is_too_long_is_refused(
    channel: Channel, images: tuple[Path, Path], send: Send
) -> None:
    with pytest.raises(TransferError, match="manifest of 4294967295 bytes"):
        run(channel, send(images[1], channel, b"\xff" * 4))


@pytest.mark.parametrize(
    "stream",
    [
        struct.pack("!I", 3) + b"\xc1\xc1\xc1",  # not msgpack
        struct.pack("!I", 1) + b"\x07",  # a number instead of a list
        manifest(("a.img", "many", 0)),
        manifest((7, 1, 0)),
    ],
    ids=["no-msgpack", "no-list", "no-size", "no-name"],
)
def test_a_manifest_that_makes_no_sense_is_an_error_on_both_ends(
    channel: Channel, images: tuple[Path, Path], send: Send, stream: bytes
) -> None:
    with pytest.raises(TransferError):
        run(channel, send(images[1], channel, stream))


@pytest.mark.parametrize("length", [0, 2, 4, 10, 5000])
def test_a_connection_that_ends_early_is_an_error(
    channel: Channel, images: tuple[Path, Path], send: Send, length: int
) -> None:
    stream = manifest(("a.img", 10_000, 0)) + bytes(10_000)
    with pytest.raises(TransferError, match="bytes early"):
        run(channel, send(images[1], channel, stream[:length], end=True))


def test_a_target_that_cannot_write_is_an_error_on_both_ends(
    channel: Channel, images: tuple[Path, Path]
) -> None:
    source, target = images
    for name in CONTENT:
        (target / name).mkdir()  # writing is refused by the kernel, for root too
    with pytest.raises(TransferError):
        run(channel, send_images(source, target, channel))


def test_a_source_that_cannot_read_is_an_error_on_both_ends(
    channel: Channel, images: tuple[Path, Path]
) -> None:
    source, target = images
    (source / "zz.img").mkdir()
    with pytest.raises(TransferError):
        run(channel, send_images(source, target, channel))


def test_a_target_that_goes_away_in_the_middle_is_an_error_on_both_ends(
    channel: Channel, images: tuple[Path, Path]
) -> None:
    source, target = images
    _, theirs = channel

    async def cut() -> None:
        transfer = asyncio.create_task(send_images(source, target, channel))
        while not any(target.glob("*.img")):
            await asyncio.sleep(0)
        theirs.shutdown(socket.SHUT_RDWR)
        await transfer

    # So big that it cannot be through before the cut.
    (source / "zzz.img").write_bytes(bytes(200 << 20))
    with pytest.raises(TransferError):
        run(channel, cut())


def test_a_transfer_that_is_given_up_leaves_no_thread_behind(
    netns_pair: Link, channel: Channel, images: tuple[Path, Path]
) -> None:
    source, target = images
    netns_pair.right.link_state(netns_pair.right_ifname, "down")

    async def give_up() -> None:
        async with asyncio.timeout(0.2):
            await send_images(source, target, channel)

    with pytest.raises(TimeoutError):
        run(channel, give_up())
