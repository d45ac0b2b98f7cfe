"""Root file systems for pods, put together from the machine's own Debian binaries.

No registry, no image tool: an image is a server's binary, the libraries it is linked with, and the
few files of /etc that it reads; or Python, and a program of ours with what it imports. It is built
once into a cache outside the work tree, under a name that is a hash of its content, so another
version of the server is another root file system and a checkpoint never meets a binary that it was
not taken of.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mycoproxy.check.criu import cache_directory
from mycoproxy.errors import MycoError, RefusedError, UsageError
from netlab import python_program

_DIRECTORIES = ("data", "dev", "etc", "proc", "run", "sys", "tmp")

_ETC = {
    "etc/passwd": "root:x:0:0:root:/root:/sbin/nologin\nserver:x:999:999::/data:/sbin/nologin\n",
    "etc/group": "root:x:0:\nserver:x:999:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
}


@dataclass(frozen=True, slots=True)
class Binary:
    """A program of an image: where it is to be, where Debian may have it, in which package.

    ``version`` is what ``path --version`` has to print somewhere: Debian ships some servers only
    as another name of a program, which looks at its argv[0].
    """

    path: str
    sources: tuple[str, ...]
    package: str
    version: str


@dataclass(frozen=True, slots=True)
class Image:
    """What a pod of this image runs, unless its topology says otherwise.

    ``argv`` may hold ``{port}``. ``user`` is both user and group id. ``data_mb`` is the size limit
    of the tmpfs on /data in MiB. ``module`` is a Python program of ours that the first binary runs.
    """

    name: str
    binaries: tuple[Binary, ...]
    argv: tuple[str, ...]
    port: int
    user: int
    data_mb: int
    env: Mapping[str, str] = field(default_factory=dict)
    module: str | None = None


# Output goes to a file of its own: an outside file on stdio makes a dump fail.
_REDIS_OPTIONS = """
    --port {port} --bind * -::* --protected-mode no --daemonize no
    --save "" --appendonly no --enable-debug-command yes
    --dir /data --logfile /data/redis.log
"""

_REDIS = Image(
    name="redis",
    binaries=(
        Binary(
            path="usr/bin/redis-server",
            # redis-tools has the same multi-call binary under this name.
            sources=("/usr/bin/redis-server", "/usr/bin/redis-check-rdb"),
            package="redis-tools (or redis-server)",
            version="Redis server v=",
        ),
    ),
    argv=("/usr/bin/redis-server", *shlex.split(_REDIS_OPTIONS)),
    port=6379,
    user=999,
    data_mb=1024,
)

# Its own output goes nowhere: the bundle has no terminal.
_PATHS = Image(
    name="paths",
    binaries=(
        Binary(
            path="usr/bin/python3",
            sources=("/usr/bin/python3",),
            package="python3",
            version="Python 3.",
        ),
    ),
    argv=(
        *("/usr/bin/python3", "-S", "-s", "-m", "netlab.paths.end"),
        *("--port", "{port}", "--control", "/data/control"),
    ),
    port=7000,
    user=999,
    data_mb=16,
    env={"PYTHONPATH": f"/{python_program.PACKAGES}"},
    module="netlab.paths.end",
)

_DATAGRAMS = replace(
    _PATHS,
    name="datagrams",
    argv=("/usr/bin/python3", "-S", "-s", "-m", "netlab.datagram_end", "--port", "{port}"),
    module="netlab.datagram_end",
)

_IMAGES = {image.name: image for image in (_REDIS, _PATHS, _DATAGRAMS)}


def image(name: str) -> Image:
    """The image of that name. Raises ``UsageError``."""
    try:
        return _IMAGES[name]
    except KeyError:
        raise UsageError(f"no image {name!r} (there are: {', '.join(_IMAGES)})") from None


def root_filesystem(wanted: Image) -> Path:
    """The directory with the image's root file system; built if it is not there yet.

    Raises ``RefusedError`` with the package to install if a program is missing.
    """
    files: dict[str, Path] = {}
    for binary in wanted.binaries:
        source = _source_of(binary)
        files[binary.path] = source
        files.update(_libraries(source))
    if wanted.module is not None:
        needed = python_program.files_of(files[wanted.binaries[0].path], wanted.module)
        files.update(needed)
        for file in needed.values():
            if file.suffix == ".so":
                files.update(_libraries(file))
    built = cache_directory() / "rootfs" / f"{wanted.name}-{_digest(files)}"
    if not built.is_dir():
        _build(built, wanted, files)
        for binary in wanted.binaries:
            _verify(built, binary)
    return built


def _source_of(binary: Binary) -> Path:
    for source in map(Path, binary.sources):
        if source.exists():
            return source.resolve()
    raise RefusedError(
        f"no {Path(binary.path).name} on this machine (looked at {', '.join(binary.sources)}): "
        f"install the Debian package {binary.package}"
    )


def _libraries(program: Path) -> dict[str, Path]:
    """The shared libraries and the loader, by the path that the program looks for them at."""
    result = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise MycoError(f"ldd {program} failed: {result.stderr.strip() or result.stdout.strip()}")
    return {path.lstrip("/"): Path(path).resolve() for path in parse_ldd(result.stdout)}


def parse_ldd(output: str) -> list[str]:
    """The files named in the output of ldd(1). Raises ``MycoError`` for one that is not found."""
    paths = []
    for line in output.splitlines():
        name, _, target = line.strip().partition(" => ")
        if target.startswith("not found"):
            raise MycoError(f"shared library {name} is not found on this machine")
        path = (target or name).split(" (")[0]
        if path.startswith("/"):
            paths.append(path)
    return paths


def _digest(files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256(repr((_DIRECTORIES, sorted(_ETC.items()))).encode())
    for path, source in sorted(files.items()):
        with source.open("rb") as content:
            digest.update(
                f"{path}\0{hashlib.file_digest(content, 'sha256').hexdigest()}\0".encode()
            )
    return digest.hexdigest()[:16]


def _build(built: Path, wanted: Image, files: Mapping[str, Path]) -> None:
    """Build beside the final place and rename: nobody ever sees half a root file system."""
    built.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=built.parent) as scratch:
        root = Path(scratch) / "rootfs"
        for directory in _DIRECTORIES:
            (root / directory).mkdir(parents=True)
        for path, text in _ETC.items():
            (root / path).write_text(text)
        for path, source in files.items():
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            target.chmod(0o755)
        if wanted.module is not None:
            python_program.compile_files(files[wanted.binaries[0].path], root)
        for directory, _, _ in os.walk(root):
            Path(directory).chmod(0o755)
        try:
            root.rename(built)
        except OSError:
            # Somebody else built the same meanwhile.
            if not built.is_dir():
                raise


def _verify(built: Path, binary: Binary) -> None:
    program = built / binary.path
    result = subprocess.run(
        [str(program), "--version"], capture_output=True, text=True, check=False, timeout=10
    )
    if binary.version not in result.stdout:
        shutil.rmtree(built)
        raise RefusedError(
            f"{binary.sources} as {program.name} is not the server that is wanted "
            f"({binary.version!r} expected, found {result.stdout.strip()!r}): "
            f"install the Debian package {binary.package}"
        )
