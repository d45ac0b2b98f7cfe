"""Writes docs/tcp-options.md from the table of socket options.

Run it after the table was changed: ``.venv/bin/python scripts/tcp_options_docs.py``. With
``--check`` nothing is written, and the exit status is 1 if the file is not what it should be; a
unit test compares them too.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from mycoproxy.tcp.option_table import Fate
from mycoproxy.tcp.options import Described, describe

TARGET = Path(__file__).parent.parent / "docs" / "tcp-options.md"
COMMAND = ".venv/bin/python scripts/tcp_options_docs.py"

INTRO = f"""\
<!-- Generated from the table by scripts/tcp_options_docs.py. Do not edit; run: {COMMAND} -->

# Socket options in a move

Everything that the owner of a TCP socket can set with setsockopt(2), and what becomes of it when
its connection is moved. An option counts as set if its value differs from that of a fresh socket
in the same network namespace: what the owner left alone follows the sysctls of the namespace it
is in, after the move those of the target. IP_* options in an IPv6 socket are for its IPv4-mapped
connections.

What the target's kernel refuses is reported by name and value, and the move goes on. An option
that a kernel does not know cannot have been set on it; below stands since when Linux has it.

What belongs to the open file and not to the socket (O_NONBLOCK, O_ASYNC with its owner and signal)
is restored with the task, and is not in these tables.
"""

CHAPTERS = {
    "Kept": (
        Fate.KEPT,
        "Read from the old socket, and set on the new one at the right moment: before bind (the\n"
        "address, the route and the size of segments depend on it), before going live, or live\n"
        "(it starts a timer, wakes a reader, or needs a live connection).",
    ),
    "Kept until connected": (
        Fate.KEPT,
        "Kept on a listening, connecting or closed socket. They have no effect on a connection,\n"
        "so they are not read from one.",
    ),
    "Recreated": (
        Fate.RECREATED,
        "Moved too, not as an option but as part of the connection's state.",
    ),
    "Refused": (
        Fate.REFUSED,
        "A socket that uses one of these is refused by name before anything is touched. So are\n"
        "Multipath TCP, SMC, and a TCP Fast Open handshake that is under way.",
    ),
    "Lost": (
        Fate.LOST,
        "The kernel gives no way to read them, or they name something that only the old node has.",
    ),
    "No settings": (Fate.TRANSIENT, "Acts, and states that the kernel changes by itself."),
    "Without effect": (Fate.IGNORED, "The kernel accepts them and does nothing."),
}


def document() -> str:
    """The whole file."""
    lines = [INTRO]
    for title, (fate, lead) in CHAPTERS.items():
        rows = [
            row
            for row in describe()
            if row.fate is fate and row.on_connection == (title != "Kept until connected")
        ]
        lines += [f"## {title}", "", lead, "", *table(rows, timed=fate is Fate.KEPT), ""]
    return "\n".join(lines)


def table(rows: list[Described], *, timed: bool) -> Iterator[str]:
    """Options as a Markdown table."""
    yield "| option | level | set | remark |" if timed else "| option | level | remark |"
    yield "|---|---|---|---|" if timed else "|---|---|---|"
    for row in rows:
        yield line(row, timed=timed)


def line(row: Described, *, timed: bool) -> str:
    """One row."""
    cells = [f"`{row.name}`", row.level, *([row.when] if timed else []), row.remark]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Write the file, or only say whether it is up to date."""
    text = document()
    changed = not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text
    if "--check" in sys.argv[1:]:
        sys.stdout.write(
            f"{TARGET.name} {f'is old, run: {COMMAND}' if changed else 'is up to date'}\n"
        )
        return int(changed)
    TARGET.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{TARGET.name} {'written' if changed else 'is up to date'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
