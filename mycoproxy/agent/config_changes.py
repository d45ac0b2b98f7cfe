"""What a reload changes: the keys that a running agent can change, and those it cannot yet.

A key that needs a restart keeps its value until then, so the configuration in use always says
what the agent really does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mycoproxy.agent.config import KEYS, Config
from mycoproxy.agent.config_source import Loaded


@dataclass(frozen=True)
class Change:
    """A key whose value is another one now."""

    key: str
    old: Any
    new: Any


@dataclass(frozen=True)
class Changes:
    """Between the configuration in use and one that was read."""

    applied: tuple[Change, ...]
    needs_restart: tuple[Change, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            name: [vars(each) for each in changes]
            for name, changes in (
                ("applied", self.applied),
                ("needs_restart", self.needs_restart),
            )
        }


def changes_between(used: Loaded, read: Loaded) -> tuple[Loaded, Changes]:
    """The configuration to use from now on, and how it differs from ``used`` and ``read``."""
    applied: list[Change] = []
    waiting: list[Change] = []
    data: dict[str, dict[str, Any]] = {name: {} for name in Config.model_fields}
    origins = {}
    for key in KEYS:
        change = Change(key.path, key.plain(used.config), key.plain(read.config))
        changed = change.old != change.new
        if changed:
            (applied if key.reloadable else waiting).append(change)
        source = read if key.reloadable or not changed else used
        data[key.section][key.name] = key.plain(source.config)
        origins[key.path] = source.origins[key.path]
    config = Config.model_validate(data)
    return Loaded(config, origins), Changes(tuple(applied), tuple(waiting))
