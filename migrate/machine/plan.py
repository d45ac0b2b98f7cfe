"""What is to be moved, from where, to where: plain data, and its form as a file."""

from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, IPvAnyAddress, ValidationError

from mycoproxy.errors import UsageError


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Side(_Part):
    """The workload's place on one node. On the target nothing runs there yet."""

    node: str = Field(description="the node's name, for messages")
    node_netns: Path = Field(description="the node's network namespace")
    pod_netns: Path = Field(description="the workload's network namespace; made beforehand")
    runc_root: Path = Field(description="runc's --root on that node")
    container_id: str = Field(pattern=r"^[A-Za-z0-9_+.-]+$")
    bundle: Path = Field(description="the OCI bundle")
    images: Path = Field(description="a directory on a tmpfs; the move makes its own inside it")


class PeerNode(_Part):
    """A network namespace that sees the clients' ends: it hosts clients, or NATs them."""

    name: str
    netns: Path


class Deadlines(_Part):
    """How long the parts of a move may take, in seconds."""

    prepare: float = 20.0
    drain: float = 1.0
    freeze: float = 5.0
    dump: float = 30.0
    send: float = 30.0
    restore: float = 30.0
    resume: float = 10.0
    remove: float = 10.0


class MovePlan(_Part):
    """A move. ``addresses`` maps the workload's old addresses to its new ones."""

    move_id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    source: Side
    target: Side
    transfer_address: IPvAnyAddress = Field(
        description="the target node's address that the source node sends the checkpoint to"
    )
    addresses: Mapping[IPvAnyAddress, IPvAnyAddress]
    peers: tuple[PeerNode, ...] = ()
    deadlines: Deadlines = Deadlines()
    logs: Path = Field(
        default=Path("/var/log/mycoproxy"), description="where a failed move leaves its logs"
    )

    def address_map(self) -> dict[str, str]:
        """``addresses`` as text."""
        return {str(old): str(new) for old, new in self.addresses.items()}


def load(path: Path) -> MovePlan:
    """Read a plan from a YAML (or JSON) file. Raises ``UsageError`` naming the field."""
    try:
        return MovePlan.model_validate(yaml.safe_load(path.read_text()))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UsageError(f"{path}: {where}: {first['msg']}") from error
