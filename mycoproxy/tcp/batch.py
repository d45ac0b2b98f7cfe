"""A vector of system calls on one descriptor, run as one call.

From Python a system call costs half a microsecond, of which the kernel takes a tenth; a handover
reads some hundred socket options of each connection. A ``Program`` is laid out once and run on
any number of descriptors: its operations, and a piece of memory that holds what they read
(*inputs*) and everything that they report (the *answer*: results, lengths, outputs).

The calls are made by ``_batch.c``, loaded with ``ctypes.PyDLL``: the interpreter lock is kept,
because giving it up and taking it back costs more than the calls take. **So nothing that can
block belongs into a program.** Where the library was not built, ctypes makes the calls one by one,
with the same results, ten times slower.
"""

import ctypes
import errno
import os
import platform
import struct
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Final

_ARGUMENTS: Final = 5
_SOCKADDR_STORAGE: Final = 128  # include/uapi/linux/socket.h
_ALIGNMENT: Final = 8
_LONG: Final = struct.Struct("@l")
_LENGTH: Final = struct.Struct("@I")  # socklen_t

# System call numbers: arch/x86/entry/syscalls/syscall_64.tbl; all newer architectures have those
# of include/uapi/asm-generic/unistd.h.
_X86_64: Final = {
    "ioctl": 16,
    "connect": 42,
    "bind": 49,
    "getsockname": 51,
    "getpeername": 52,
    "setsockopt": 54,
    "getsockopt": 55,
}
_GENERIC: Final = {
    "ioctl": 29,
    "bind": 200,
    "connect": 203,
    "getsockname": 204,
    "getpeername": 205,
    "setsockopt": 208,
    "getsockopt": 209,
}
_NUMBERS: Final = _X86_64 if platform.machine() == "x86_64" else _GENERIC


class _Entry(ctypes.Structure):
    """``struct operation`` of _batch.c."""

    _fields_ = (
        ("number", ctypes.c_long),
        ("arguments", ctypes.c_long * _ARGUMENTS),
        ("offsets", ctypes.c_uint),
        ("must", ctypes.c_uint),
    )


def _library() -> ctypes.PyDLL | None:
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name("_batch" + suffix)
        if path.exists():
            library = ctypes.PyDLL(str(path))
            pointer = ctypes.c_void_p
            library.batch_run.argtypes = (ctypes.c_int, pointer, ctypes.c_int, pointer, pointer)
            return library
    return None


_LIBRARY: Final = _library()
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

COMPILED: Final = _LIBRARY is not None
"""Whether ``_batch.c`` was built; it is used then."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One system call on the descriptor.

    ``call`` is its name. ``plain`` are the arguments before the pointers. ``value`` is what the
    kernel reads; ``size`` is how many bytes it may write, and ``counted`` says that it is also
    told that number and answers with the one it used. ``must``: if this fails, ``run`` stops and
    raises; other failures only stand in the answer. ``name`` is for messages.
    """

    call: str
    plain: tuple[int, ...] = ()
    value: bytes | None = None
    size: int = 0
    counted: bool = False
    must: bool = False
    name: str = ""


def getsockopt(
    level: int, option: int, size: int = 4, *, must: bool = False, name: str = ""
) -> Operation:
    """getsockopt(2) of up to ``size`` bytes."""
    return Operation("getsockopt", (level, option), size=size, counted=True, must=must, name=name)


def setsockopt(
    level: int, option: int, value: bytes, *, must: bool = False, name: str = ""
) -> Operation:
    """setsockopt(2). ``value`` can be another in each run, of the same length."""
    return Operation("setsockopt", (level, option), value=value, must=must, name=name)


def ioctl(request: int, size: int = 4, *, must: bool = False, name: str = "") -> Operation:
    """ioctl(2) that writes ``size`` bytes."""
    return Operation("ioctl", (request,), size=size, must=must, name=name)


def bind(size: int, *, must: bool = False, name: str = "") -> Operation:
    """bind(2) to the ``struct sockaddr`` of ``size`` bytes that each run is given."""
    return Operation("bind", value=bytes(size), must=must, name=name)


def connect(size: int, *, must: bool = False, name: str = "") -> Operation:
    """connect(2) to the ``struct sockaddr`` of ``size`` bytes that each run is given."""
    return Operation("connect", value=bytes(size), must=must, name=name)


def getsockname(*, must: bool = False) -> Operation:
    """getsockname(2): a ``struct sockaddr``."""
    return Operation("getsockname", size=_SOCKADDR_STORAGE, counted=True, must=must)


def getpeername(*, must: bool = False) -> Operation:
    """getpeername(2): a ``struct sockaddr``."""
    return Operation("getpeername", size=_SOCKADDR_STORAGE, counted=True, must=must)


class OperationError(OSError):
    """An operation that had to succeed failed. ``index`` says which; later ones did not run."""

    def __init__(self, number: int, operation: Operation, index: int) -> None:
        what = operation.name or f"{operation.call}{operation.plain}"
        super().__init__(number, f"{what}: {os.strerror(number)}")
        self.operation = operation
        self.index = index


class Program:
    """Operations in their order, ready to be run on any descriptor by any thread.

    Memory is one block: inputs, then results (a long each), lengths (a socklen_t each), outputs
    (each aligned to eight bytes). The answer is all of it but the inputs, and what the kernel did
    not write is zero: two answers are equal if and only if everything that the kernel said is.
    """

    def __init__(self, operations: Iterable[Operation]) -> None:
        self.operations: Final = tuple(operations)
        count = len(self.operations)
        self.inputs: Final = b"".join(_padded(each.value or b"") for each in self.operations)
        """What ``run`` gives the kernel if it is not told otherwise: the values, each padded with
        zeros to a multiple of eight bytes."""
        self._answer_at: Final = len(self.inputs)
        self._lengths_at: Final = count * _LONG.size
        lengths = b"".join(_LENGTH.pack(each.size) for each in self.operations)
        self._table: Final = (_Entry * count)()
        image = bytearray(self.inputs + struct.pack(f"@{count}l", *[-errno.ECANCELED] * count))
        image += _padded(lengths)
        offsets = []
        taken = 0
        for index, (each, entry) in enumerate(zip(self.operations, self._table, strict=True)):
            entry.number, entry.must = _NUMBERS[each.call], each.must
            arguments = [(value, False) for value in each.plain]
            if each.value is not None:
                arguments += [(taken, True), (len(each.value), False)]
                taken += len(_padded(each.value))
            offsets.append(len(image) - self._answer_at)
            if each.size or each.counted:
                arguments.append((len(image), True))
                image += _padded(bytes(each.size))
            if each.counted:
                arguments.append((self._answer_at + self._lengths_at + index * _LENGTH.size, True))
            for place, (value, is_offset) in enumerate(arguments):
                entry.arguments[place] = value
                entry.offsets |= is_offset << place
        self.offsets: Final = tuple(offsets)
        """Where in an answer each operation's output starts, in bytes: for ``unpack_from``."""
        self._image: Final = bytes(image)
        self._own: Final = _Own(len(image), self._answer_at)

    def run(self, fd: int, inputs: bytes | None = None) -> bytes:
        """Run the operations on ``fd``; returns the answer.

        ``inputs`` stands in for ``self.inputs``, byte for byte. Raises ``OperationError`` if an
        operation that must succeed does not, ``ValueError`` if ``inputs`` has another length.
        """
        own = self._own
        own.memory[:] = self._image
        if inputs is not None:
            own.memory[: self._answer_at] = inputs
        run = _run_one_by_one if _LIBRARY is None else _LIBRARY.batch_run
        done = run(fd, self._table, len(self._table), own.address, own.results_address)
        answer = own.answer.tobytes()
        if done < len(self._table):
            raise OperationError(-self.result(answer, done), self.operations[done], done)
        return answer

    def unpacker(self, formats: Mapping[int, str]) -> struct.Struct:
        """Unpacks the outputs of several operations at once: ``unpack_from(answer, offset_0)``.

        ``formats`` has the ``struct`` format of each wanted operation's output by its index, which
        may be shorter than the output; the fields come in the operations' order. Use it with
        ``offsets[0]``.
        """
        layout = "="
        for index, each in enumerate(self.operations):
            room = len(_padded(bytes(each.size)))
            wanted = formats.get(index, "")
            layout += f"{wanted}{room - struct.calcsize('=' + wanted)}x"
        return struct.Struct(layout)

    def packer(self, formats: Iterable[str]) -> struct.Struct:
        """Packs ``inputs``: one ``struct`` format for each operation that has a value, in order.

        Raises ``ValueError`` if they do not make up the inputs.
        """
        layout = "="
        for wanted in formats:
            size = struct.calcsize("=" + wanted)
            layout += f"{wanted}{-size % _ALIGNMENT}x"
        packer = struct.Struct(layout)
        if packer.size != len(self.inputs):
            raise ValueError(f"{layout} has {packer.size} bytes, the inputs {len(self.inputs)}")
        return packer

    def result(self, answer: bytes, index: int) -> int:
        """What the system call returned, or -errno; -ECANCELED if it did not run."""
        number: int = _LONG.unpack_from(answer, index * _LONG.size)[0]
        return number

    def output(self, answer: bytes, index: int) -> bytes:
        """What the system call wrote: as many bytes as it said, none if it failed."""
        if self.result(answer, index) < 0:
            return b""
        start = self.offsets[index]
        size = min(self.length(answer, index), self.operations[index].size)
        return answer[start : start + size]

    def length(self, answer: bytes, index: int) -> int:
        """The length that the system call gave; that of its output if it gives none."""
        length: int = _LENGTH.unpack_from(answer, self._lengths_at + index * _LENGTH.size)[0]
        return length


class _Own(threading.local):
    """A program's memory, one for each thread that runs it."""

    def __init__(self, size: int, answer_at: int) -> None:
        block = ctypes.create_string_buffer(size)
        self.address = ctypes.addressof(block)
        self.results_address = self.address + answer_at
        self.memory = memoryview(block).cast("B")  # keeps the block
        self.answer = self.memory[answer_at:]


def _padded(value: bytes) -> bytes:
    return value + bytes(-len(value) % _ALIGNMENT)


def _run_one_by_one(
    fd: int, table: ctypes.Array[_Entry], count: int, memory: int, results: int
) -> int:
    """``batch_run`` of _batch.c, where that was not built."""
    kept = (ctypes.c_long * count).from_address(results)
    for index, entry in enumerate(table):
        arguments = [
            ctypes.c_long(value + memory * (entry.offsets >> place & 1))
            for place, value in enumerate(entry.arguments)
        ]
        result = _libc.syscall(ctypes.c_long(entry.number), ctypes.c_long(fd), *arguments)
        kept[index] = -ctypes.get_errno() if result == -1 else result
        if result == -1 and entry.must:
            return index
    return count
