"""What a job reports: a table, a JSON file, a plot."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from surgery.atomic_file import write_atomically
from surgery.table import si, table


@dataclass(frozen=True)
class Measured:
    """One row of the table: top-1 accuracy in percent, MACs for one image, parameters."""

    stage: str
    accuracy: float
    macs: int
    params: int


def outcome_table(rows: list[Measured]) -> str:
    """The table that a job prints."""
    cells = [(r.stage, f"{r.accuracy:.2f} %", si(r.macs), si(r.params)) for r in rows]
    return table(("", "accuracy", "MACs", "params"), cells, right=(1, 2, 3))


def write_json(path: Path, rows: list[Measured], **more: Any) -> None:
    """The same as JSON, with whatever else the job wants kept."""
    write_atomically(path, json.dumps({"rows": [asdict(row) for row in rows], **more}, indent=1).encode())


def plot_curves(path: Path, curves: dict[str, list[dict[str, Any]]], rows: list[Measured]) -> None:
    """Accuracy against epochs of each training, with the accuracies before it as lines, to a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, history in curves.items():
        axes.plot([row["epoch"] for row in history], [row["accuracy"] for row in history], marker="o", label=name)
    for row, style in zip(rows[:2], ("--", ":"), strict=False):
        axes.axhline(row.accuracy, linestyle=style, color="grey", label=f"{row.stage}: {row.accuracy:.1f} %")
    axes.set(xlabel="epoch", ylabel="top-1 accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    part = path.with_name(f".{path.name}.part.png")
    figure.savefig(part, dpi=120)
    part.replace(path)
