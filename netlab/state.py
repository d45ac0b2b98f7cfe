"""What a lab is known to have made, on disk: written before the act that it describes.

So after a crash the record names more than there is, never less. It serves ``Lab.attach`` and
``netlab ps``; removal does not depend on it (see ``inventory``).
"""

import os
from pathlib import Path

import pydantic
from pydantic import BaseModel, ConfigDict

from mycoproxy.errors import MycoError, RefusedError
from netlab.topology import Topology


class Placement(BaseModel):
    """A pod's sandbox on a node."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pod: str
    node: str
    addresses: tuple[str, ...]


class State(BaseModel):
    """A lab's record. Frozen: a change is a new record, saved, and only then acted upon.

    ``home`` is the node on which a pod is at home: where it runs, of its one or two placements.
    ``last_address`` is, for a node and an IP version (``"alpha/4"``), the last address given out.
    ``targets`` are the addresses that a Service leads to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lab: str
    topology: Topology
    complete: bool = False
    placements: tuple[Placement, ...] = ()
    home: dict[str, str] = {}
    last_address: dict[str, str] = {}
    targets: dict[str, tuple[str, ...]] = {}
    sandboxes_made: int = 0

    def placement(self, pod: str, node: str) -> Placement | None:
        """The pod's sandbox on that node."""
        for each in self.placements:
            if (each.pod, each.node) == (pod, node):
                return each
        return None


def save(path: Path, state: State) -> None:
    """Replace the record: a reader sees the old one or the new one."""
    scratch = path.with_suffix(".new")
    with scratch.open("w") as file:
        file.write(state.model_dump_json(indent=1))
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def read(path: Path) -> State:
    """Raises ``RefusedError`` if there is none, ``MycoError`` if it cannot be understood."""
    try:
        return State.model_validate_json(path.read_text())
    except FileNotFoundError:
        raise RefusedError(
            f"no lab {path.parent.name!r} is up (netlab ps lists the labs)"
        ) from None
    except (OSError, pydantic.ValidationError) as error:
        raise MycoError(
            f"cannot read the record of lab {path.parent.name!r}, {path}: {error}; "
            f"netlab down {path.parent.name} removes the lab all the same"
        ) from error
