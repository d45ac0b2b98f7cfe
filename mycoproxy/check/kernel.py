"""What the kernel itself must be able to do: version, descriptors of other tasks, TCP_REPAIR."""

import ctypes
import fcntl
import os
import platform
import re
import socket
import struct
import subprocess
from contextlib import ExitStack

from mycoproxy.check.report import UnmetError
from mycoproxy.check.throwaway import in_throwaway_namespace
from mycoproxy.kernel import pidfd_getfd
from mycoproxy.tcp import abi, repair

KERNEL_NEEDED = (5, 15)

_libc = ctypes.CDLL(None, use_errno=True)

# asm/unistd_64.h; asm-generic/unistd.h
_SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
# linux/userfaultfd.h
_UFFDIO_API = 0xC018AA3F
_UFFD_API = 0xAA
_UFFD_FEATURE_WP_ASYNC = 1 << 15  # Linux 6.7
_UFFDIO_API_STRUCT = struct.Struct("=QQQ")  # api, features, ioctls
# linux/fs.h: struct pm_scan_arg, Linux 6.7
_PAGEMAP_SCAN = 0xC0606610
_PM_SCAN_ARG = struct.Struct("=12Q")
_PAGE_IS_PRESENT = 1 << 3


def parse_release(release: str) -> tuple[int, int]:
    """(6, 18) for ``6.18.5-1-amd64``. Raises ``ValueError`` for anything that is no release."""
    match = re.match(r"(\d+)\.(\d+)", release)
    if match is None:
        raise ValueError(f"no kernel release: {release!r}")
    return int(match[1]), int(match[2])


def kernel_version(release: str | None = None) -> str:
    """The kernel's release (by default the running one's), if it is new enough."""
    release = os.uname().release if release is None else release
    if parse_release(release) < KERNEL_NEEDED:
        raise UnmetError(release)
    return release


def descriptor_of_a_child() -> str:
    """Take a pipe out of a child process with pidfd_getfd(2)."""
    with ExitStack() as stack:
        child = subprocess.Popen(["sleep", "30"], stdin=subprocess.PIPE)
        stack.callback(child.wait)
        stack.callback(child.kill)
        assert child.stdin is not None
        stack.enter_context(child.stdin)
        pidfd = os.pidfd_open(child.pid)
        stack.callback(os.close, pidfd)
        taken = pidfd_getfd(pidfd, 0)
        stack.callback(os.close, taken)
        if os.fstat(taken).st_ino != os.fstat(child.stdin.fileno()).st_ino:
            raise UnmetError("took another descriptor than the one that was asked for")
    return "works"


def tcp_repair() -> str:
    """Read sequence numbers of a live connection in repair mode, leave it, and go on using it."""
    return in_throwaway_namespace(_repair_a_connection)


def _repair_a_connection() -> str:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = stack.enter_context(socket.create_connection(listener.getsockname(), timeout=5))
        server = stack.enter_context(listener.accept()[0])
        server.settimeout(5)
        repair.enter(client)
        repair.select_queue(client, abi.TCP_SEND_QUEUE)
        before = repair.queue_sequence(client)
        client.getsockopt(socket.IPPROTO_TCP, abi.TCP_REPAIR_WINDOW, abi.REPAIR_WINDOW.size)
        repair.leave(client)
        client.sendall(b"x")
        if server.recv(1) != b"x":
            raise UnmetError("a connection does not go on after repair mode")
        repair.enter(client)
        repair.select_queue(client, abi.TCP_SEND_QUEUE)
        sent = (repair.queue_sequence(client) - before) % 2**32
        repair.leave(client)
        if sent != 1:
            raise UnmetError(f"one byte moved the sequence number by {sent}")
    return "works"


def userfaultfd() -> str:
    """Whether userfaultfd(2) can track writes without stopping the writer."""
    number = _SYS_USERFAULTFD.get(platform.machine())
    if number is None:
        raise UnmetError(f"not known for {platform.machine()}")
    descriptor = _libc.syscall(number, os.O_CLOEXEC)
    if descriptor < 0:
        raise UnmetError(os.strerror(ctypes.get_errno()))
    try:
        answer = bytearray(_UFFDIO_API_STRUCT.pack(_UFFD_API, 0, 0))
        fcntl.ioctl(descriptor, _UFFDIO_API, answer)
    finally:
        os.close(descriptor)
    features = _UFFDIO_API_STRUCT.unpack(answer)[1]
    if not features & _UFFD_FEATURE_WP_ASYNC:
        raise UnmetError("no asynchronous write protection")
    return "with asynchronous write protection"


def pagemap_scan() -> str:
    """Whether the PAGEMAP_SCAN ioctl of /proc/PID/pagemap is there."""
    page = ctypes.create_string_buffer(1)
    size = os.sysconf("SC_PAGESIZE")
    start = ctypes.addressof(page) // size * size
    regions = ctypes.create_string_buffer(24)
    request = bytearray(
        # size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted,
        # category_mask, category_anyof_mask, return_mask
        _PM_SCAN_ARG.pack(
            _PM_SCAN_ARG.size, 0, start, start + size, 0, ctypes.addressof(regions), 1, 0, 0,
            _PAGE_IS_PRESENT, 0, _PAGE_IS_PRESENT,
        )
    )  # fmt: skip
    descriptor = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        found = fcntl.ioctl(descriptor, _PAGEMAP_SCAN, request)
    except OSError as error:
        raise UnmetError(error.strerror or str(error)) from error
    finally:
        os.close(descriptor)
    if found != 1:
        raise UnmetError("does not see a page that is there")
    return "works"
