"""The state matrix: every cell of ``state_matrix`` is played with a real peer, to the last byte.

A cell leads a connection into its state, with what its queues are to hold. It is captured, goes
over the wire format into another namespace (or is only looked at, or taken back), and then the peer
finishes its side. What was written is compared with what was read, in both directions, and what
the owner sees with what it saw before.

One lab serves all cells: a cell only makes a connection.
"""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from conftest import Network
from state_matrix import Cell, cells
from tcp_lab import Lab

from mycoproxy import tcp

pytest.register_assert_rewrite("state_approach", "state_play")  # for their assertions' messages

from state_play import Play  # noqa: E402

pytestmark = [pytest.mark.root, pytest.mark.timeout(30)]

FAILING = {
    "LAST_ACK-v6-unacknowledged-none": (
        "the FIN is sent ahead of the lost bytes, and once more with them, as without SACK nobody "
        "knows that it has arrived; the answer to that meets no socket any more and is reset. The "
        "peer is in TIME_WAIT, and takes no harm"
    ),
}


def parameters() -> Iterator[Any]:
    """The cells, known failures marked."""
    for cell in cells():
        reason = FAILING.get(str(cell))
        marks = [pytest.mark.xfail(strict=True, reason=reason)] if reason else []
        yield pytest.param(cell, marks=marks, id=str(cell))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with closing(Network()) as network, closing(Lab(network)) as made:
        made.address("b", present=True)
        yield made


@pytest.fixture(scope="module")
def tap(lab: Lab) -> Iterator[tcp.Tap]:
    """What arrives at the peer. One for all: closing it takes 20 ms."""
    with lab.c.call(tcp.Tap) as made:
        yield made


@pytest.mark.parametrize("cell", list(parameters()))
def test_a_connection_goes_on(lab: Lab, tap: tcp.Tap, cell: Cell) -> None:
    with closing(Play(lab, cell, tap)) as play:
        play.begin()
        play.go_on()
        play.finish()
        play.no_reset_was_seen()
