"""Which CRIU this machine has, and how to start it.

This is a question about the machine, like everything in this package; what CRIU is *for* is
``migrate``'s business. It stands here because both ``mycoproxy check`` and ``migrate`` ask it, and
``mycoproxy`` must not import ``migrate``.
"""

import os
import re
import stat
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import which

from mycoproxy.check.capabilities import CAP_SYS_RESOURCE, has_capability
from mycoproxy.errors import RefusedError

NEEDED = (4, 2, 0)
DEFAULT_CACHE = Path("/var/cache/mycoproxy")

_START_TIMEOUT = 10.0  # seconds


@dataclass(frozen=True)
class CriuBinary:
    """A CRIU that is new enough, and the library to preload (``LD_PRELOAD``) into it, if any.

    ``preload`` is set only where CAP_SYS_RESOURCE is missing (scripts/criu_rlimits.c says why).
    """

    path: Path
    version: tuple[int, int, int]
    preload: Path | None

    def environment(self, base: Mapping[str, str] = os.environ) -> dict[str, str]:
        """``base``, with this CRIU first on PATH and its preload library in LD_PRELOAD.

        For CRIU itself, and for runc, which takes ``criu`` from PATH and passes its environment on.
        """
        environment = dict(base)
        environment["PATH"] = f"{self.path.parent}:{environment.get('PATH', os.defpath)}"
        if self.preload is not None:
            environment["LD_PRELOAD"] = str(self.preload)
        return environment


def parse_version(text: str) -> tuple[int, int, int] | None:
    """The version in the output of ``criu --version`` (or ``runc --version``), if there is one."""
    match = re.search(r"\bversion:?\s+v?(\d+)\.(\d+)(?:\.(\d+))?", text, re.IGNORECASE)
    if match is None:
        return None
    return int(match[1]), int(match[2]), int(match[3] or 0)


def version_text(version: tuple[int, int, int]) -> str:
    """``4.2`` for (4, 2, 0), ``4.2.1`` for (4, 2, 1): the way CRIU writes it."""
    major, minor, patch = version
    return f"{major}.{minor}" + (f".{patch}" if patch else "")


def cache_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Where ``make setup`` keeps what it built: MYCOPROXY_CACHE, or /var/cache/mycoproxy."""
    return Path(environ.get("MYCOPROXY_CACHE") or DEFAULT_CACHE)


def find_criu(environ: Mapping[str, str] = os.environ) -> CriuBinary:
    """The first CRIU >= 4.2 of: MYCOPROXY_CRIU, the set-up's cache, PATH.

    A binary named by MYCOPROXY_CRIU is taken or refused, never passed over. As root, this also
    makes the directory in which our own build keeps what it learnt about the kernel; without it
    each start of CRIU probes the kernel again (some 20 ms).

    Raises ``RefusedError`` naming what was found and what is needed.
    """
    found = survey_criu(environ)
    if isinstance(found, str):
        needed = version_text(NEEDED)
        raise RefusedError(f"{found}; {needed} or later is needed (make setup builds it)")
    _make_run_directory(found.path)
    return found


def survey_criu(environ: Mapping[str, str] = os.environ) -> CriuBinary | str:
    """The CRIU that ``find_criu`` takes, or what there is instead of one, in words."""
    instead = "no CRIU found"
    for path in _candidates(environ):
        version = _version_of(path)
        if version is None:
            instead = f"{path} does not start or is no CRIU"
        elif version < NEEDED:
            instead = f"CRIU {version_text(version)} found ({path})"
        else:
            return CriuBinary(path=path, version=version, preload=_preload(environ))
    return instead


def _candidates(environ: Mapping[str, str]) -> Iterator[Path]:
    named = environ.get("MYCOPROXY_CRIU")
    if named:
        yield Path(which(named, path=environ.get("PATH")) or named)
        return
    cached = cache_directory(environ) / "bin" / "criu"
    if cached.exists():
        yield cached
    on_path = which("criu", path=environ.get("PATH"))
    if on_path is not None:
        yield Path(on_path)


def _version_of(path: Path) -> tuple[int, int, int] | None:
    try:
        answer = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=_START_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_version(answer.stdout) if answer.returncode == 0 else None


def _preload(environ: Mapping[str, str]) -> Path | None:
    if has_capability(CAP_SYS_RESOURCE):
        return None
    library = cache_directory(environ) / "lib" / "criu_rlimits.so"
    return library if library.exists() else None


def _make_run_directory(binary: Path) -> None:
    """Make the run directory that our own build names beside itself (scripts/criu.sh).

    CRIU trusts the file it finds there, so the directory has to be root's alone.
    """
    note = binary.resolve().parent.parent / "rundir"
    if os.geteuid() != 0 or not note.exists():
        return
    directory = Path(note.read_text(encoding="utf-8").strip())
    if directory == Path("/run"):
        return
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
        raise RefusedError(
            f"{directory} is not a directory that only root can write to, and CRIU keeps what it "
            f"knows about the kernel there; remove it"
        )
