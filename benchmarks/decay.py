"""Dynamic weight decay against plain weight decay: how much of CSNet can go before its maps are worse.

    python benchmarks/decay.py --data FOLDER --jobs 2 threads=1       all of it, on two cores
    python benchmarks/decay.py --data FOLDER --seeds 1 --shares 0.1

For every seed the recipe's network is trained with dynamic weight decay and, alike, with plain weight decay of all
parameters (``baseline.dynamic_weight_decay=0``). Each is pruned by ``gamma`` at the threshold of the recipe, and until
the shares of its parameters are left; all are calibrated and fine-tuned alike. Below --output lie a folder for each
run, decay.md and decay.png; runs that failed, as where no γ is below the threshold, are named and left out. The same
command goes on where it was stopped. With --jobs N, N runs go on at a time, each logged beside its folder.
"""

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from run_options import run_options, shares

import surgery
from surgery.comparison.cells import Cell, baseline_cell
from surgery.comparison.running import run_cells
from surgery.core.atomic_file import write_atomically
from surgery.core.batch_norms import batch_norms_of
from surgery.training import Recipe, load_recipe
from surgery.training.outcome import write_figure
from surgery.training.recipe import RecipeError, TrainSettings

RECIPE = Path(__file__).parents[1] / "recipes" / "sod_few_images.yaml"
DECAYS = {"dynamic": [], "plain": ["baseline.dynamic_weight_decay=0"]}
COLOURS = {"dynamic": "#1f77b4", "plain": "#d62728"}
WHOLE, GAP = "all", "gap"


@dataclass(frozen=True)
class Run:
    """One network: how it was trained, and what is left of it.

    Attributes:
        left: ``all``; a share of the parameters; ``gap``: what the recipe's threshold leaves.
    """

    decay: str
    left: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.decay}-{self.left}-s{self.seed}"


@dataclass(frozen=True)
class Point:
    """What a run came to; accuracies in percent, ``channels`` with a norm's scale."""

    accuracy: float
    mae: float
    params: int
    macs: int
    channels: int


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_intermixed_args(arguments)
    settings = [f"data.root={args.data}"] if args.data else []
    try:
        recipes = {name: load_recipe(args.recipe, [*settings, *args.settings, *own]) for name, own in DECAYS.items()}
        points, failed = _run(args, recipes)
    except KeyboardInterrupt as stopped:
        print(f"\n{str(stopped) or 'stopped'}; the same command goes on from the last state", file=sys.stderr)
        return getattr(stopped, "status", 130)
    except (RecipeError, OSError) as error:
        print(f"decay.py: {error}", file=sys.stderr)
        return 2
    text = _markdown(points, recipes["dynamic"])
    write_atomically(args.output / "decay.md", text.encode())
    _plot(args.output / "decay.png", points)
    print(f"\n{text}\n{args.output / 'decay.md'} and {args.output / 'decay.png'} written")
    for name, error in failed.items():
        print(f"decay.py: {name}: {error}", file=sys.stderr)
    return 1 if failed else 0


def _run(args: argparse.Namespace, recipes: dict[str, Recipe]) -> tuple[dict[Run, Point], dict[str, str]]:
    """The originals, then what is left of them; also what failed, by name.

    Raises:
        RecipeError: an original failed, without which there is nothing to prune.
    """
    seeds = range(args.seeds)
    originals = {
        Run(decay, WHOLE, seed): _original(args.output, Run(decay, WHOLE, seed), recipe)
        for seed in seeds
        for decay, recipe in recipes.items()
    }
    if failed := run_cells(list(originals.values()), args.jobs):
        raise RecipeError("; ".join(f"{name}: {error}" for name, error in failed.items()))
    left = [GAP, *(f"{share:g}" for share in sorted(args.shares, reverse=True))]
    runs = [Run(decay, part, seed) for part in left for seed in seeds for decay in recipes]
    pruned = {run: _pruned(args.output, run, recipes[run.decay]) for run in runs}
    failed = run_cells(list(pruned.values()), args.jobs)
    return {run: _point(cell) for run, cell in (originals | pruned).items() if cell.finished}, failed


def _original(output: Path, run: Run, recipe: Recipe) -> Cell:
    cell = baseline_cell(dataclasses.replace(recipe, seed=run.seed), output)
    return Cell(run.name, cell.kind, dataclasses.replace(cell.recipe, output=str(output / run.name)))


def _pruned(output: Path, run: Run, recipe: Recipe) -> Cell:
    original = output / f"{run.decay}-{WHOLE}-s{run.seed}" / "m.safetensors"
    shared = {name: value for name, value in recipe.surgery.options.items() if name != "threshold"}
    options = recipe.surgery.options if run.left == GAP else {**shared, "params": float(run.left)}
    changed = dataclasses.replace(
        recipe,
        output=str(output / run.name),
        seed=run.seed,
        seeds=1,
        control=False,
        model=dataclasses.replace(recipe.model, checkpoint=str(original), weights=None, pretrained=False, kwargs={}),
        baseline=TrainSettings(epochs=0),
        surgery=dataclasses.replace(recipe.surgery, options=options),
    )
    return Cell(run.name, "surgery", changed)


def _point(cell: Cell) -> Point:
    row = cell.read()["rows"][-1]
    network = surgery.load(cell.folder / "m.safetensors")
    channels = sum(norm.weight.numel() for norm in batch_norms_of(network).values() if norm.weight is not None)
    return Point(row["accuracy"], row["figures"]["MAE"][0], row["params"], row["macs"], channels)


def _markdown(points: dict[Run, Point], recipe: Recipe) -> str:
    seeds = len({run.seed for run in points})
    lines = [
        f"{recipe.title}: {recipe.baseline.epochs} epochs, fine-tuned for {recipe.finetune.epochs}; {seeds} seeds, "
        "mean ± standard deviation. 'gap': what the recipe's threshold of γ leaves; else the channels of the smallest "
        "γ go until that share of the parameters is left, within one per cent.",
        "",
        "| weight decay | left | channels | parameters | MACs | max F (%) | MAE (%) |",
        "|---|---|---|---|---|---|---|",
    ]
    for decay, left in dict.fromkeys((run.decay, run.left) for run in points):
        group = _of_all_seeds(points, decay, left)
        channels, params, macs = (
            round(statistics.mean(getattr(point, name) for point in group)) for name in ("channels", "params", "macs")
        )
        accuracies, errors = _shown([point.accuracy for point in group]), _shown([point.mae for point in group])
        lines.append(f"| {decay} | {left} | {channels:,} | {params:,} | {macs / 1e6:.1f} M | {accuracies} | {errors} |")
    return "\n".join(lines)


def _shown(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def _plot(path: Path, points: dict[Run, Point]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes: Any = figure.subplots()
    for decay, colour in COLOURS.items():
        own = [(point.params, point.accuracy) for run, point in points.items() if run.decay == decay]
        axes.plot(*zip(*own, strict=True), "o", color=colour, alpha=0.4, markersize=4)
        sizes = dict.fromkeys(run.left for run in points if run.decay == decay)
        means = sorted(_mean(points, decay, left) for left in sizes)
        axes.plot(*zip(*means, strict=True), "-", color=colour, label=f"{decay} weight decay")
    axes.set(xscale="log", xlabel="parameters", ylabel="max F (%)", title="CSNet pruned by γ and fine-tuned")
    axes.grid(alpha=0.3)
    axes.legend()
    write_figure(path, figure)


def _mean(points: dict[Run, Point], decay: str, left: str) -> tuple[float, float]:
    """Parameters and accuracy."""
    group = _of_all_seeds(points, decay, left)
    return statistics.mean(point.params for point in group), statistics.mean(point.accuracy for point in group)


def _of_all_seeds(points: dict[Run, Point], decay: str, left: str) -> list[Point]:
    return [point for run, point in points.items() if (run.decay, run.left) == (decay, left)]


def _parser() -> argparse.ArgumentParser:
    parser = run_options(__doc__, RECIPE, "runs/decay")
    parser.add_argument("--shares", type=_below_one, default=[0.025, 0.0125], help="of the parameters: 0.025,0.0125")
    return parser


def _below_one(text: str) -> list[float]:
    if max(shares(text)) >= 1:
        raise argparse.ArgumentTypeError(f"{text}: shares below 1 are needed")
    return shares(text)


if __name__ == "__main__":
    sys.exit(main())
