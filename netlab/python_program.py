"""Which files a Python program of this repository needs, so that an image holds these only.

What a shared library is to a binary, an imported module is to a program: the interpreter that is to
run it runs it with ``--help``, and says what it has loaded by then.
"""

import json
import subprocess
from pathlib import Path

from mycoproxy.errors import MycoError

#: Where the program's own packages are in an image: its PYTHONPATH.
PACKAGES = "usr/lib/netlab"

_REPOSITORY = Path(__file__).parent.parent
_SECONDS = 30.0

_LOADED = """\
import contextlib, importlib.util, io, json, runpy, sys
sys.path.insert(0, sys.argv.pop(1))
module = sys.argv.pop(1)
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    runpy.run_module(module, run_name="__main__", alter_sys=True)
files = {getattr(each, "__file__", None) for each in list(sys.modules.values())}
files.add(importlib.util.find_spec(module + ".__main__").origin)
print(json.dumps(sorted(files - {None})))
"""


def files_of(interpreter: Path, module: str) -> dict[str, Path]:
    """The files that ``python -m module`` loads, by their path in the image.

    Raises ``MycoError`` if the program cannot be imported by ``interpreter``.
    """
    arguments = [str(_REPOSITORY), module, "--help"]
    result = subprocess.run(
        [str(interpreter), "-I", "-S", "-c", _LOADED, *arguments],
        env={"LC_ALL": "C", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    if result.returncode != 0:
        raise MycoError(f"{interpreter} cannot run {module}: {result.stderr.strip()[-500:]}")
    files = {}
    for name in json.loads(result.stdout):
        file = Path(name)
        own = file.is_relative_to(_REPOSITORY)
        place = f"{PACKAGES}/{file.relative_to(_REPOSITORY)}" if own else name.lstrip("/")
        files[place] = file
    return files


def compile_files(interpreter: Path, directory: Path) -> None:
    """Compile what is below ``directory``, for it will be read-only. Raises ``MycoError``."""
    command = [str(interpreter), "-I", "-m", "compileall", "-q"]
    command += ["--invalidation-mode", "unchecked-hash", str(directory)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if result.returncode != 0:
        raise MycoError(f"cannot compile {directory}: {result.stdout.strip()[-500:]}")
