"""Where the agents of other nodes are: the configuration's table, then a file that may change.

The file is looked at whenever somebody asks, and read when it is another one than before: who
writes it (a controller, a ConfigMap's mount) need tell nobody.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mycoproxy.agent.config import PeersSection
from mycoproxy.agent.config_types import PEER_PORT, Listen, read_listen, read_node_name
from mycoproxy.errors import MycoError, UsageError


class PeerAddresses:
    """Names to addresses. Its ``resolve`` is what ``peering.Peers`` asks."""

    def __init__(self, config: PeersSection) -> None:
        self._config = config
        self._seen: tuple[int, ...] | None = None
        self._from_file: Mapping[str, Listen] = {}
        self.problem = ""
        """What is wrong with the file, if it is not what is in use."""

    def apply(self, config: PeersSection) -> None:
        """Another configuration."""
        if config.file != self._config.file:
            self._seen, self._from_file = None, {}
        self._config = config

    def all(self) -> dict[str, Listen]:
        """Every node that is known."""
        self._refresh()
        return {**self._from_file, **self._config.static}

    def resolve(self, node: str) -> tuple[str, int]:
        """Address and port of a node's agent. ``MycoError`` if it is not known."""
        known = self.all()
        if node not in known:
            problem = f" ({self.problem})" if self.problem else ""
            raise MycoError(
                f"no address of node {node} is known{problem}; add it to peers.static or peers.file"
            )
        return known[node]

    def _refresh(self) -> None:
        file = self._config.file
        if file is None:
            self.problem = ""
            return
        try:
            stat = os.stat(file)  # noqa: PTH116 - follows a ConfigMap's links
            seen = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if seen == self._seen:
                return
            self._seen = seen
            self._from_file = read_peers(file)
        except (OSError, UsageError) as error:
            # What was known stays known.
            self.problem = str(error)
        else:
            self.problem = ""


def read_peers(file: Path) -> dict[str, Listen]:
    """A TOML file of ``node = "address"`` lines. ``UsageError`` says what is wrong with it."""
    try:
        data: Mapping[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
        return {
            read_node_name(node): read_listen(value, default_port=PEER_PORT, least_port=1)
            for node, value in data.items()
        }
    except ValueError as error:  # of TOML, of UTF-8, and ours
        raise UsageError(f"{file}: {error}") from error
