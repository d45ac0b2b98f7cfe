"""Files that are replaced whole: a reader finds the old content or the new one, never a mixture.

Written beside its place, flushed to the disk, renamed over it; then the directory is flushed, so
that a certificate that was handed out is there after a crash too.
"""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mycoproxy.pki.errors import CredentialsError

#: For a file with a private key in it.
SECRET = 0o600
#: For a file that anyone may read.
PUBLIC = 0o644


def replace_file(path: Path, data: bytes, mode: int) -> None:
    """Put ``data`` at ``path`` with permissions ``mode``, whatever was there before."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        flush_directory(path.parent)
    except OSError as error:
        raise CredentialsError(f"cannot write {path}: {error.strerror}") from error


def rename_file(old: Path, new: Path) -> None:
    """Give a file another name, and what had that name is gone."""
    try:
        old.replace(new)
        flush_directory(new.parent)
    except OSError as error:
        raise CredentialsError(f"cannot rename {old} to {new}: {error.strerror}") from error


def read_file(path: Path) -> bytes:
    """The content of a file, from one opening of it. ``CredentialsError`` if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CredentialsError(f"cannot read {path}: {error.strerror}") from error


def read_secret(path: Path) -> bytes:
    """The content of a file with a private key, refused if others can read it.

    The group may read: Kubernetes gives a Secret's files to a group so (``fsGroup``).
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            if mode & 0o037:
                raise CredentialsError(
                    f"{path} holds a private key and has mode {mode:04o}; 0600 or 0640 is wanted "
                    f"(chmod 600 {path})"
                )
            return file.read()
    except OSError as error:
        raise CredentialsError(f"cannot read {path}: {error.strerror}") from error


def make_directory(path: Path) -> None:
    """Make a directory that only its owner can enter; one that is there stays as it is."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CredentialsError(f"cannot make {path}: {error.strerror}") from error


def flush_directory(path: Path) -> None:
    """Make what was renamed in a directory survive a crash."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One command at a time in a directory; a second one waits the milliseconds the first takes."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise CredentialsError(f"cannot open {path}: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
