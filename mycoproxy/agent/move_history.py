"""How the moves of this node go on, for who watches, and how the last ones ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from mycoproxy.agent.questions import Changes, Row
from mycoproxy.agreement import MoveId, Moves
from mycoproxy.agreement.moves import Status

KEPT: Final = 100
"""Moves that have ended and are still shown; until the agent ends."""


class MoveHistory:
    """``step`` after anything that may have changed how a move stands, ``over`` at its end.

    ``name_of``: what a move is called on every node.
    """

    def __init__(self, moves: Moves, changes: Changes, *, name_of: Callable[[MoveId], str]) -> None:
        self._moves = moves
        self._changes = changes
        self._name_of = name_of
        self._shown: dict[MoveId, Row] = {}
        self._ended: deque[Row] = deque(maxlen=KEPT)

    def rows(self) -> list[Row]:
        """Those that are open, and then the last that ended, the youngest first."""
        return [*map(self._row, self._moves.status()), *self._ended]

    def step(self) -> None:
        """Tell who watches what is new."""
        for status in self._moves.status():
            row = self._row(status)
            if row["phase"] != self._shown.get(status.move, {}).get("phase"):
                self._changes.publish({"event": "phase", **_brief(row), "phase": row["phase"]})
            self._shown[status.move] = row

    def over(self, move: MoveId, live: bool) -> None:
        """Nothing of it is open here any more. ``live``: it moved."""
        unseen: Row = {"move": self._name_of(move), "id": str(move), "role": ""}
        row = self._shown.pop(move, unseen)
        outcome = "moved" if live else "returned"
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._ended.appendleft(
            {**row, "phase": "over", "doing": "", "missing": [], "outcome": outcome, "ended": now}
        )
        self._changes.publish({"event": "over", **_brief(row), "outcome": outcome})

    def _row(self, status: Status) -> Row:
        return {
            "move": self._name_of(status.move),
            "id": str(status.move),
            "role": status.role,
            "phase": status.phase,
            "doing": status.doing.value if status.doing else "",
            "missing": list(status.missing),
            "outcome": "",
            "ended": "",
        }


def _brief(row: Row) -> Row:
    return {"move": row["move"], "id": row["id"], "role": row["role"]}
