"""The figures of ``netlab bench tcp`` as tables that a person can read."""

from collections.abc import Mapping
from typing import Any, Final

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

_MOST_SHOWN: Final = 32  # characters of one value


def figures(found: Mapping[str, Any]) -> RenderableType:
    """What ``bench_tcp.measure`` returned."""
    table = _table(f"Moving TCP connections, medians of {found['rounds']} rounds", "", "", "goal")
    table.add_row(
        f"options + capture + establish, of {found['idle_connections']}",
        " + ".join(str(found[each]) for each in ("options_us", "capture_us", "establish_us"))
        + f" = {found['capture_establish_us']} µs",
        "≤ 80 µs",
    )
    for name, value in found.items():
        if name.startswith("handover_") and name.endswith("_s"):
            table.add_row(f"handover of {name.split('_')[1]}", f"{value} s", "≤ 1.0 s")
    table.add_row(
        "memory, a connection",
        f"{found['bytes_per_connection']} bytes, {found['encoded_bytes']} encoded",
        "≤ 2048 and queues",
    )
    limit = found["link_gbit_s"]
    for direction, rates in found["throughput"].items():
        table.add_row(
            f"throughput after/before, {direction.replace('_', ' ')}",
            f"{rates['ratio']}  ({rates['after_mbit_s']}/{rates['before_mbit_s']} Mbit/s"
            + (f"; link: {limit * 1000:.0f})" if limit else ")"),
            "≥ 0.95",
        )
    return Group(table, _handovers(found))


def _handovers(found: Mapping[str, Any]) -> Table:
    parts = list(next(iter(found["parts_s"].values())))
    names = [name.removesuffix("_s") for name in parts]
    table = _table("Handovers, µs a connection (goal: the same for all)", "", *names, "total")
    for count, total in found["per_connection_us"].items():
        seconds = found["parts_s"][count]
        each = (f"{seconds[name] / int(count) * 1e6:.1f}" for name in parts)
        table.add_row(count, *each, str(total))
    return table


def twins(found: Mapping[str, Any]) -> RenderableType:
    """What ``bench_tcp.compare_twins`` returned."""
    tables: list[RenderableType] = []
    for end, title in (
        ("server", "The servers' ends: one was moved"),
        ("client", "The clients' ends: neither was moved"),
    ):
        table = _table(title, "", "stayed", "moved", "")
        for row in found[end]:
            values = (str(row[which] or "-")[:_MOST_SHOWN] for which in ("stayed", "moved"))
            table.add_row(row["field"], *values, row["wrong"] or "")
        tables.append(table)
    return Group(*tables, *found["differences"] or ["No difference that matters."])


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for name in columns:
        table.add_column(name)
    return table
