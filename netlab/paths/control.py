"""Telling a running ``netlab.paths.end`` what to do, and asking it what it saw."""

import json
import socket
from pathlib import Path
from typing import Any

from mycoproxy.errors import MycoError

_SECONDS = 10.0


def ask(control: Path, do: str, **arguments: object) -> Any:  # noqa: ANN401
    """Give one command to the program whose control socket is at ``control``; its answer.

    Raises ``MycoError`` if nobody answers.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_SECONDS)
            connection.connect(str(control))
            connection.sendall(json.dumps({"do": do, **arguments}).encode() + b"\n")
            with connection.makefile("rb") as lines:
                line = lines.readline()
    except OSError as error:
        raise MycoError(f"{control} does not take {do!r}: {error.strerror or error}") from error
    if not line:
        raise MycoError(f"{control} ended as it was told {do!r}")
    return json.loads(line)


def answers(control: Path) -> bool:
    """Whether a program is there."""
    try:
        ask(control, "status")
    except MycoError:
        return False
    return True
