"""What a run does: a topology, a load, a time line, and what must come out. From a YAML file."""

from itertools import cycle
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field

from mycoproxy.errors import UsageError

_SHIPPED = Path(__file__).parent / "scenarios"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Preload(_Model):
    """What the server is filled with. The content of a key follows from its number."""

    keys: int = Field(default=100_000, ge=1)
    value_bytes: int = Field(default=1000, ge=1)


class Client(_Model):
    """One client process."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,30}$")
    node: str
    kind: Literal["checker", "redis-cli", "benchmark", "download", "upload"]
    to: Literal["service", "pod"] = Field(description="what it dials: the Service, or the pod")
    ip: Literal[4, 6] = 4
    connections: int = Field(default=1, ge=1, description="for checker and benchmark")
    think_ms: float = Field(default=20, gt=0, description="pause between requests")
    size_mb: int = Field(default=64, ge=1, description="of a download or upload, in 2^20 bytes")
    rate_mb: float = Field(default=16, gt=0, description="of a download or upload, 10^6 bytes/s")

    @property
    def group(self) -> str:
        """The path it takes, as the report names it."""
        return "service" if self.to == "service" else "direct"


class Tap(_Model):
    """Where packets are captured."""

    node: str
    device: str


class Wait(_Model):
    """Let the load go on for a while."""

    wait: float = Field(gt=0, description="seconds")


class Move(_Model):
    """Move the pod to another node."""

    move_to: str = Field(description="node")


class Expect(_Model):
    """What a run must come to. Counts, never speed."""

    connections_lost: int = 0
    bytes_wrong: int = 0
    resets: int = 0
    late_retransmissions: int | None = Field(default=None, description="none: only reported")


class Scenario(_Model):
    """A run. The time line is repeated for as long as moves are asked for."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,19}$")
    description: str = ""
    topology: str = Field(description="a YAML file, or one that comes with netlab")
    pod: str
    service: str
    preload: Preload = Preload()
    clients: Annotated[tuple[Client, ...], Field(min_length=1)]
    captures: tuple[Tap, ...] = ()
    timeline: Annotated[tuple[Wait | Move, ...], Field(min_length=1)]
    settle: float = Field(default=0.5, ge=0, description="seconds of load after the last move")
    expect: Expect = Expect()

    def steps(self, moves: int | None) -> list[Wait | Move]:
        """The time line with so many moves in it; as it stands if None."""
        if moves is None:
            return list(self.timeline)
        if not any(isinstance(step, Move) for step in self.timeline):
            raise UsageError(f"scenario {self.name} has no move in its time line")
        steps: list[Wait | Move] = []
        for step in cycle(self.timeline):
            steps.append(step)
            moves -= isinstance(step, Move)
            if moves <= 0:
                break
        return steps


def load(path: Path) -> Scenario:
    """Read a scenario: a file, or the name of one that comes with netlab. Raises ``UsageError``."""
    file = path
    if not path.exists() and path.suffix == "" and len(path.parts) == 1:
        file = _SHIPPED / f"{path}.yaml"
        if not file.exists():
            raise UsageError(
                f"no scenario {path}: a file, or one of {', '.join(shipped())}, is wanted"
            )
    try:
        return Scenario.model_validate(yaml.safe_load(file.read_text()))
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{file} is not YAML: {error}") from error
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UsageError(f"{file}: {where}: {first['msg']}") from error


def shipped() -> list[str]:
    """The scenarios that come with netlab."""
    return sorted(path.stem for path in _SHIPPED.glob("*.yaml"))
