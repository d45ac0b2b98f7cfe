"""The kinds of values that the agent's configuration has, beyond text and numbers.

Each is text in the file and in the environment, something handier in the model, and says in its
error what was wanted and what was found.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

PEER_PORT: Final = 7420
"""Where agents listen for each other, if nothing else is said."""

LONGEST_SOCKET_PATH: Final = 92
"""Bytes. ``sun_path`` has 108 (linux/un.h), and the socket is made under a longer name first."""

_UNITS: Final = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SIZE = re.compile(r"(\d+) ?(|KiB|MiB|GiB)")
_MODE = re.compile(r"0?([0-7]{3})")
# As in certificates (mycoproxy.pki.identity): a DNS name in lower case.
_NODE = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")


class Listen(NamedTuple):
    """An IP address and a port, as in ``192.0.2.1:7420`` and ``[2001:db8::1]:7420``."""

    address: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"


def read_listen(value: object, *, default_port: int | None = None, least_port: int = 0) -> Listen:
    """Text as an address with its port; ``default_port`` if it has none. ``ValueError``."""
    if isinstance(value, Listen):
        return value
    wanted = "an IP address and a port (192.0.2.1:7420, [2001:db8::1]:7420)"
    if default_port is not None:
        wanted += " or an IP address alone"
    refusal = ValueError(f"{wanted} is wanted, found {value!r}")
    if not isinstance(value, str):
        raise refusal
    text = value.strip()
    if default_port is not None:
        try:
            return Listen(str(ipaddress.ip_address(text.strip("[]"))), default_port)
        except ValueError:
            pass
    host, colon, port = text.rpartition(":")
    # Without its brackets an IPv6 address is not told from one with a port.
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise refusal
    try:
        address = str(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        raise refusal from None
    if not colon or not re.fullmatch(r"\d{1,5}", port) or not least_port <= int(port) <= 65535:
        raise refusal
    return Listen(address, int(port))


def _peer(value: object) -> Listen:
    return read_listen(value, default_port=PEER_PORT, least_port=1)


def read_node_name(value: object) -> str:
    """A node's name as it stands in its certificate. ``ValueError``."""
    if not isinstance(value, str) or not _NODE.fullmatch(value):
        raise ValueError(f"a DNS name in lower case is wanted, found {value!r}")
    return value


def _size(value: object) -> int:
    refusal = ValueError(f"bytes (1048576) or a size (64 MiB, 2 GiB) is wanted, found {value!r}")
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise refusal
    if isinstance(value, int):
        return value
    found = _SIZE.fullmatch(value.strip())
    if found is None:
        raise refusal
    return int(found[1]) * _UNITS[found[2]]


def size_text(size: int) -> str:
    """Bytes in the largest unit that leaves no remainder: ``64 MiB``."""
    for unit in ("GiB", "MiB", "KiB"):
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]} {unit}"
    return str(size)


def _mode(value: object) -> int:
    found = _MODE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f'permissions as octal text ("0660") are wanted, found {value!r}')
    mode = int(found[1], 8)
    if mode & 0o007:
        raise ValueError(f"permissions without any for others are wanted, found {value!r}")
    return mode


def _mode_text(mode: int) -> str:
    return f"{mode:04o}"


def _absolute(value: Path) -> Path:
    if not value.is_absolute():
        raise ValueError(f"an absolute path is wanted, found {str(value)!r}")
    return value


def _socket_path(value: Path) -> Path:
    length = len(str(value).encode())
    if length > LONGEST_SOCKET_PATH:
        raise ValueError(
            f"at most {LONGEST_SOCKET_PATH} bytes are wanted for a socket's path, found {length}"
        )
    return _absolute(value)


def _absolute_text(value: str) -> str:
    _absolute(Path(value))
    return value


def _text(validator: Any, serializer: Any, example: str) -> tuple[Any, ...]:  # noqa: ANN401
    """A field that is text in the file, and something else in the model."""
    return (
        BeforeValidator(validator, json_schema_input_type=str),
        PlainSerializer(serializer),
        Field(examples=[example]),
    )


def _network(value: object) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(str(value))
    except ValueError as error:
        raise ValueError(f"a network (192.0.2.0/24) is wanted: {error}") from None


NetworkText = Annotated[
    ipaddress.IPv4Network | ipaddress.IPv6Network, *_text(_network, str, "10.244.1.0/24")
]
ListenAddress = Annotated[Listen, *_text(read_listen, str, "0.0.0.0:7421")]
PeerAddress = Annotated[Listen, *_text(_peer, str, "192.0.2.1:7420")]
NodeName = Annotated[
    str, BeforeValidator(read_node_name, json_schema_input_type=str), Field(examples=["alpha"])
]
Size = Annotated[int, *_text(_size, size_text, "256 MiB")]
Mode = Annotated[int, *_text(_mode, _mode_text, "0600")]
AbsolutePath = Annotated[Path, AfterValidator(_absolute), PlainSerializer(str)]
SocketPath = Annotated[Path, AfterValidator(_socket_path), PlainSerializer(str)]
Glob = Annotated[str, AfterValidator(_absolute_text), Field(examples=["/run/netns/*"])]
Count = Annotated[int, Field(strict=True)]
Seconds = Annotated[float, Field(strict=True, gt=0, le=86400, allow_inf_nan=False)]
