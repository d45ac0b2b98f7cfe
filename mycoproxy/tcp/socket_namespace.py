"""The network namespace that a socket lives in: not always that of the thread that uses it."""

import fcntl
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from mycoproxy.kernel import CLONE_NEWNET, setns

T = TypeVar("T")

SO_NETNS_COOKIE: Final = 71  # include/uapi/asm-generic/socket.h, Linux 5.14
_SIOCGSKNS: Final = 0x894C  # include/uapi/linux/sockios.h
_OWN: Final = Path("/proc/thread-self/ns/net")


def call_in_namespace_of(sock: socket.socket, function: Callable[[], T]) -> T:
    """Call ``function`` in the socket's network namespace, and wait for its result.

    Unless the caller is in that namespace it is called on a thread of its own, which takes a
    fraction of a millisecond: for what is done once per namespace. Needs CAP_NET_ADMIN there, and
    CAP_SYS_ADMIN. Raises ``OSError``.
    """

    def enter_and_call() -> T:
        setns(namespace, CLONE_NEWNET)
        return function()

    namespace = fcntl.ioctl(sock.fileno(), _SIOCGSKNS)
    try:
        if os.path.samestat(os.fstat(namespace), _OWN.stat()):
            return function()
        with ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(enter_and_call).result()
    finally:
        os.close(namespace)
