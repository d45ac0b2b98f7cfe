"""The configuration as a person reads it: the effective one, and an example of the file."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from mycoproxy.agent.config import KEYS, Config, Key, sections
from mycoproxy.agent.config_source import Loaded

_WIDTH = 96


def effective(loaded: Loaded) -> str:
    """The configuration as TOML; behind each key stands who said it."""
    lines: list[str] = []
    for section, _ in sections():
        lines += ["", f"[{section}]"]
        for key in _of(section):
            value = key.plain(loaded.config)
            shown = f"# {key.name}: none" if value is None else f"{key.name} = {toml(value)}"
            lines.append(f"{shown:<48}  # {loaded.origins[key.path]}")
    return "\n".join(lines[1:]) + "\n"


def as_dict(loaded: Loaded) -> dict[str, dict[str, Any]]:
    """For each key its value, who said it, and whether a reload can change it."""
    return {
        key.path: {
            "value": key.plain(loaded.config),
            "origin": loaded.origins[key.path],
            "reload": key.reloadable,
        }
        for key in KEYS
    }


def example() -> str:
    """A file with every key, its default commented out."""
    lines = [
        "# The agent's configuration, with every key and its default.",
        "# Written by: mycoproxy agent --print-example",
        "#",
        "# A key marked (restart) takes effect when the agent starts, the others at a reload too.",
        "# An environment variable goes before the file: log.level is MYCOPROXY_LOG_LEVEL. There,",
        "# lists are a,b and tables name=value,name=value. Keys that are not here are refused.",
    ]
    defaults = Config()
    for section, model in sections():
        lines += ["", *_comment(model.__doc__ or ""), f"[{section}]"]
        for key in _of(section):
            mark = "" if key.reloadable else " (restart)"
            lines += ["", *_comment(f"{key.field.description}{mark}")]
            lines.append(f"# {key.name} = {_shown_default(key, defaults)}")
    return "\n".join(lines) + "\n"


def toml(value: Any) -> str:  # noqa: ANN401
    """A value as TOML in one line."""
    if isinstance(value, dict):
        pairs = ", ".join(f"{toml(name)} = {toml(each)}" for name, each in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    # Numbers and text are written alike; TOML has no \/ and knows JSON's other escapes.
    return json.dumps(value, ensure_ascii=False)


_EXAMPLES = {
    "node.name": '"alpha"',
    "peers.static": '{ beta = "192.0.2.2", gamma = "[2001:db8::3]:7420" }',
    "peers.file": '"/etc/mycoproxy/peers.toml"',
    "control.group": '"mycoproxy"',
}


def _shown_default(key: Key, defaults: Config) -> str:
    # Where the default is nothing, or differs between machines, an example says more.
    return _EXAMPLES.get(key.path) or toml(key.plain(defaults))


def _of(section: str) -> Iterator[Key]:
    return (key for key in KEYS if key.section == section)


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(" ".join(text.split()), _WIDTH)]
