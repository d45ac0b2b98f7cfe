"""What is to be moved, from where, to where: plain data, and its form as a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyAddress,
    IPvAnyNetwork,
    ValidationError,
    field_validator,
)

from mycoproxy.errors import UsageError

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


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
    """A node that sees the clients' ends: it hosts clients, or NATs them."""

    name: str
    netns: Path = Field(description="the node's own network namespace")
    pods: tuple[Path, ...] = Field(
        default=(), description="network namespaces of pods on it that may be clients"
    )
    behind: tuple[IPvAnyNetwork, ...] | None = Field(
        default=None,
        description="networks whose packets to the workload can only come by this node; "
        "default: all of them (a router)",
    )


class Deadlines(_Part):
    """How long the parts of a move may take, in seconds."""

    prepare: Seconds = 20.0
    freeze: Seconds = 5.0
    dump: Seconds = 30.0
    send: Seconds = 30.0
    restore: Seconds = 30.0
    resume: Seconds = 10.0
    remove: Seconds = 10.0
    follow: Seconds = Field(
        default=0.2,
        description="for new connections that still come to the old place; they are passed on",
    )
    linger: Seconds = Field(
        default=10.0,
        description="for connections that the workload had closed, with bytes still on their way",
    )


class Agents(_Part):
    """The control sockets of the agents of both nodes. They have the peers; ours are not used."""

    source: Path
    target: Path


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
    agents: Agents | None = Field(
        default=None,
        description="who moves the connections; default: this process, which then has to be root "
        "in all the namespaces",
    )
    deadlines: Deadlines = Deadlines()
    logs: Path = Field(
        default=Path("/var/log/mycoproxy"), description="where a failed move leaves its logs"
    )

    @field_validator("addresses")
    @classmethod
    def _one_to_one(
        cls, addresses: Mapping[IPvAnyAddress, IPvAnyAddress]
    ) -> Mapping[IPvAnyAddress, IPvAnyAddress]:
        for old, new in addresses.items():
            if old.version != new.version:
                raise ValueError(f"{old} cannot become {new}: an IP version stays what it is")
        if len(set(addresses.values())) < len(addresses):
            raise ValueError("two addresses cannot become the same one")
        return addresses

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
