"""What a job reports: a table, a JSON file, a plot."""

import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.core.atomic_file import write_atomically
from surgery.core.table import si, table
from surgery.planning.cost import Cost

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

History = list[dict[str, Any]]


@dataclass(frozen=True)
class Measured:
    """One row of the table: accuracies in percent, one for each seed, MACs for one image, parameters.

    Attributes:
        figures: further ones by name, in percent, one for each seed.
    """

    stage: str
    accuracies: tuple[float, ...]
    macs: int
    params: int
    figures: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.accuracies)

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds (of a sample: n − 1), 0 for one seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0

    def __str__(self) -> str:
        return f"{_mean_and_spread(self.accuracies)} %"


def _mean_and_spread(values: Sequence[float]) -> str:
    """Of seeds: the mean, with the standard deviation where there are several."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


class Outcome:
    """What a job has measured so far: accuracies by stage, and the curve of every training, seed after seed.

    ``metric`` says what accuracies are: top-1 accuracy, mIoU.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.curves: dict[str, list[History]] = {}
        self._rows: dict[str, Measured] = {}

    def add(self, stage: str, accuracy: float, spent: Cost, figures: Mapping[str, float] | None = None) -> None:
        """One more accuracy of a stage, with further figures; its network costs the same whatever the seed."""
        before = self._rows.get(stage, Measured(stage, (), 0, 0))
        further = {name: (*before.figures.get(name, ()), value) for name, value in (figures or {}).items()}
        self._rows[stage] = Measured(stage, (*before.accuracies, accuracy), spent.macs, spent.params, further)

    def add_curve(self, name: str, history: History) -> None:
        self.curves.setdefault(name, []).append(history)

    @property
    def rows(self) -> list[Measured]:
        """The stages in the order in which they were first measured."""
        return list(self._rows.values())

    def table(self) -> str:
        """What a job prints at its end; further figures are in percent, as the metric."""
        further = list(dict.fromkeys(name for row in self.rows for name in row.figures))
        header = ["", self.metric, *further, "MACs", "params"]
        cells = [
            [r.stage, str(r), *(_mean_and_spread(r.figures[name]) for name in further), si(r.macs), si(r.params)]
            for r in self.rows
        ]
        return table(header, cells, right=range(1, len(header)))

    def write_json(self, path: Path, **more: Any) -> None:
        """Rows and curves as JSON, with whatever else the job wants kept."""
        rows = [asdict(row) | {"accuracy": row.accuracy, "deviation": row.deviation} for row in self.rows]
        write_atomically(
            path, json.dumps({"metric": self.metric, "rows": rows, "curves": self.curves, **more}, indent=1).encode()
        )


COLOURS = {"original": "tab:blue", "converted": "tab:orange", "control": "tab:green"}  # of networks, in every plot
LINES = {  # stages that are drawn as horizontal lines: their network, and how
    "original": ("original", "--"),
    "after surgery": ("converted", ":"),
    "after calibration": ("converted", "--"),
}


def plot_curves(path: Path, outcome: Outcome, title: str) -> None:
    """The metric against epochs to a PNG: means over the seeds, with the range of all as a band.

    A fine-tuning's curve begins with epoch 0, what its network reaches before it. Stages before any fine-tuning are
    horizontal lines in the colour of their network.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    rows = {row.stage: row for row in outcome.rows}
    begins = {"converted": rows.get("after calibration", rows.get("after surgery")), "control": rows.get("original")}
    for name, histories in outcome.curves.items():
        epochs, runs = curve_points(histories, begins.get(name))
        draw_runs(axes, epochs, runs, label=name, color=COLOURS[name], marker="o", markersize=3)
    for stage in LINES:
        if stage in rows:
            _draw_stage(axes, rows[stage])
    axes.set(title=title, xlabel="epoch", ylabel=f"{outcome.metric} (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    write_figure(path, figure)


def _draw_stage(axes: "Axes", row: Measured) -> None:
    network, style = LINES[row.stage]
    axes.axhline(row.accuracy, linestyle=style, color=COLOURS[network], linewidth=1, label=f"{row.stage}: {row}")


def curve_points(histories: Sequence[History], begin: Measured | None = None) -> tuple[list[int], list[list[float]]]:
    """Epochs, and for each of them the accuracies of all runs; with what they began with as epoch 0."""
    epochs = [row["epoch"] for row in histories[0]]
    runs = [list(run) for run in zip(*([row["accuracy"] for row in history] for history in histories), strict=True)]
    return ([0, *epochs], [list(begin.accuracies), *runs]) if begin else (epochs, runs)


def draw_runs(axes: "Axes", epochs: Sequence[int], runs: Sequence[Sequence[float]], **style: Any) -> None:
    """The mean over runs as a line, their range as a band of its colour."""
    axes.plot(epochs, [statistics.fmean(run) for run in runs], **style)
    low, high = [min(run) for run in runs], [max(run) for run in runs]
    axes.fill_between(epochs, low, high, color=style["color"], alpha=0.2)


def write_figure(path: Path, figure: "Figure") -> None:
    """A figure as PNG, whole or not at all."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_atomically(path, content.getvalue())
