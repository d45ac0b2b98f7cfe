"""The picture of a move: what each client saw over time.

One column per move. Above, a row per connection: a dot for every answer, a bar for every wait; the
freeze is shaded, the handover drawn into it. Below, how long each answer took, at the moment of the
question, on a logarithmic scale; and how the streams (a download, an upload) went on, if there
are any.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, NullLocator

from netlab.load.samples import Verdict
from netlab.load.series import Records, Samples
from netlab.report import ClientRun, MoveTimes, longest_wait_ms

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa3ad",
    "axes.labelcolor": "#3c4650",
    "xtick.color": "#59636e",
    "ytick.color": "#59636e",
    "axes.titleweight": "bold",
}
_COLOURS = ("#2563a8", "#d9730d", "#2e8b57", "#8e44ad", "#7f6000", "#008b8b")
_FREEZE, _HANDOVER, _RESUME, _WRONG = "#e4e9ef", "#c2334d", "#1f8a4c", "#d00000"
_INK, _FAINT = "#1f2933", "#7b8794"
_GROUP_GAP_ROWS = 1.6
_NO_WAIT_MS = 0.02
_WAIT_SHOWN_MS = 2.0  # a shorter wait is covered by its dot


@dataclass(frozen=True)
class _Row:
    """One connection: where it is drawn, and its requests around the move (milliseconds)."""

    y: float
    colour: str
    sent: Records
    answered: Records
    right: Records


@dataclass(frozen=True)
class _Group:
    """One client's rows, its label, and where that goes."""

    label: str
    colour: str
    middle: float
    size: int


def plot_moves(
    path: Path,
    moves: Sequence[MoveTimes],
    clients: Sequence[ClientRun],
    *,
    title: str = "What the clients saw",
    labels: dict[str, str] | None = None,
) -> None:
    """Draw one or two moves (there and back) into the PNG ``path``.

    ``labels`` gives the names of clients a wording for readers. At most forty connections of a
    client are drawn; all of them count in the lower panel.
    """
    requests = [each for each in clients if each.samples and each.samples.kind == "requests"]
    streams = [each for each in clients if each.samples and each.samples.kind == "progress"]
    heights = [3.4, 1.25] + ([1.1] if streams else [])
    width, height = 9.4 if len(moves) == 1 else 6.6 * len(moves), 1.5 * sum(heights) + 1.3
    with mpl.rc_context(_STYLE):
        figure, grid = plt.subplots(
            len(heights),
            len(moves),
            figsize=(width, height),
            sharex="col",
            sharey="row",
            squeeze=False,
            gridspec_kw={"height_ratios": heights, "hspace": 0.09, "wspace": 0.05},
        )
        for column, move in enumerate(moves):
            first = column == 0
            panels = grid[:, column]
            low, high = _span(move)
            _draw_rows(panels[0], move, requests, labels or {}, named=first)
            _draw_latency(panels[1], move, requests, labelled=first)
            if streams:
                _draw_streams(panels[2], move, streams, labels or {}, labelled=first)
            for panel in panels:
                _draw_move(panel, move)
                panel.set_xlim(low, high)
                panel.tick_params(length=3)
            _caption(panels[0], move)
            panels[-1].set_xlabel("ms from the beginning of the freeze")
        top = 1 - 0.1 / height
        figure.text(
            0.15 / width, top, title, ha="left", va="top", size=13, weight="bold", color=_INK
        )
        legend = "●  an answer      ━━  waiting for it"
        figure.text(1 - 0.15 / width, top, legend, ha="right", va="top", color=_FAINT)
        figure.align_ylabels(grid[1:, 0])
        # Margins in inches: they hold text, whatever the size of the picture.
        figure.subplots_adjust(
            left=1.55 / width,
            right=1 - 0.15 / width,
            top=1 - 0.95 / height,
            bottom=0.5 / height,
        )
        figure.savefig(path, dpi=150, facecolor="white")
        plt.close(figure)


def _span(move: MoveTimes) -> tuple[float, float]:
    """What is shown, milliseconds from the freeze: some time before it, and some after the
    resume."""
    margin = max(0.55 * move.freeze_ms, 40.0)
    return -margin, move.freeze_ms + margin


def _around(samples: Samples, move: MoveTimes) -> Records:
    low, high = (move.freeze_start + edge / 1e3 for edge in _span(move))
    records = samples.records
    found: Records = records[(records["answered"] >= low) & (records["sent"] <= high)]
    return found


def _ms(times: Records, move: MoveTimes) -> Records:
    found: Records = (times - move.freeze_start) * 1e3
    return found


def _layout(
    move: MoveTimes, clients: Sequence[ClientRun], labels: dict[str, str]
) -> tuple[list[_Row], list[_Group]]:
    rows: list[_Row] = []
    groups: list[_Group] = []
    y = 0.0
    for number, client in enumerate(clients):
        if client.samples is None:
            continue
        colour = _COLOURS[number % len(_COLOURS)]
        records = _around(client.samples, move)
        connections = range(min(client.summary.connections, 40))
        begin = y
        for connection in connections:
            own = records[records["connection"] == connection]
            rows.append(
                _Row(
                    y=y,
                    colour=colour,
                    sent=_ms(own["sent"], move),
                    answered=_ms(own["answered"], move),
                    right=own["verdict"] == Verdict.RIGHT,
                )
            )
            y += 1
        name = client.summary.name
        label = labels.get(name, name)
        groups.append(_Group(label, colour, (begin + y - 1) / 2, client.summary.connections))
        y += _GROUP_GAP_ROWS
    return rows, groups


def _draw_rows(
    panel: Any,  # noqa: ANN401  matplotlib is untyped here
    move: MoveTimes,
    clients: Sequence[ClientRun],
    labels: dict[str, str],
    *,
    named: bool,
) -> None:
    rows, groups = _layout(move, clients, labels)
    for row in rows:
        long = row.answered - row.sent > _WAIT_SHOWN_MS
        panel.hlines(
            np.full(int(long.sum()), row.y),
            row.sent[long],
            row.answered[long],
            color=row.colour,
            linewidth=1.5,
            alpha=0.55,
            zorder=3,
        )
        here = np.full(len(row.answered), row.y)
        panel.scatter(
            row.answered[row.right], here[row.right], s=5, color=row.colour, linewidths=0, zorder=4
        )
        panel.scatter(
            row.answered[~row.right], here[~row.right], s=36, marker="x", color=_WRONG, zorder=5
        )
    panel.set_ylim(max((row.y for row in rows), default=0.0) + 1.2, -1.2)
    panel.yaxis.set_major_locator(NullLocator())
    panel.spines["left"].set_visible(False)
    if not named:
        return
    for group in groups:
        panel.annotate(
            group.label if group.size == 1 else f"{group.label}\n{group.size} connections",
            (0, group.middle),
            xycoords=("axes fraction", "data"),
            xytext=(-8, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            color=group.colour,
            fontsize=9,
            linespacing=1.3,
        )


def _draw_latency(
    panel: Any,  # noqa: ANN401  matplotlib is untyped here
    move: MoveTimes,
    clients: Sequence[ClientRun],
    *,
    labelled: bool,
) -> None:
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.grid(axis="y", color="#d3dae2", linewidth=0.6, zorder=0)
    longest = 0.0
    for number, client in enumerate(clients):
        if client.samples is None:
            continue
        records = _around(client.samples, move)
        took = (records["answered"] - records["sent"]) * 1e3
        longest = max(longest, longest_wait_ms(records, move.freeze_start, move.resume) or 0.0)
        # redis-cli's questions are not seen, their time is inferred: some seem to need no time.
        shown = took > _NO_WAIT_MS
        panel.scatter(
            _ms(records["sent"][shown], move),
            took[shown],
            s=6,
            color=_COLOURS[number % len(_COLOURS)],
            linewidths=0,
            alpha=0.8,
            zorder=3,
        )
    panel.set_ylim(_NO_WAIT_MS, max(longest, 100.0) * 3)
    panel.annotate(
        f"longest wait {longest:.1f} ms\nfreeze {longest - move.freeze_ms:+.1f} ms",
        (move.freeze_ms / 2, 0.42),
        xycoords=("data", "axes fraction"),
        ha="center",
        va="center",
        linespacing=1.4,
        color=_INK,
        fontsize=8.5,
    )
    if labelled:
        panel.set_ylabel("answer took, ms")


def _draw_streams(
    panel: Any,  # noqa: ANN401  matplotlib is untyped here
    move: MoveTimes,
    streams: Sequence[ClientRun],
    labels: dict[str, str],
    *,
    labelled: bool,
) -> None:
    low, high = (move.freeze_start + edge / 1e3 for edge in _span(move))
    for number, stream in enumerate(streams):
        if stream.samples is None:
            continue
        records = stream.samples.records
        shown = records[(records["time"] >= low) & (records["time"] <= high)]
        if not len(shown):
            continue
        colour = _COLOURS[-1 - number % len(_COLOURS)]
        upload = stream.summary.client == "upload"
        column = "acknowledged" if upload else "moved"
        amount = (shown[column].astype(np.float64) - float(shown[column][0])) / 1e6
        name = stream.summary.name
        what = f"{labels.get(name, name)}, {'acknowledged' if upload else 'received'}"
        panel.step(
            _ms(shown["time"], move), amount, where="post", color=colour, linewidth=1.4, label=what
        )
    panel.grid(axis="y", color="#d3dae2", linewidth=0.6, zorder=0)
    panel.set_ylim(bottom=0)
    if labelled:
        panel.set_ylabel("streamed, MB")
        panel.legend(loc="upper left", frameon=False, fontsize=8, handlelength=1.4)


def _draw_move(panel: Any, move: MoveTimes) -> None:  # noqa: ANN401  matplotlib is untyped here
    begin, end = _handover(move)
    panel.axvspan(0, move.freeze_ms, color=_FREEZE, zorder=0, linewidth=0)
    panel.axvspan(begin, end, color=_HANDOVER, alpha=0.28, zorder=1, linewidth=0)
    panel.axvline(move.freeze_ms, color=_RESUME, linewidth=1.3, zorder=2)


def _caption(panel: Any, move: MoveTimes) -> None:  # noqa: ANN401  matplotlib is untyped here
    begin, end = _handover(move)
    above = panel.get_xaxis_transform()
    panel.set_title(f"{move.source} → {move.target}", loc="left", fontsize=10.5, pad=21, color=_INK)

    def say(x: float, text: str, side: str, colour: str) -> None:
        panel.text(x, 1.015, text, transform=above, ha=side, color=colour)

    say(0, f"freeze {move.freeze_ms:.0f} ms", "left", _FAINT)
    say((begin + end) / 2, f"handover {move.handover_ms:.1f} ms ", "right", _HANDOVER)
    say(move.freeze_ms, " resume", "left", _RESUME)


def _handover(move: MoveTimes) -> tuple[float, float]:
    begin = (move.handover_start - move.freeze_start) * 1e3
    end = (move.handover_end - move.freeze_start) * 1e3
    return begin, end
