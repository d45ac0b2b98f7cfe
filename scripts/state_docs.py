"""Writes docs/state-machines.md from the state machines' tables.

Run it after a table was changed: ``.venv/bin/python scripts/state_docs.py``. A unit test compares
the file with what this program would write.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from migrate.machine import machine as migration
from mycoproxy.handover import machine as handover
from mycoproxy.statetable import StateTable, Transition

TARGET = Path(__file__).parent.parent / "docs" / "state-machines.md"
COMMAND = ".venv/bin/python scripts/state_docs.py"

INTRO = f"""\
<!-- Generated from the tables by scripts/state_docs.py. Do not edit; run: {COMMAND} -->

# State machines

A move is two state machines. Each is a table of (state, event) → (state, action) without any I/O: a
driver performs the action that a transition names, and feeds back `done` or `failed`. An event that
the table does not list is a bug. A transition without an action stops the driver, which then waits
for a command.

In the diagrams an arrow bears the event, and after the slash the action that it starts. Dashed
states are the way back. Where it makes no difference whether an action fails, one arrow stands for
both events.
"""

Table = StateTable[Any, Any, Any]


def document() -> str:
    """The whole file."""
    return "\n".join(
        [
            INTRO,
            *chapter(
                "The migration",
                "`migrate/machine/machine.py`. The handover below is one step of it; its commit\n"
                "and its going live are driven from here.",
                migration.__doc__,
                migration.TABLE,
                back_from=(migration.State.ABORTING, migration.State.THAWING),
            ),
            "",
            *chapter(
                "The handover",
                "`mycoproxy/handover/machine.py`. The one moment in which a connection is nowhere.",
                handover.__doc__,
                handover.TABLE,
                back_from=(handover.State.DISCARDING,),
            ),
            "",
        ]
    )


def chapter(
    title: str, lead: str, doc: str | None, table: Table, *, back_from: Iterable[Enum]
) -> Iterator[str]:
    """A heading, the module's own words on its rules, the diagram, the table."""
    yield f"## {title}"
    yield ""
    yield lead
    yield ""
    yield from rules(doc or "")
    yield "```mermaid"
    yield from diagram(table, back_from)
    yield "```"
    yield ""
    yield from table.markdown()


def rules(doc: str) -> Iterator[str]:
    """All of a module's docstring but its first paragraph, as Markdown."""
    _, _, rest = doc.strip().partition("\n\n")
    yield rest.replace("``", "`")
    yield ""


def diagram(table: Table, back_from: Iterable[Enum]) -> Iterator[str]:
    """A Mermaid state diagram."""
    yield "stateDiagram-v2"
    states = in_order(table)
    for state in states:
        yield f"    state {quoted(state.value)} as {state.name}"
    yield f"    [*] --> {table.initial.name}"
    for (origin, target), label in arrows(table).items():
        yield f"    {origin.name} --> {target.name} : {label}"
    for state in states:
        if state in table.final_states():
            yield f"    {state.name} --> [*]"
    yield "    classDef back stroke-dasharray: 4 3"
    back = leads_to(table, back_from)
    yield f"    class {','.join(state.name for state in states if state in back)} back"


def in_order(table: Table) -> list[Enum]:
    """Every state, in the order in which its class lists them."""
    return [state for state in type(table.initial) if state in table.reachable()]


def arrows(table: Table) -> dict[tuple[Enum, Enum], str]:
    """One label for each pair of states: ``event / action``, or ``event, event / action``."""
    events: dict[tuple[Enum, Enum], list[str]] = {}
    actions: dict[tuple[Enum, Enum], Transition[Any, Any]] = {}
    for (origin, event), transition in table.rows.items():
        pair = (origin, transition.state)
        events.setdefault(pair, []).append(event.value)
        actions[pair] = transition
    labels = {}
    for pair, names in events.items():
        action = actions[pair].action
        labels[pair] = ", ".join(names) + (f" / {action.value}" if action else "")
    return labels


def leads_to(table: Table, origins: Iterable[Enum]) -> set[Enum]:
    """The states that can follow these, these included."""
    seen = set(origins)
    frontier = list(seen)
    while frontier:
        state = frontier.pop()
        for (origin, _), transition in table.rows.items():
            if origin is state and transition.state not in seen:
                seen.add(transition.state)
                frontier.append(transition.state)
    return seen


def quoted(text: str) -> str:
    """A Mermaid string. It knows no escape for a quotation mark, and none is needed."""
    if re.search(r'["\n]', text):
        raise ValueError(f"{text!r} cannot be written into a Mermaid diagram")
    return f'"{text}"'


def main() -> int:
    """Write the file; says whether it was changed."""
    text = document()
    changed = not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{TARGET.name} {'written' if changed else 'is up to date'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
