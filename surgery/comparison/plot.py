"""Accuracy against MACs and against time, a panel for each length of fine-tuning."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from surgery.comparison.cells import CONTROL
from surgery.comparison.summary import Row
from surgery.training.outcome import write_figure


def plot_macs(path: Path, rows: Sequence[Row], title: str) -> None:
    """Accuracy against the share of the original's MACs, as PNG."""
    _plot(path, rows, lambda row: row.share, "MACs ÷ original's", title)


def plot_time(path: Path, rows: Sequence[Row], title: str) -> None:
    """Accuracy against the measured time, as PNG; rows without a time are left out."""
    timed = [row for row in rows if row.time is not None]
    _plot(path, timed, lambda row: (row.time or (1.0,))[0], "time of a forward ÷ original's", title)


def _plot(path: Path, rows: Sequence[Row], x: Callable[[Row], float], label: str, title: str) -> None:
    from matplotlib.figure import Figure

    lengths = sorted({row.epochs for row in rows})
    if not lengths:
        return
    figure = Figure(figsize=(5.0 * len(lengths) + 1, 4.6), layout="constrained")
    panels = figure.subplots(1, len(lengths), squeeze=False)[0]
    for axes, epochs in zip(panels, lengths, strict=True):
        _draw_panel(axes, [row for row in rows if row.epochs == epochs], x)
        axes.set(title=f"{epochs} epoch{'' if epochs == 1 else 's'}", xlabel=label)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy (%)")
    panels[-1].legend(fontsize="small")
    figure.suptitle(title)
    write_figure(path, figure)


def _draw_panel(axes: Any, rows: Sequence[Row], x: Callable[[Row], float]) -> None:
    for number, method in enumerate(dict.fromkeys(_series(row) for row in rows)):
        points = sorted((row for row in rows if _series(row) == method), key=x)
        colour = "black" if method == CONTROL else f"C{number}"
        means = [statistics.fmean(row.final) for row in points]
        spreads = [statistics.stdev(row.final) if len(row.final) > 1 else 0.0 for row in points]
        axes.errorbar([x(row) for row in points], means, spreads, label=method, color=colour, marker="o", capsize=3)
        if method == CONTROL:
            axes.axhline(means[0], color=colour, linestyle=":", linewidth=1)


def _series(row: Row) -> str:
    """What its points are called in the legend."""
    return row.variant.label or row.variant.method
