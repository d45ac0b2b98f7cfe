"""A network namespace for one function call.

The probes try things out where nobody else is: the namespace belongs to a thread, has no name,
and is gone with the thread and the sockets made in it, even if this process is killed. The
host's own rules and connections are never seen or touched.
"""

import array
import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mycoproxy.kernel import CLONE_NEWNET

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)

# linux/sockios.h, linux/if.h; struct ifreq is 40 bytes: name[16], then a union
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_IFREQ = struct.Struct("=16sH22x")

_DEADLINE = 10.0  # seconds, for one probe


def in_throwaway_namespace(function: Callable[[], T]) -> T:
    """Call ``function`` in a new network namespace with its loopback up, and return its result.

    Sockets that it makes must be closed when it returns. Raises what it raises; ``OSError``
    (EPERM) without CAP_SYS_ADMIN, ``TimeoutError`` after 10 s.
    """

    def enter_and_call() -> T:
        if _libc.unshare(CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"unshare(CLONE_NEWNET): {os.strerror(number)}")
        _loopback_up()
        return function()

    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="throwaway-netns")
    call = executor.submit(enter_and_call)
    try:
        return call.result(timeout=_DEADLINE)
    finally:
        # The thread's end is the namespace's end; one that hangs is not waited for.
        executor.shutdown(wait=call.done())


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = array.array("B", _IFREQ.pack(b"lo", _IFF_UP))
        fcntl.ioctl(control, _SIOCSIFFLAGS, request)
