"""What a job reports: a table, a JSON file, a plot."""

import io
import itertools
import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.atomic_file import write_atomically
from surgery.cost import Cost
from surgery.table import si, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

History = list[dict[str, Any]]


@dataclass(frozen=True)
class Measured:
    """One row of the table: accuracies in percent, one for each seed, MACs for one image, parameters."""

    stage: str
    accuracies: tuple[float, ...]
    macs: int
    params: int

    @property
    def accuracy(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.accuracies)

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds (of a sample: n − 1), 0 for one seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0

    def __str__(self) -> str:
        spread = f" ± {self.deviation:.2f}" if len(self.accuracies) > 1 else ""
        return f"{self.accuracy:.2f}{spread} %"


class Outcome:
    """What a job has measured so far: accuracies by stage, and the curve of every training, seed after seed.

    ``metric`` says what accuracies are: top-1 accuracy, mIoU.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.curves: dict[str, list[History]] = {}
        self._rows: dict[str, Measured] = {}

    def add(self, stage: str, accuracy: float, spent: Cost) -> None:
        """One more accuracy of a stage; the network of a stage costs the same whatever the seed."""
        before = self._rows[stage].accuracies if stage in self._rows else ()
        self._rows[stage] = Measured(stage, (*before, accuracy), spent.macs, spent.params)

    def add_curve(self, name: str, history: History) -> None:
        self.curves.setdefault(name, []).append(history)

    @property
    def rows(self) -> list[Measured]:
        """The stages in the order in which they were first measured."""
        return list(self._rows.values())

    def table(self) -> str:
        """What a job prints at its end."""
        cells = [(r.stage, str(r), si(r.macs), si(r.params)) for r in self.rows]
        return table(("", self.metric, "MACs", "params"), cells, right=(1, 2, 3))

    def write_json(self, path: Path, **more: Any) -> None:
        """Rows and curves as JSON, with whatever else the job wants kept."""
        rows = [asdict(row) | {"accuracy": row.accuracy, "deviation": row.deviation} for row in self.rows]
        write_atomically(
            path, json.dumps({"metric": self.metric, "rows": rows, "curves": self.curves, **more}, indent=1).encode()
        )


def plot_curves(path: Path, metric: str, curves: dict[str, list[History]], lines: Iterable[Measured] = ()) -> None:
    """The metric against epochs to a PNG: means over the seeds, with the range of all as a band; some rows as lines."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, histories in curves.items():
        epochs = [row["epoch"] for row in histories[0]]
        runs = list(zip(*([row["accuracy"] for row in history] for history in histories), strict=True))
        (line,) = axes.plot(epochs, [statistics.fmean(run) for run in runs], marker="o", markersize=3, label=name)
        axes.fill_between(
            epochs, [min(run) for run in runs], [max(run) for run in runs], color=line.get_color(), alpha=0.2
        )
    for row, style in zip(lines, itertools.cycle(("--", ":", "-."))):
        axes.axhline(row.accuracy, linestyle=style, color="grey", label=f"{row.stage}: {row.accuracy:.1f} %")
    axes.set(xlabel="epoch", ylabel=f"{metric} (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    write_figure(path, figure)


def write_figure(path: Path, figure: "Figure") -> None:
    """A figure as PNG, whole or not at all."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_atomically(path, content.getvalue())
