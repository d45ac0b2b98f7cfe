"""The examples of docs/tcp.md are run as they stand there."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tcp_lab import DEADLINE, LIFT, MUTE, Move, exchange, receive_exactly, settle

pytestmark = pytest.mark.root
DOCUMENT = Path(__file__).parents[2] / "docs" / "tcp.md"


def example(name: str) -> str:
    found = re.search(rf"```python {name}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert found, f"no example {name!r}"
    return found[1]


@pytest.fixture
def move(network: Any) -> Iterator[Move]:
    made = Move(network, "v4")
    try:
        yield made
    finally:
        made.close()


def nft(node: Any, rules: str) -> None:
    """Not on the node's own thread, which runs the examples."""
    command = ["nsenter", f"--net={node.path}", "nft", "-f", "-"]
    subprocess.run(command, input=rules, text=True, check=True, timeout=DEADLINE)


def drop_packets(move: Move) -> None:
    move.hold()
    nft(move.a, MUTE)


def test_a_connection_moves_as_the_document_says(move: Move) -> None:
    move.build()
    move.connect()
    move.client.sendall(b"unread")
    settle(move.client)

    def drop() -> None:
        drop_packets(move)
        move.client.sendall(b"meanwhile")

    old: dict[str, Any] = {"sock": move.server, "drop_packets": drop}
    move.a.call(exec, example("old"), old)

    move.address("b", present=True)
    new: dict[str, Any] = {
        "message": old["message"],
        "let_packets_pass": lambda: nft(move.b, LIFT),
        "lost": old["tap"].lost([old["state"]]),
    }
    move.b.call(exec, example("new"), new)
    old["tap"].close()

    assert new["not_kept"] == []
    with new["sock"] as sock:
        assert receive_exactly(sock, 15) == b"unreadmeanwhile"
        exchange(move.client, sock)


def test_a_connection_goes_back_as_the_document_says(move: Move) -> None:
    move.build()
    move.connect()
    names: dict[str, Any] = {"sock": move.server}

    def let_pass() -> None:
        nft(move.a, LIFT)
        move.route_to("a")

    names["let_packets_pass"] = let_pass
    move.a.call(exec, "from mycoproxy import tcp\ntap = tcp.Tap()", names)
    drop_packets(move)
    move.client.sendall(b"meanwhile")
    move.a.call(exec, example("back"), names)
    names["tap"].close()
    assert receive_exactly(move.server, 9) == b"meanwhile"
    exchange(move.client, move.server)
