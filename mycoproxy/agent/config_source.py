"""Where the configuration comes from: environment over file over default, and who said what.

Errors are collected: one line for each, with file and line or the variable, the key, what was
wanted and what was found.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_origin

from pydantic import Strict, ValidationError

from mycoproxy.agent.config import KEYS, PREFIX, Config, Key
from mycoproxy.errors import UsageError

DEFAULT_FILE: Final = Path("/etc/mycoproxy/agent.toml")

#: The file's path; and what belongs to other programs of this project.
FILE_VARIABLE: Final = PREFIX + "CONFIG"
_OTHERS: Final = re.compile(PREFIX + r"(CONFIG|CACHE|GATE.*|CRIU.*)")

#: Kubernetes sets these in each pod for a Service whose name begins with "mycoproxy".
_OF_A_SERVICE: Final = re.compile(
    r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)

_HEADER = re.compile(r"\s*\[([^\[\]]+)\]\s*(#.*)?")
_ASSIGNMENT = re.compile(r"""\s*((?:[A-Za-z0-9_.\-]|"[^"]*"|'[^']*'|\s*\.\s*)+?)\s*=""")
_KEY_PART = re.compile(r""""([^"]*)"|'([^']*)'|([A-Za-z0-9_\-]+)""")

_WANTED: Final = {
    "int_type": "a whole number is wanted",
    "float_type": "a number is wanted",
    "finite_number": "a finite number is wanted",
    "string_type": "text is wanted",
    "path_type": "a path is wanted",
    "tuple_type": "a list is wanted",
    "dict_type": "a table is wanted",
    "model_type": "a table is wanted",
    "greater_than": "a number above {gt} is wanted",
    "greater_than_equal": "at least {ge} is wanted",
    "less_than_equal": "at most {le} is wanted",
    "too_short": "at least {min_length} is wanted",
    "string_too_short": "text that is not empty is wanted",
    "literal_error": "one of {expected} is wanted",
}


class ConfigError(UsageError):
    """The configuration makes no sense. One line for each thing that is wrong."""


@dataclass(frozen=True)
class Loaded:
    """A configuration, and for each key (``log.level``) who said it."""

    config: Config
    origins: Mapping[str, str]


@dataclass(frozen=True)
class Source:
    """What is read at the start and again at each reload. ``file`` None: there is none."""

    file: Path | None
    environment: Mapping[str, str]

    @classmethod
    def find(cls, file: Path | None, environment: Mapping[str, str]) -> Source:
        """With the file that was asked for, else the variable's, else the usual one if it is there.

        The path is made absolute: a daemon may change its directory.
        """
        named = environment.get(FILE_VARIABLE)
        if file is None and named:
            file = Path(named)
        if file is None and DEFAULT_FILE.exists():
            file = DEFAULT_FILE
        return cls(file.absolute() if file else None, dict(environment))

    def load(self) -> Loaded:
        """Read all of it. Raises ``ConfigError``; nothing is half read."""
        text = _read(self.file) if self.file else ""
        return load_text(text, self.environment, name=str(self.file))


def load_text(text: str, environment: Mapping[str, str], *, name: str) -> Loaded:
    """The configuration that ``text`` (TOML) and the environment make. ``name``: of the file."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: TOML is wanted: {error}") from error
    lines = _lines(text)
    variables, problems = _from_environment(environment)
    for (section, key), (_, value) in variables.items():
        table = data.setdefault(section, {})
        if isinstance(table, dict):
            table[key] = value
    places = _Places(name, lines, {path: variable for path, (variable, _) in variables.items()})
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=True)
        problems += [_problem(dict(each), places) for each in found]
    if problems:
        raise ConfigError("\n".join(problems))
    return Loaded(config, {key.path: _origin(key, data, places) for key in KEYS})


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "UTF-8 is wanted"
        raise ConfigError(f"{file}: the configuration cannot be read: {reason}") from error


def _from_environment(
    environment: Mapping[str, str],
) -> tuple[dict[tuple[str, str], tuple[str, Any]], list[str]]:
    """Variable and value of each key that is set, and what is wrong. Empty counts as not set."""
    known = {key.variable: key for key in KEYS}
    values: dict[tuple[str, str], tuple[str, Any]] = {}
    problems = []
    for variable, text in sorted(environment.items()):
        if not variable.startswith(PREFIX):
            continue
        key = known.get(variable)
        if key is None:
            if not _OTHERS.fullmatch(variable) and not _OF_A_SERVICE.fullmatch(variable):
                problems.append(f"environment: {variable}: {_unknown(variable, known)}")
        elif text:
            values[key.section, key.name] = (variable, _decoded(key, text))
    return values, problems


def _decoded(key: Key, text: str) -> Any:  # noqa: ANN401
    """The text of a variable as TOML would have given it; text if it is not of that kind."""
    kind = key.field.annotation
    if get_origin(kind) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    if get_origin(kind) is dict:
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        return {name.strip(): value.strip() for name, _, value in pairs}
    if any(isinstance(each, Strict) for each in key.field.metadata):
        for number in (int, float) if kind is float else (int,):
            try:
                return number(text)
            except ValueError:
                pass
    return text


@dataclass(frozen=True)
class _Places:
    """Where a value was said, for messages."""

    file: str
    lines: Mapping[tuple[str, ...], int]
    variables: Mapping[tuple[str, str], str]

    def of(self, path: tuple[str, ...]) -> str:
        """``FILE:LINE`` of the key or of what it stands in, or the variable."""
        for (section, key), variable in self.variables.items():
            if path[:2] == (section, key):
                return f"environment: {variable}"
        for length in range(len(path), 0, -1):
            line = self.lines.get(path[:length])
            if line is not None:
                return f"{self.file}:{line}"
        return self.file if self.lines else "configuration"


def _origin(key: Key, data: Mapping[str, Any], places: _Places) -> str:
    if key.name not in data.get(key.section, {}):
        return "default"
    return places.of((key.section, key.name))


def _problem(error: dict[str, Any], places: _Places) -> str:
    path = tuple(str(part) for part in error["loc"] if part != "[key]")
    found, kind = error["input"], error["type"]
    if kind == "extra_forbidden":
        siblings = [key.name for key in KEYS if key.section == path[0]]
        sections = list(Config.model_fields)
        text = _unknown(path[-1], siblings if len(path) > 1 else sections)
    elif kind == "value_error":
        text = str(error["ctx"]["error"])
    else:
        wanted = _WANTED.get(kind, str(error["msg"])).format(**error.get("ctx", {}))
        shown = repr(found)
        text = f"{wanted}, found {shown if len(shown) <= 80 else shown[:77] + '...'}"
    return f"{places.of(path)}: {'.'.join(path)}: {text}"


def _unknown(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"no such key; {close[0]} is near it"
    return f"no such key; there are {', '.join(names)}"


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """The line of each table and key. tomllib does not say; this reads what people write.

    In a text of several lines it may see a key that is none; then a message names that line.
    """
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.fullmatch(line):
            table = _parts(header[1])
            found.setdefault(table, number)
        elif assignment := _ASSIGNMENT.match(line):
            path = (*table, *_parts(assignment[1]))
            for length in range(1, len(path) + 1):
                found.setdefault(path[:length], number)
    return found


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple("".join(part) for part in _KEY_PART.findall(dotted))
