"""Images arrive whole while they are being written, or both ends hear of it and nobody hangs."""

import asyncio
import os
import socket
import struct
import subprocess
import threading
import zlib
from collections.abc import Callable, Coroutine, Iterator
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
            finally:
                await stream.close()

        return run(scenario())

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
    """Run to the end, with all the threads it started, within the deadline."""

    async def bounded() -> T:
        async with asyncio.timeout(DEADLINE):
            return await coroutine

    before = threading.active_count()
    try:
        return asyncio.run(bounded())
    finally:
        assert threading.active_count() <= before, "a thread was left behind"


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


def test_a_target_that_runs_full_is_an_error_on_both_ends(
    channel: Channel, tiny_tmpfs: Path, tmp_path: Path
) -> None:
    transfer = Transfer(channel, tmp_path)
    transfer.target = tiny_tmpfs
    with pytest.raises(TransferError):
        transfer.run(reserve=None, dump=transfer.pages("pages-1.img", 40 * MIB))


@pytest.fixture
def tiny_tmpfs(tmp_path: Path) -> Iterator[Path]:
    where = tmp_path / "tiny"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(where)], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def test_a_source_that_cannot_read_is_an_error_on_both_ends(transfer: Transfer) -> None:
    (transfer.source / "zz.img").mkdir()
    with pytest.raises(TransferError, match="sending the images"):
        transfer.run(reserve=MIB)


@pytest.mark.parametrize("side", [0, 1], ids=["source", "target"])
@pytest.mark.parametrize("when", ["in the pages", "before the rest"])
def test_a_connection_that_is_cut_is_an_error_on_both_ends(
    transfer: Transfer, side: int, when: str
) -> None:
    def dump() -> None:
        transfer.pages("pages-1.img", 30 * MIB)()
        image = transfer.target / "pages-1.img"
        if when == "before the rest":
            deadline = threading.Event()
            while not image.exists() and not deadline.wait(0.001):
                pass
        transfer.channel[side].shutdown(socket.SHUT_RDWR)

    with pytest.raises(TransferError):
        transfer.run(reserve=None, dump=dump)


def test_a_stream_can_be_closed_while_the_dump_goes_on_for_ever(transfer: Transfer) -> None:
    async def scenario() -> None:
        stream = ImageStream(transfer.source, transfer.target, transfer.channel)
        await stream.reserve(MIB)
        stream.start()
        await asyncio.sleep(0)
        await stream.close()

    run(scenario())


def test_a_stream_that_never_started_can_be_closed(transfer: Transfer) -> None:
    async def scenario() -> None:
        stream = ImageStream(transfer.source, transfer.target, transfer.channel)
        await stream.reserve(MIB)
        await stream.close()

    run(scenario())


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
        pytest.param(message("a.img", b"", "many"), "damaged", id="no-size"),
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
