"""The durable journal of one agent: a file for each open move, in one directory.

``append`` and ``attach`` return when what they wrote outlives this process, and (on a disk) the
machine; or they raise, and nothing was written, unless the error says ``unsure``. Room for the
records that end a move is made when it begins: a disk that fills up meanwhile cannot stop them.
(On a file system that copies on write, btrfs or zfs, that room is no promise.)

The directory decides how much is outlived. On tmpfs, forcing costs nothing and a restart of the
machine loses all: the containers are lost with it, but participants elsewhere that are in doubt
then hear ``Lost`` and wait for an operator. On a disk they hear the decision. Prefer the disk.

Everything here is synchronous and belongs to one thread (any one). A file system call that fails
raises ``JournalError``; a broken file is set aside, never an exception.
"""

import errno
import fcntl
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Final, TypeVar

from mycoproxy.agreement.effects import Record, RecordKind
from mycoproxy.agreement.journal_file import DamagedError, Frame, decode, encode
from mycoproxy.agreement.messages import MessageError, MoveId
from mycoproxy.errors import MycoError

ROOM: Final = 64 * 1024
"""Bytes of zeros a file begins with, and has after every attachment."""

T = TypeVar("T")

_SUFFIX, _DAMAGED, _NEW = ".move", ".damaged", ".new"


class JournalError(MycoError):
    """Nothing was written; if ``unsure``, it may be found there after a restart nevertheless."""

    def __init__(self, message: str, *, unsure: bool = False) -> None:
        super().__init__(message)
        self.unsure = unsure


@dataclass(slots=True)
class OpenMove:
    """What the journal holds of one move."""

    move: MoveId
    records: list[Record]
    attachments: dict[str, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class _File:
    fd: int
    path: Path
    end: int  # of what counts
    room: int  # where the zeros end
    dirty: bool = False  # something that does not count is behind ``end``


class Journal:
    """Of one agent. Raises ``JournalError`` if the directory cannot be used, or is in use."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[MoveId, _File] = {}
        self._damaged: set[str] = set()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise JournalError(f"a directory is wanted for the journal: {error}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.identity = self._identity()
        except OSError as error:
            os.close(self._fd)
            in_use = error.errno == errno.EWOULDBLOCK
            why = "another agent uses it; stop that one" if in_use else str(error)
            raise JournalError(f"journal {directory}: {why}") from error

    def close(self) -> None:
        """Close the files; they stay."""
        for file in self._files.values():
            os.close(file.fd)
        self._files.clear()
        os.close(self._fd)

    def size(self) -> int:
        """Bytes that the files of open moves take."""
        return sum(file.room for file in self._files.values())

    def open_moves(self) -> tuple[list[OpenMove], list[Path]]:
        """Every move that has a file, after a restart; and the files that are damaged and were
        set aside: nobody can say any more how their moves stand."""
        moves = []
        try:
            for path in sorted(self._directory.iterdir()):
                if path.suffix == _SUFFIX:
                    try:
                        moves.append(self._read(path))
                    except (DamagedError, MessageError):
                        path.rename(path.with_suffix(_DAMAGED))
                        self._damaged.add(path.stem)
                elif path.suffix == _DAMAGED:
                    self._damaged.add(path.stem)
                elif path.suffix == _NEW:
                    path.unlink()
        except OSError as error:
            raise JournalError(f"journal {self._directory}: {error}") from error
        aside = [self._directory / (stem + _DAMAGED) for stem in sorted(self._damaged)]
        return moves, aside

    def lost(self, move: MoveId) -> bool:
        """Is there no telling whether this agent, its source, once knew of ``move``?"""
        return move.journal != self.identity or _stem(move) in self._damaged

    def append(self, move: MoveId, record: Record, *, forced: bool) -> None:
        """Write a record; the first, ``BEGUN``, makes the file. Not ``forced``: it outlives this
        process all the same, not the machine."""
        frame = encode(Frame("", record.to_plain()))
        if move not in self._files:
            if record.kind is not RecordKind.BEGUN:
                raise JournalError(f"no journal of {move} is open; its beginning comes first")
            self._files[move] = self._attempt(move, lambda: self._create(move, frame))
        else:
            self._write(move, frame, forced=forced, room=0)

    def attach(self, move: MoveId, name: str, data: bytes) -> None:
        """Keep ``data`` under ``name`` (the last one counts), forced, up to 256 MiB."""
        if not name or move not in self._files:
            raise JournalError(f"cannot attach {name!r} to {move}: it has to be open, with a name")
        try:
            frame = encode(Frame(name, data))
        except ValueError as error:
            raise JournalError(f"cannot attach {name!r} to {move}: {error}") from error
        self._write(move, frame, forced=True, room=ROOM)

    def forget(self, move: MoveId) -> None:
        """Remove all that there is of a move. If that fails it is still open; try again."""
        file = self._files.get(move)
        if file is None:
            return

        def remove() -> None:
            file.path.unlink(missing_ok=True)
            os.fsync(self._fd)

        self._attempt(move, remove)
        os.close(self._files.pop(move).fd)

    def _identity(self) -> str:
        path = self._directory / "identity"
        try:
            return MoveId.from_plain(["x", path.read_text(encoding="ascii"), 0]).journal
        except (FileNotFoundError, MessageError, UnicodeDecodeError):
            identity = secrets.token_hex(8)
        os.close(self._place(path, identity.encode()))
        return identity

    def _place(self, path: Path, data: bytes) -> int:
        """A file that is there whole or not at all; returns its open descriptor."""
        new = path.with_suffix(_NEW)
        fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_all(fd, data, 0)
            os.fsync(fd)
            new.rename(path)
            os.fsync(self._fd)
        except OSError:
            os.close(fd)
            for left in (new, path):
                left.unlink(missing_ok=True)
            raise
        return fd

    def _create(self, move: MoveId, frame: bytes) -> _File:
        path = self._directory / (_stem(move) + _SUFFIX)
        fd = self._place(path, frame + bytes(ROOM))
        return _File(fd, path, len(frame), len(frame) + ROOM)

    def _read(self, path: Path) -> OpenMove:
        data = path.read_bytes()
        frames, end = decode(data)
        records = [Record.from_plain(frame.body) for frame in frames if not frame.name]
        if not records or records[0].plan is None:  # the file was put in its place whole
            raise DamagedError("it does not begin with the beginning")
        move = records[0].plan.move
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        dirty = any(data[end:])
        self._files[move] = _File(fd, path, end, len(data), dirty)
        return OpenMove(move, records, {frame.name: frame.body for frame in frames if frame.name})

    def _write(self, move: MoveId, frame: bytes, *, forced: bool, room: int) -> None:
        """``room``: bytes that there have to be behind it."""
        file = self._files[move]

        def write() -> None:
            self._clean(file)
            file.dirty = True
            wanted = file.end + len(frame) + room
            if wanted > file.room:
                os.posix_fallocate(file.fd, file.room, wanted - file.room)
                file.room = wanted
            _write_all(file.fd, frame, file.end)
            if forced:
                os.fdatasync(file.fd)
            file.end += len(frame)
            file.dirty = False

        try:
            self._attempt(move, write)
        except JournalError as error:
            try:
                self._clean(file)
            except OSError:
                error.unsure = True
            raise

    def _clean(self, file: _File) -> None:
        """Take back what was written in part, and the room that was made for it."""
        if file.dirty:
            rest = os.fstat(file.fd).st_size - file.end
            zeros = bytes(min(rest, ROOM))
            _write_all(file.fd, zeros, file.end)
            os.ftruncate(file.fd, file.end + len(zeros))
            os.fdatasync(file.fd)
            file.room = file.end + len(zeros)
            file.dirty = False

    @staticmethod
    def _attempt(move: MoveId, attempt: Callable[[], T]) -> T:
        try:
            return attempt()
        except OSError as error:
            raise JournalError(f"journal of {move}: {error}") from error


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _stem(move: MoveId) -> str:
    return sha256(str(move).encode()).hexdigest()[:32]
