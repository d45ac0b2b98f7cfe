"""System calls that Python 3.11 lacks, through ctypes.

Each function raises ``OSError`` with the kernel's errno. Numbers are those of the generic
system call table (x86_64 and arm64 agree on the ones used here).
"""

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)

_SYS_PIDFD_GETFD = 438  # asm-generic/unistd.h, Linux 5.6

CLONE_NEWNET = 0x40000000  # linux/sched.h


def _check(result: int) -> int:
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
    return result


def setns(fd: int, nstype: int) -> None:
    """Move the calling *thread* into the namespace that ``fd`` refers to (setns(2))."""
    _check(_libc.setns(fd, nstype))


def pidfd_getfd(pidfd: int, target_fd: int) -> int:
    """A duplicate (close-on-exec) of another task's descriptor (pidfd_getfd(2)).

    Works on frozen and on ptrace-stopped tasks. Needs PTRACE_MODE_ATTACH_REALCREDS.
    """
    return _check(_libc.syscall(_SYS_PIDFD_GETFD, pidfd, target_fd, 0))
