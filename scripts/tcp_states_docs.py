"""Writes docs/tcp-states.md from the table of the state matrix's test.

Run it after the table was changed: ``.venv/bin/python scripts/tcp_states_docs.py``. With
``--check`` nothing is written, and the exit status is 1 if the file is not what it should be; a
unit test compares them too.
"""

import importlib.util
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "tests" / "kernel" / "state_matrix.py"
TARGET = ROOT / "docs" / "tcp-states.md"
COMMAND = ".venv/bin/python scripts/tcp_states_docs.py"

INTRO = f"""\
<!-- Generated from the test's table by scripts/tcp_states_docs.py. Do not edit; run: {COMMAND} -->

# TCP states in a move

Every state that a TCP socket can be in is moved to another machine, with what is in its queues, and
its owner and its peer see what they would have seen without the move. Each combination below is a
test with a real peer (`tests/kernel/test_tcp_states.py`): the connection is brought into the state,
moved, and then finished by the peer, and every byte in both directions is compared.
"""

STATES = """\
## The states

The *owner* has the socket that is moved, the *peer* is at the other end. "Played" means: a segment
that the peer has sent once is handed to the target's kernel again, over loopback; nobody outside
sees it.
"""

CELLS = """\
## The cells

A cell is one test. In the columns v4, v6 and mapped (an IPv4 connection in an IPv6 socket) are the
options with which each family was combined. "More" counts the cells in which one end or both have
a new address, those that only look at the connection (`capture(peek=True)`), and those that take
the move back (`capture`, then `resume`). Where the peer has closed its side, a full receive queue
has left room for its FIN.
"""

REFUSED = {
    "Multipath TCP, SMC": "the kernel lets nobody read their state",
    "kernel TLS and other upper layer protocols (`TCP_ULP`)": "nor their keys and record numbers",
    "TCP-AO, TCP-MD5": "nor the keys",
    "eBPF socket filters": "nor the program",
    "TCP Fast Open under way (data went out with the SYN; accepted, but still in SYN_RECV)": (
        "such a handshake cannot be gone through again; once it is complete, nothing is in the way"
    ),
    "urgent data that was not read, with a kernel before 6.9 or when the connection has ended": (
        "nobody can look behind its mark, or set it; once it was read, nothing is in the way"
    ),
    "link-local IPv6 addresses": "they mean nothing on another machine",
}

NOBODYS = {
    "TIME_WAIT": (
        "has no data and no owner; it stays on the source, and ends there. If its last "
        "acknowledgement was lost, the target answers the peer's FIN with a reset instead"
    ),
    "a connection that was closed before all was delivered (an orphan)": (
        "no descriptor refers to it; the source's kernel delivers the rest"
    ),
}

CHANGED = {
    "a pending error that only time or the network causes (`ETIMEDOUT`, `EHOSTUNREACH`)": (
        "becomes `ECONNRESET`, also when the move is taken back; this is reported"
    ),
    "a connection attempt (SYN_SENT)": "begins anew, with the full time until it fails",
    "segments that came out of order": "are forgotten; the peer sends them again",
    "congestion window": "is learned anew",
    "round trip time": (
        "is kept if something was on its way (what the network has lost of it is sent again in "
        "time), and with TCP timestamps only; otherwise it is learned anew"
    ),
    "ECN": "the connection goes on without; this is reported",
}


def load() -> ModuleType:
    """The test's table."""
    spec = importlib.util.spec_from_file_location("state_matrix", TABLE)
    if spec is None or spec.loader is None:
        raise ImportError(f"{TABLE} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


def document() -> str:
    """The whole file."""
    matrix = load()
    return "\n".join(
        [
            INTRO,
            STATES,
            *states(matrix),
            "",
            CELLS,
            *cells(matrix),
            "",
            "The options, negotiated or set by the owner:",
            "",
            *(f"* **{short(option.name)}**: {option.value}" for option in matrix.Options),
            "",
            "Some combinations cannot exist:",
            "",
            *impossible(matrix),
            "",
            "## What cannot be moved, and why",
            "",
            "These are refused by name before anything is touched (`refusal`, `capture`):",
            "",
            *table("what", "why", REFUSED),
            "",
            "These belong to no descriptor, so no task misses them:",
            "",
            *table("what", "what becomes of it", NOBODYS),
            "",
            "These go on, but not quite as they were:",
            "",
            *table("what", "what becomes of it", CHANGED),
            "",
        ]
    )


def states(matrix: ModuleType) -> Iterator[str]:
    """One line for each row: what it is, what is tested, what becomes of it."""
    yield from header(
        "state", "what it means", "reached by", "families", "queues", "on the target", "owner sees"
    )
    for row in matrix.TABLE:
        yield line(
            f"**{row.name}**",
            row.meaning,
            "; ".join(step.value for step in row.steps) or "-",
            ", ".join(matrix.FAMILIES),
            f"see {row.elsewhere}"
            if row.elsewhere
            else "; ".join(queues.value for queues in row.queues()),
            row.again,
            row.sees,
        )


def cells(matrix: ModuleType) -> Iterator[str]:
    """One line for each row and content of its queues, with the cells counted."""
    kept, moved = matrix.Address.KEPT, matrix.Way.MOVED
    every = list(matrix.cells())
    yield from header("state", "queues", *matrix.FAMILIES, "more", "cells")
    for row in matrix.TABLE:
        for queues in [] if row.elsewhere else row.queues():
            mine = [cell for cell in every if (cell.row, cell.queues) == (row, queues)]
            plain = [cell for cell in mine if (cell.address, cell.way) == (kept, moved)]
            yield line(
                row.name,
                queues.value,
                *(
                    ", ".join(short(cell.options.name) for cell in plain if cell.family == family)
                    for family in matrix.FAMILIES
                ),
                ", ".join(
                    [
                        *counted(cell.address.value for cell in mine if cell.address is not kept),
                        *counted(cell.way.value for cell in mine if cell.way is not moved),
                    ]
                ),
                str(len(mine)),
            )
    yield line("**all**", *[""] * 5, f"**{len(every)}**")


def counted(values: Iterable[str]) -> Iterator[str]:
    """How often each is there."""
    for value, count in Counter(values).items():
        yield f"{count} {value}"


def impossible(matrix: ModuleType) -> Iterator[str]:
    """Why some combinations have no cell."""
    rows: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for row in matrix.TABLE:
        for reason in dict.fromkeys(row.cannot.values()):
            contents = tuple(each.value for each, why in row.cannot.items() if why == reason)
            rows.setdefault((reason, contents), []).append(row.name)
    for (reason, contents), names in rows.items():
        yield f"* {reason} ({'; '.join(names)}), so not: {'; '.join(contents)}."


def short(name: str) -> str:
    """An option in a table's cell."""
    return name.lower().replace("_", " ").replace("mss", "MSS")


def table(left: str, right: str, lines: Mapping[str, str]) -> Iterator[str]:
    """A Markdown table of two columns."""
    yield from header(left, right)
    for one, other in lines.items():
        yield line(one, other)


def header(*titles: str) -> Iterator[str]:
    """The first two lines of a Markdown table."""
    yield line(*titles)
    yield "|---" * len(titles) + "|"


def line(*texts: str) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(texts)} |"


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
