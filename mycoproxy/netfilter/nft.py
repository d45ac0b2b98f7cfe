"""nftables from inside this process: libnftables for rules, plain netlink for set elements.

libnftables (``libnftables.so.1``) understands the same text as the ``nft`` command, without a
child process. Each command makes it read back the chains and sets of the whole namespace first.
So our own tables are compiled by it, once, and made without it (``compiled``); and what happens
during a handover (elements in and out, a table removed) is plain netlink, too (``elements``).

The library waits with select(2), and the C library aborts a process that asks select about a
descriptor from FD_SETSIZE on. In a process that holds that many, the ``nft`` command does it: a
child has few. It starts in the namespace of the thread that starts it.
"""

import ctypes
import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from mycoproxy.errors import MycoError, RefusedError
from mycoproxy.netfilter.compiled import ANY_TABLE, CompileError, Ruleset, read_messages
from mycoproxy.netfilter.elements import (
    SetChange,
    change_requests,
    delete_table_request,
    get_table_request,
    list_request,
    read_elements,
)
from mycoproxy.netfilter.nfnetlink import NetfilterError, Nfnetlink

_LIBRARY = "libnftables.so.1"
_FD_SETSIZE = 1024  # select(2)
_ROOM = 16  # for other threads, which may open some at the same time
_CHILD_SECONDS = 20
_DEBUG_MNL = 0x10  # nftables/libnftables.h

# The library's scanner and symbol tables are shared by all contexts of a process.
_library_lock = threading.Lock()
_rulesets: dict[str, Ruleset] = {}


class NftError(MycoError):
    """nftables refused a command. The message is the library's, in one line."""


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise RefusedError(
            f"{_LIBRARY} is needed and cannot be loaded ({error}); install Debian's libnftables1"
        ) from error
    context = ctypes.c_void_p
    library.nft_ctx_new.restype = context
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    for name in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = [context]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).argtypes = [context]
        getattr(library, name).restype = ctypes.c_char_p
    library.nft_ctx_free.restype = None
    library.nft_run_cmd_from_buffer.argtypes = [context, ctypes.c_char_p]
    library.nft_ctx_set_dry_run.argtypes = [context, ctypes.c_bool]
    library.nft_ctx_output_set_debug.argtypes = [context, ctypes.c_uint]
    for name in ("nft_ctx_set_dry_run", "nft_ctx_output_set_debug"):
        getattr(library, name).restype = None
    return library


class Nft:
    """The nftables of the network namespace that the calling thread is in at creation.

    Made, used and closed on one thread (a ``NamespaceWorker``'s). Raises ``NftError``.
    """

    def __init__(self) -> None:
        self._library = _load()
        self._context: int | None = None
        self._closed = False
        with _library_lock:
            if _descriptors_suffice():
                self._context = self._new_context()
        self._netlink = Nfnetlink()

    def _new_context(self) -> int:
        context: int | None = self._library.nft_ctx_new(0)
        if not context:
            raise NftError("libnftables gave no context: out of memory or no netlink socket")
        # Without buffers the library writes to this process's standard output and error.
        self._library.nft_ctx_buffer_output(context)
        self._library.nft_ctx_buffer_error(context)
        return context

    def close(self) -> None:
        """Free the context and its sockets. May be called again."""
        self._closed = True
        self._netlink.close()
        context, self._context = self._context, None
        if context:
            with _library_lock:
                self._library.nft_ctx_free(context)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def run(self, commands: str) -> str:
        """Run nft commands (one a line), all or none, and return what they print.

        Raises ``NftError`` with the library's message. 0.1-1 ms in an empty ruleset, 4 ms beside
        5,000 chains, and 16-20 ms if a child has to do it: not for the handover.
        """
        if self._closed:
            raise NftError("this nftables context is closed")
        if self._context is None:
            return _output_of(*_run_in_child(commands))
        with _library_lock:
            result = self._run_in(self._context, commands)
        return _output_of(*result)

    def _run_in(self, context: int, commands: str) -> tuple[int, bytes, bytes]:
        status: int = self._library.nft_run_cmd_from_buffer(context, commands.encode())
        output: bytes = self._library.nft_ctx_get_output_buffer(context) or b""
        error: bytes = self._library.nft_ctx_get_error_buffer(context) or b""
        return status, output, error

    def install(self, table: str, ruleset: str, *, replace: bool = False) -> None:
        """Make inet table ``table`` as ``ruleset`` says, where it is called ``ANY_TABLE``.

        With ``replace`` in the place of what there is under that name. All or nothing, 0.2 ms. Only
        a process's first call with a ruleset needs nftables. Raises ``NftError``,
        ``NetfilterError``.
        """
        try:
            compiled = self._compiled(ruleset)
        except CompileError:  # an nftables that shows things in another way
            text = ruleset.replace(f"table inet {ANY_TABLE}", f"table inet {table}")
            first = f"add table inet {table}\ndelete table inet {table}\n"
            self.run(first + text if replace else text)
        else:
            requests = compiled.requests_for(table)
            # Adding it first makes the deletion succeed whether or not it is there.
            away = [requests[0], delete_table_request(table)] if replace else []
            self._netlink.transaction([*away, *requests])

    def _compiled(self, ruleset: str) -> Ruleset:
        if ruleset not in _rulesets:
            _rulesets[ruleset] = read_messages(self._shown(ruleset))
        return _rulesets[ruleset]

    def _shown(self, ruleset: str) -> str:
        """The messages that nftables would send for ``ruleset``."""
        with _library_lock:
            context = self._new_context() if _descriptors_suffice() else None
            if context is not None:
                self._library.nft_ctx_set_dry_run(context, True)
                self._library.nft_ctx_output_set_debug(context, _DEBUG_MNL)
                shown = self._run_in(context, ruleset)
                self._library.nft_ctx_free(context)
        if context is None:
            shown = _run_in_child(ruleset, "--check", "--debug=mnl")
        return _output_of(*shown)

    def change(self, table: str, changes: Iterable[SetChange]) -> None:
        """Change elements of inet table ``table``'s sets, in one transaction.

        Raises ``NetfilterError``: ENOENT if the table, a set or an element to delete is missing.
        """
        self._netlink.transaction(change_requests(table, changes))

    def elements(self, table: str, set_name: str) -> list[tuple[bytes, bytes]]:
        """(key, data) of each element of a set in an inet table."""
        dumped = self._netlink.dump(list_request(table, set_name))
        return [element for part in dumped for element in read_elements(part)]

    def has_table(self, table: str) -> bool:
        """Whether there is an inet table of that name."""
        (answer,) = self._netlink.exchange([get_table_request(table)])
        if answer.errno not in (0, errno.ENOENT):
            raise NetfilterError(f"cannot look for nftables table {table}", answer.errno)
        return answer.errno == 0

    def delete_table(self, table: str) -> None:
        """Delete an inet table with everything in it. None there is well, too."""
        try:
            self._netlink.transaction([delete_table_request(table)])
        except NetfilterError as error:
            if error.errno != errno.ENOENT:
                raise


def _descriptors_suffice() -> bool:
    """Will the library's socket, which gets the lowest number that is free, be below FD_SETSIZE?"""
    lowest = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.close(lowest)
    return lowest < _FD_SETSIZE - _ROOM


def _run_in_child(commands: str, *options: str) -> tuple[int, bytes, bytes]:
    command = shutil.which("nft", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if command is None:
        raise NftError(
            f"this process has more than {_FD_SETSIZE - _ROOM} descriptors open, so libnftables "
            "cannot be used in it, and there is no nft command; install Debian's nftables"
        )
    try:
        done = subprocess.run(
            [command, *options, "-f", "-"],
            input=commands.encode(),
            capture_output=True,
            timeout=_CHILD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NftError(f"nft did not end within {_CHILD_SECONDS} s") from None
    return done.returncode, done.stdout, done.stderr


def _output_of(status: int, output: bytes, error: bytes) -> str:
    if status != 0:
        raise NftError(f"nftables refused a command: {_one_line(error.decode())}")
    return output.decode()


def _one_line(message: str) -> str:
    """nftables' message without the echoed command, the place in it, and the marks under it."""
    said = [line.strip() for line in message.splitlines()]
    lines = [line[line.index("Error:") :] for line in said if "Error:" in line]
    return "; ".join(dict.fromkeys(lines or filter(None, said))) or "no reason given"
