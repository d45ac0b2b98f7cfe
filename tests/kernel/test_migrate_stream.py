"""Images arrive whole while they are being written, or both ends hear of it and nobody hangs."""

import asyncio
import ctypes
import fcntl
import os
import socket
import struct
import termios
import threading
import time
import zlib
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgpack
import pytest
from conftest import Link

from migrate.runtime.channel import connect
from migrate.runtime.stream import ImageStream, TransferError

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

T = TypeVar("T")
Channel = tuple[socket.socket, socket.socket]

DEADLINE = 10.0
MIB = 1 << 20
SMALL = {"core-1.img": b"small", "empty.img": b"", "mm-1.img": bytes(range(256)) * 20_000}


class Transfer:
    """A source and a target directory, and a stream between them."""

    def __init__(self, channel: Channel, directory: Path) -> None:
        self.channel = channel
        self.source, self.target = directory / "source", directory / "target"
        self.source.mkdir()
        self.target.mkdir(exist_ok=True)
        for name, body in SMALL.items():
            (self.source / name).write_bytes(body)
        (self.source / "dump.log").write_text("not an image")
        self.expected = dict(SMALL)
        self.failed: ImageStream | None = None

    def run(self, *, reserve: int | None, dump: Callable[[], None] = lambda: None) -> int:
        """Stream what is there and what ``dump`` writes meanwhile; returns the bytes sent."""

        async def scenario() -> int:
            stream = ImageStream(self.source, self.target, self.channel)
            try:
                if reserve is not None:
                    await stream.reserve(reserve)
                stream.start()
                await asyncio.to_thread(dump)
                return await stream.finish()
            except TransferError:
                self.failed = stream
                raise
            finally:
                await stream.close()

        return run(scenario())

    def assert_both_ends_heard(self) -> None:
        assert self.failed is not None
        ends = self.failed._running
        assert [type(end.exception()) for end in ends] == [TransferError, TransferError]

    def pages(self, name: str, *sizes: int) -> Callable[[], None]:
        """Writes a pages image in pieces, as CRIU does; it is expected to arrive."""
        pieces = [os.urandom(size) for size in sizes]
        self.expected[name] = b"".join(pieces)

        def write() -> None:
            with (self.source / name).open("wb", buffering=0) as image:
                for piece in pieces:
                    image.write(piece)

        return write

    def assert_arrived(self) -> None:
        found = {path.name: path.read_bytes() for path in self.target.iterdir()}
        assert found.keys() == self.expected.keys()
        assert found == self.expected


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to the end, with all it started, within the deadline: no thread, no descriptor stays.

    The channel's own two descriptors are closed by a stream, or by the fixture.
    """

    async def bounded() -> T:
        async with asyncio.timeout(DEADLINE):
            return await coroutine

    before, opened = threading.active_count(), descriptors()
    try:
        return asyncio.run(bounded())
    finally:
        assert threading.active_count() <= before, "a thread was left behind"
        assert descriptors() <= opened, "a descriptor was left open"


def descriptors() -> set[tuple[str, str]]:
    """This process's own: number and what it is."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the listing's own
            found.add((entry.name, str(entry.readlink())))
    return found


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE:g} s"
        time.sleep(0.001)


@pytest.fixture
def channel(netns_pair: Link) -> Iterator[Channel]:
    ends = connect(netns_pair.left.worker, netns_pair.right.worker, netns_pair.right_v4)
    yield ends
    for end in ends:
        end.close()


@pytest.fixture
def transfer(channel: Channel, tmp_path: Path) -> Transfer:
    return Transfer(channel, tmp_path)


@pytest.mark.parametrize(
    "reserve",
    [
        pytest.param(None, id="nothing-reserved"),
        pytest.param(1, id="a-byte-reserved"),
        pytest.param(2 * MIB, id="too-little-reserved"),
        pytest.param(5 * MIB + 4097, id="just-enough-reserved"),
        pytest.param(64 * MIB, id="more-reserved"),
    ],
)
def test_a_pages_image_that_grows_meanwhile_arrives_whole(
    transfer: Transfer, reserve: int | None
) -> None:
    dump = transfer.pages("pages-1.img", 1, 4095, MIB, 4 * MIB, 1)
    sent = transfer.run(reserve=reserve, dump=dump)
    transfer.assert_arrived()
    assert sent == sum(map(len, transfer.expected.values()))


def test_several_pages_images_arrive_whole(transfer: Transfer) -> None:
    dumps = [
        transfer.pages("pages-1.img", 3 * MIB),
        transfer.pages("pages-2.img", 5, 2 * MIB),
        transfer.pages("pages-17.img", 7),
    ]

    def dump() -> None:
        for one in dumps:
            one()

    transfer.run(reserve=MIB, dump=dump)
    transfer.assert_arrived()


def test_a_checkpoint_without_pages_leaves_nothing_of_the_reserved_room(
    transfer: Transfer,
) -> None:
    transfer.run(reserve=8 * MIB)
    transfer.assert_arrived()


def test_a_pages_image_without_a_byte_arrives(transfer: Transfer) -> None:
    transfer.run(reserve=MIB, dump=transfer.pages("pages-1.img"))
    transfer.assert_arrived()


def test_an_empty_pages_image_beside_a_full_one_arrives(transfer: Transfer) -> None:
    empty, full = transfer.pages("pages-1.img"), transfer.pages("pages-2.img", 2 * MIB)

    def dump() -> None:
        empty()
        full()

    transfer.run(reserve=MIB, dump=dump)
    transfer.assert_arrived()


def test_pages_are_sent_while_the_dump_goes_on(transfer: Transfer) -> None:
    """Each piece is written only when the one before it has reached the target."""
    pieces = [os.urandom(size) for size in (1, 4097, 70_001, 3 * MIB + 5, 2)]
    transfer.expected["pages-1.img"] = whole = b"".join(pieces)
    reserved = MIB

    def arrived(length: int) -> bool:
        image = transfer.target / "pages-1.img"
        return image.exists() and image.read_bytes()[:length] == whole[:length]

    def dump() -> None:
        length = 0
        with (transfer.source / "pages-1.img").open("wb", buffering=0) as image:
            for piece in pieces:
                image.write(piece)
                length += len(piece)
                until(lambda length=length: arrived(length))  # type: ignore[misc]

    transfer.run(reserve=reserved, dump=dump)
    transfer.assert_arrived()


def test_nothing_is_sent_twice_or_left_open(transfer: Transfer) -> None:
    transfer.run(reserve=MIB, dump=transfer.pages("pages-1.img", MIB))
    for end in transfer.channel:
        assert end.fileno() == -1


def test_room_that_is_not_there_is_an_error_before_anything_is_sent(
    channel: Channel, tiny_tmpfs: Path
) -> None:
    transfer = Transfer(channel, tiny_tmpfs)
    with pytest.raises(TransferError, match=r"no room for 64 MiB.*No space left"):
        transfer.run(reserve=64 * MIB)
    assert [path for path in transfer.target.iterdir() if path.stat().st_size] == []


@pytest.mark.parametrize("reserve", [None, 8 * MIB, 15 * MIB])
def test_a_target_that_runs_full_in_the_pages_is_an_error_on_both_ends(
    transfer: Transfer, tiny_tmpfs: Path, reserve: int | None
) -> None:
    transfer.target = tiny_tmpfs
    with pytest.raises(TransferError, match=r"receiving the images.*No space left"):
        transfer.run(reserve=reserve, dump=transfer.pages("pages-1.img", 40 * MIB))
    transfer.assert_both_ends_heard()


def test_a_target_that_runs_full_in_the_small_images_is_an_error_on_both_ends(
    transfer: Transfer, tiny_tmpfs: Path
) -> None:
    transfer.target = tiny_tmpfs
    dump = transfer.pages("pages-1.img", 13 * MIB)  # SMALL has 5 MB, the tmpfs 16
    with pytest.raises(TransferError, match=r"receiving the images.*No space left"):
        transfer.run(reserve=13 * MIB, dump=dump)
    transfer.assert_both_ends_heard()


# The same numbers on every architecture: asm-generic/unistd.h; linux/mount.h.
FSOPEN, FSCONFIG, FSMOUNT = 430, 431, 432
FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 1, 6


@pytest.fixture
def tiny_tmpfs() -> Iterator[Path]:
    """16 MB, mounted nowhere: it goes with its descriptor, also if this process is killed."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(number: int, *arguments: object) -> int:
        result: int = libc.syscall(number, *arguments)
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    context = call(FSOPEN, b"tmpfs", 0)
    try:
        call(FSCONFIG, context, FSCONFIG_SET_STRING, b"size", b"16m", 0)
        call(FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0)
        mounted = call(FSMOUNT, context, 0, 0)
    finally:
        os.close(context)
    try:
        yield Path(f"/proc/self/fd/{mounted}")
    finally:
        os.close(mounted)


def test_a_source_that_cannot_read_is_an_error_on_both_ends(transfer: Transfer) -> None:
    (transfer.source / "zz.img").mkdir()
    with pytest.raises(TransferError, match="sending the images"):
        transfer.run(reserve=MIB)
    transfer.assert_both_ends_heard()


def test_a_pages_image_that_becomes_shorter_is_an_error_on_both_ends(
    netns_pair: Link, transfer: Transfer
) -> None:
    image, elsewhere = transfer.source / "pages-1.img", transfer.source / "elsewhere"
    elsewhere.write_bytes(bytes(30 * MIB))

    def unacknowledged() -> int:
        (count,) = struct.unpack("=i", fcntl.ioctl(transfer.channel[0], termios.TIOCOUTQ, bytes(4)))
        return int(count)

    def cut_short() -> None:
        # Nothing gets through, so that the sender stands in the middle of the file.
        netns_pair.right.link_state(netns_pair.right_ifname, "down")
        elsewhere.rename(image)
        until(lambda: unacknowledged() > 0)
        os.truncate(image, 1)
        netns_pair.right.link_state(netns_pair.right_ifname, "up")

    with pytest.raises(TransferError, match=r"pages-1\.img became shorter"):
        transfer.run(reserve=MIB, dump=cut_short)
    transfer.assert_both_ends_heard()


@pytest.mark.parametrize("side", [0, 1], ids=["source", "target"])
def test_a_connection_that_is_cut_in_the_pages_is_an_error_on_both_ends(
    transfer: Transfer, side: int
) -> None:
    def dump() -> None:
        transfer.pages("pages-1.img", 30 * MIB)()
        until((transfer.target / "pages-1.img").exists)
        transfer.channel[side].shutdown(socket.SHUT_RDWR)
        with (transfer.source / "pages-1.img").open("ab") as image:
            image.write(b"more")  # there is something to send after the cut in any case

    with pytest.raises(TransferError):
        transfer.run(reserve=None, dump=dump)
    transfer.assert_both_ends_heard()


@pytest.mark.parametrize("side", [0, 1], ids=["source", "target"])
def test_a_connection_that_is_cut_in_the_small_images_is_an_error_on_both_ends(
    transfer: Transfer, side: int
) -> None:
    """``dd.img`` is a pipe: the sender waits in the middle of the small images."""
    pipe = transfer.source / "dd.img"
    os.mkfifo(pipe)

    async def scenario() -> None:
        stream = ImageStream(transfer.source, transfer.target, transfer.channel)
        try:
            await stream.reserve(MIB)
            stream.start()
            finishing = asyncio.create_task(stream.finish())
            writer = await asyncio.to_thread(pipe.open, "wb")
            with writer:
                await asyncio.to_thread(until, (transfer.target / "core-1.img").exists)
                assert not (transfer.target / "mm-1.img").exists()
                transfer.channel[side].shutdown(socket.SHUT_RDWR)
            await finishing
        finally:
            transfer.failed = stream
            await stream.close()

    with pytest.raises(TransferError):
        run(scenario())
    transfer.assert_both_ends_heard()


def test_a_stream_can_be_closed_while_the_dump_goes_on_for_ever(transfer: Transfer) -> None:
    async def scenario() -> None:
        stream = ImageStream(transfer.source, transfer.target, transfer.channel)
        await stream.reserve(MIB)
        stream.start()
        await asyncio.sleep(0)
        await stream.close()

    run(scenario())


def test_a_stream_can_be_closed_in_the_middle_of_a_file_that_still_grows(
    transfer: Transfer,
) -> None:
    closed = threading.Event()

    def dump() -> None:
        with (transfer.source / "pages-1.img").open("wb", buffering=0) as image:
            while not closed.is_set() and image.tell() < 256 * MIB:
                image.write(bytes(12_345))

    async def scenario() -> None:
        stream = transfer.failed = ImageStream(transfer.source, transfer.target, transfer.channel)
        await stream.reserve(MIB)
        stream.start()
        dumping = asyncio.create_task(asyncio.to_thread(dump))
        await asyncio.to_thread(until, (transfer.target / "pages-1.img").exists)
        await stream.close()
        closed.set()
        await dumping

    run(scenario())
    transfer.assert_both_ends_heard()


def test_a_stream_that_never_started_can_be_closed_and_again(transfer: Transfer) -> None:
    async def scenario() -> None:
        stream = ImageStream(transfer.source, transfer.target, transfer.channel)
        await stream.close()
        await stream.close()

    run(scenario())


def test_a_reserve_that_was_never_used_is_let_go(transfer: Transfer) -> None:
    async def scenario() -> None:
        stream = ImageStream(transfer.source, transfer.target, transfer.channel)
        await stream.reserve(MIB)
        await stream.close()
        assert str(transfer.target) not in Path("/proc/self/maps").read_text()

    run(scenario())


def test_a_reserve_that_is_given_up_is_let_go(
    transfer: Transfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled while its thread is at work, which then still maps the room."""
    working, go_on = threading.Event(), threading.Event()
    allocate = os.posix_fallocate

    def slowly(fd: int, offset: int, size: int) -> None:
        working.set()
        assert go_on.wait(DEADLINE)
        allocate(fd, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", slowly)
    stream = ImageStream(transfer.source, transfer.target, transfer.channel)

    async def scenario() -> None:
        reserving = asyncio.create_task(stream.reserve(MIB))
        await asyncio.to_thread(until, working.is_set)
        reserving.cancel()
        await asyncio.wait({reserving})
        closing = asyncio.create_task(stream.close())
        for _ in range(10):  # it gets as far as it can
            await asyncio.sleep(0)
        go_on.set()
        await closing

    run(scenario())
    assert str(transfer.target) not in Path("/proc/self/maps").read_text()


def test_a_transfer_that_is_given_up_leaves_no_thread_behind(
    netns_pair: Link, transfer: Transfer
) -> None:
    netns_pair.right.link_state(netns_pair.right_ifname, "down")
    dump = transfer.pages("pages-1.img", 20 * MIB)

    async def scenario() -> None:
        stream = ImageStream(transfer.source, transfer.target, transfer.channel)
        stream.start()
        await asyncio.to_thread(dump)
        try:
            async with asyncio.timeout(0.3):
                await stream.finish()
        finally:
            await stream.close()

    with pytest.raises(TimeoutError):
        run(scenario())


def message(name: object, body: bytes, size: object = None) -> bytes:
    header = msgpack.packb([name, len(body) if size is None else size])
    return struct.pack("!I", len(header)) + header + body


def table(*rows: tuple[object, ...]) -> bytes:
    packed: bytes = msgpack.packb([list(row) for row in rows])
    return message("", packed)


GOOD = message("a.img", b"whole")


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        pytest.param(message("../x.img", b"x"), "no name of a CRIU image", id="slash"),
        pytest.param(message("passwd", b"x"), "no name of a CRIU image", id="no-image"),
        pytest.param(b"\xff" * 4, "header of 4294967295 bytes", id="long-header"),
        pytest.param(struct.pack("!I", 3) + b"\xc1\xc1\xc1", "damaged", id="no-msgpack"),
        pytest.param(message(7, b"x"), "damaged", id="no-name"),
        pytest.param(message(["a.img"], b"x"), "damaged", id="name-in-a-list"),
        pytest.param(message("a.img", b"", "many"), "damaged", id="no-size"),
        pytest.param(message("a.img", b"", -1), "damaged", id="negative-size"),
        # More than any machine's memory: it must not be allocated before it arrives.
        pytest.param(message("a.img", b"x", 1 << 62), "bytes early", id="immense-size"),
        pytest.param(message("a\0.img", b"x"), "damaged", id="nul-in-the-name"),
        pytest.param(message("", msgpack.packb(7)), "damaged", id="table-is-no-list"),
        pytest.param(table(("a.img", 5)), "damaged", id="short-row-in-the-table"),
        pytest.param(
            GOOD + table(("a.img", 5, zlib.crc32(b"wHole"))), "arrived damaged", id="checksum"
        ),
        pytest.param(
            GOOD + table(("a.img", 6, zlib.crc32(b"whole"))), "6 bytes, 5 arrived", id="length"
        ),
        pytest.param(GOOD + table(), "does not know of all", id="file-not-in-table"),
        pytest.param(
            table(("b.img", 1, 0)), "1 bytes, None arrived", id="table-names-what-did-not-come"
        ),
        pytest.param(message("", b"", 1 << 30), "table of 1073741824 bytes", id="long-table"),
        pytest.param(GOOD[:-2], "bytes early", id="cut-off"),
        pytest.param(b"", "bytes early", id="nothing"),
    ],
)
def test_what_makes_no_sense_is_an_error_on_both_ends(
    transfer: Transfer, monkeypatch: pytest.MonkeyPatch, stream: bytes, said: str
) -> None:
    """The receiver gets a stream of our own in place of the sender's."""

    def send(self: object) -> None:
        ours = transfer.channel[0]
        ours.sendall(stream)
        ours.shutdown(socket.SHUT_WR)
        assert ours.recv(1) != b"+"

    monkeypatch.setattr("migrate.runtime.stream._Sender.run", send)
    with pytest.raises(TransferError, match=said):
        transfer.run(reserve=None)
    assert not (transfer.target.parent / "x.img").exists()
