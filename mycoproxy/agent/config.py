"""What the agent can be told, as a frozen model: the one place where a key is declared.

A key is a field; with it stand its default, what it is for, and whether a reload changes it or a
restart is needed. The example file, the JSON Schema, the names of environment variables and the
check of a reload are all made of that. Where values come from is ``config_source``'s.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from mycoproxy.agent.config_types import (
    AbsolutePath,
    Count,
    Glob,
    Listen,
    ListenAddress,
    Mode,
    NetworkText,
    NodeName,
    PeerAddress,
    Seconds,
    Size,
    SocketPath,
)

PREFIX: Final = "MYCOPROXY_"
"""Of environment variables: ``log.level`` is ``MYCOPROXY_LOG_LEVEL``."""

_RELOAD: Final = "x-reload"

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["text", "json"]


def _key(default: Any, description: str, *, reload: bool, **more: Any) -> Any:  # noqa: ANN401
    """A field. ``reload``: a running agent can change it."""
    return Field(default, description=description, json_schema_extra={_RELOAD: reload}, **more)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _host_name() -> str:
    return socket.gethostname().lower()


class NodeSection(_Section):
    """Who this node is."""

    name: NodeName = Field(
        default_factory=_host_name,
        validate_default=True,
        description="The node's name, as in its certificate. Default: the host's name.",
        json_schema_extra={_RELOAD: False},
    )


class NamespacesSection(_Section):
    """Where connections are: network namespaces, each by a path for setns(2)."""

    node: AbsolutePath = _key(
        Path("/proc/self/ns/net"),
        "The node's own, where Services are NATed and host processes have their sockets. The "
        "default is the agent's: right for a host process and for a pod with hostNetwork.",
        reload=False,
    )
    pods: tuple[Glob, ...] = _key(
        ("/run/netns/*",),
        "Globs of the pods' namespaces, looked up anew each time they are needed.",
        reload=True,
    )

    behind: tuple[NetworkText, ...] = _key(
        (),
        "Networks whose packets can reach pods of other nodes only by this node, beside its own "
        "and its pods' addresses: a router has 0.0.0.0/0 and ::/0.",
        reload=False,
    )


class PeersSection(_Section):
    """The other nodes' agents."""

    listen: Annotated[tuple[ListenAddress, ...], Field(min_length=1)] = _key(
        (Listen("0.0.0.0", 7420),),
        "Where other agents reach this one. For IPv6 as well, add [::]:7420 (it takes IPv6 only).",
        reload=False,
    )
    static: dict[NodeName, PeerAddress] = _key(
        {},
        "Where the agents of other nodes are: node = address or address:port.",
        reload=True,
    )
    file: AbsolutePath | None = _key(
        None,
        "A TOML file of the same kind (lines node = address), read again whenever it changes. "
        "Names in `static` go first.",
        reload=True,
    )


class PkiSection(_Section):
    """This node's certificate, and whom it trusts."""

    directory: AbsolutePath = _key(
        Path("/etc/mycoproxy/pki"),
        "The node's directory that `mycoproxy pki issue` or `install` made. New files in it are "
        "noticed without a reload.",
        reload=False,
    )


class ControlSection(_Section):
    """The socket for `mycoproxy status` and the like."""

    socket: SocketPath = _key(Path("/run/mycoproxy/agent.sock"), "Its path.", reload=False)
    mode: Mode = _key(0o600, "Its permissions; nothing for others.", reload=False)
    group: str | None = _key(
        None, "A group whose members may use it too (then mode 0660).", reload=False, min_length=1
    )
    request_seconds: Seconds = _key(30.0, "A request that takes longer is given up.", reload=True)

    @model_validator(mode="after")
    def _group_can_open(self) -> ControlSection:
        if self.group is not None and self.mode & 0o060 != 0o060:
            raise ValueError(
                f'mode = "0660" is wanted with group = "{self.group}", found {self.mode:04o}: '
                f"the group could not open the socket"
            )
        return self


class MetricsSection(_Section):
    """Prometheus' metrics, and the probes /healthz and /readyz. No authentication."""

    listen: ListenAddress = _key(
        Listen("127.0.0.1", 7421),
        "Where. 0.0.0.0:7421 lets a Prometheus on another machine and a kubelet in.",
        reload=False,
    )


class LogSection(_Section):
    """Lines on standard error."""

    level: Level = _key("info", "The least level that is written.", reload=True)
    format: Format = _key("text", "For people, or one JSON object a line.", reload=True)
    same_lines: Annotated[Count, Field(ge=1, le=1_000_000)] = _key(
        20, "So many lines of one kind are written a minute, and the rest counted.", reload=True
    )


class StateSection(_Section):
    """What must survive the agent's end."""

    directory: AbsolutePath = _key(
        Path("/run/mycoproxy"),
        "The journals of moves. It need not survive a reboot: no connection does.",
        reload=False,
    )


class LimitsSection(_Section):
    """What moves may use, and how long they may take."""

    moves: Annotated[Count, Field(ge=1, le=100)] = _key(
        4, "Moves from this node and to it, at once. More are refused.", reload=True
    )
    connections: Annotated[Count, Field(ge=1, le=1_000_000)] = _key(
        50_000,
        "Connections of one move from this node. A workload with more is refused.",
        reload=True,
    )
    queue_memory: Annotated[Size, Field(ge=2**20)] = _key(
        256 * 2**20, "For captured send and receive queues, of all moves together.", reload=True
    )
    handover_seconds: Seconds = _key(
        10.0, "From the hold to the commit; then the source takes the workload back.", reload=True
    )
    move_seconds: Seconds = _key(3600.0, "From the start of a move to its commit.", reload=True)
    shutdown_seconds: Seconds = _key(
        10.0, "For requests and moves that run when the agent is told to stop.", reload=True
    )


class Config(_Section):
    """Everything that the agent can be told."""

    node: NodeSection = Field(default_factory=NodeSection)
    namespaces: NamespacesSection = NamespacesSection()
    peers: PeersSection = PeersSection()
    pki: PkiSection = PkiSection()
    control: ControlSection = ControlSection()
    metrics: MetricsSection = MetricsSection()
    log: LogSection = LogSection()
    state: StateSection = StateSection()
    limits: LimitsSection = LimitsSection()


@dataclass(frozen=True)
class Key:
    """One key of the configuration."""

    section: str
    name: str
    field: FieldInfo

    @property
    def path(self) -> str:
        """``log.level``."""
        return f"{self.section}.{self.name}"

    @property
    def variable(self) -> str:
        """``MYCOPROXY_LOG_LEVEL``."""
        return f"{PREFIX}{self.section}_{self.name}".upper()

    @property
    def reloadable(self) -> bool:
        """Whether a running agent can change it."""
        extra = self.field.json_schema_extra
        assert isinstance(extra, dict)
        return bool(extra[_RELOAD])

    def value(self, config: Config) -> Any:  # noqa: ANN401
        """Its value in the model."""
        return getattr(getattr(config, self.section), self.name)

    def plain(self, config: Config) -> Any:  # noqa: ANN401
        """Its value as it could stand in the file; None if there is none."""
        return getattr(config, self.section).model_dump(mode="json", include={self.name})[self.name]


def sections() -> Iterator[tuple[str, type[BaseModel]]]:
    """Name and model of each section, in the order of the file."""
    for name, field in Config.model_fields.items():
        assert isinstance(field.annotation, type)
        assert issubclass(field.annotation, BaseModel)
        yield name, field.annotation


def _keys() -> Iterator[Key]:
    for section, model in sections():
        for name, field in model.model_fields.items():
            yield Key(section, name, field)


KEYS: Final = tuple(_keys())


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the file. ``x-reload`` says whether a running agent can change a key."""
    schema = Config.model_json_schema()
    # A section is not asked for, and its defaults stand with its keys, as the file has them.
    for section in schema["properties"].values():
        section.pop("default", None)
    defaults = Config()
    for key in KEYS:
        model = getattr(defaults, key.section)
        place = schema["$defs"][type(model).__name__]["properties"][key.name]
        if "default" in place:
            place["default"] = key.plain(defaults)
    return schema
