"""How fast the accuracy comes back: scratch, converted, calibrated, distilled, each against an equal control.

    python benchmarks/recovery.py --data FOLDER --jobs 2 threads=1    all of it, on two cores
    python benchmarks/recovery.py --data FOLDER --seeds 1 baseline.epochs=4 --budgets 0.25

The recipe's network is trained once; then every variant is fine-tuned for each budget (a share of those epochs), seed
after seed. Below --output lie a folder for each run, recovery.md and recovery.png. The same command goes on where it
was stopped. With --jobs N, N runs go on at a time, each logged beside its folder.
'scratch' trains a freshly initialised network as the original was trained, for the budget.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from run_options import run_options, shares

from surgery.comparison.cells import Cell
from surgery.comparison.running import run_cells
from surgery.core.atomic_file import write_atomically
from surgery.training import Recipe, load_recipe
from surgery.training.outcome import Measured, curve_points, draw_runs, write_figure
from surgery.training.recipe import RecipeError

RECIPE = Path(__file__).parents[1] / "recipes" / "cifar10.yaml"
NAIVE = ["surgery.calibrate=0", "surgery.match=false"]
LABELS = ["finetune.distill_weight=0", "finetune.block_weight=0"]
VARIANTS: dict[str, list[str]] = {
    "calibrated, distilled": ["control=true"],
    "calibrated": [*LABELS],
    "converted": [*NAIVE, *LABELS, "control=true"],
    "scratch": [*NAIVE, *LABELS, "control=true"],
}
COLOURS = {  # of a variant and of its control: tab20's pairs, dark and light
    "scratch": ("#7f7f7f", "#c7c7c7"),
    "converted": ("#d62728", "#ff9896"),
    "calibrated": ("#1f77b4", "#aec7e8"),
    "calibrated, distilled": ("#2ca02c", "#98df8a"),
}


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_intermixed_args(arguments)
    settings = [f"data.root={args.data}"] if args.data else []
    settings += [*args.settings, f"seeds={args.seeds}"]
    try:
        recipe = load_recipe(args.recipe, settings)
        budgets = [_epochs(recipe, share) for share in args.budgets]
        original = _train(args, settings)
        kinds = [(name, epochs) for epochs in sorted(budgets, reverse=True) for name in VARIANTS]
        cells = {kind: _variant(args, settings, recipe, original, *kind) for kind in kinds}
        _run_all(list(cells.values()), args.jobs)
        results = {(name, epochs): cells[name, epochs].read() for epochs in budgets for name in VARIANTS}
    except KeyboardInterrupt as stopped:
        print(f"\n{str(stopped) or 'stopped'}; the same command goes on from the last state", file=sys.stderr)
        return getattr(stopped, "status", 130)
    except (RecipeError, OSError) as error:
        print(f"recovery.py: {error}", file=sys.stderr)
        return 2
    text = _markdown(results, budgets, recipe)
    write_atomically(args.output / "recovery.md", text.encode())
    _plot(args.output / "recovery.png", results, budgets, recipe)
    print(f"\n{text}\n{args.output / 'recovery.md'} and {args.output / 'recovery.png'} written")
    return 0


def _epochs(recipe: Recipe, share: float) -> int:
    epochs = round(share * recipe.baseline.epochs)
    if epochs < 1:
        raise RecipeError(f"--budgets {share}: less than one of baseline.epochs={recipe.baseline.epochs}")
    return epochs


def _train(args: argparse.Namespace, settings: list[str]) -> Path:
    """The original, trained once; also surgery and calibration without any training, for all seeds."""
    cell = _cell(args, "original", [*settings, "finetune.epochs=0"])
    _run_all([cell], 1)
    return cell.folder / "baseline.safetensors"


def _variant(
    args: argparse.Namespace, settings: list[str], recipe: Recipe, original: Path, name: str, epochs: int
) -> Cell:
    start = [f"model.checkpoint={original}", "baseline.epochs=0"]
    if name == "scratch":
        trained = dataclasses.asdict(recipe.baseline)
        start = ["baseline.epochs=0", *(f"finetune.{key}={json.dumps(value)}" for key, value in trained.items())]
    more = ["finetune.lr_by_damage=false", f"finetune.epochs={epochs}"]  # one rate for all, and for their control
    return _cell(args, _folder(name, epochs), [*settings, *start, *VARIANTS[name], *more])


def _run_all(cells: Sequence[Cell], jobs: int) -> None:
    """Those that take longest stand first."""
    failed = run_cells(cells, jobs)
    if failed:
        raise RecipeError("; ".join(f"{name}: {error}" for name, error in failed.items()))


def _folder(name: str, epochs: int) -> str:
    return f"{name.replace(', ', '-')}-{epochs}"


def _cell(args: argparse.Namespace, name: str, settings: list[str]) -> Cell:
    """One recipe in a folder of its own."""
    return Cell(name, "surgery", load_recipe(args.recipe, [*settings, f"output={args.output / name}"]))


def _markdown(results: dict[tuple[str, int], dict[str, Any]], budgets: list[int], recipe: Recipe) -> str:
    lines = [
        f"{recipe.data.name}, {recipe.model.kwargs}, zeta = {recipe.surgery.zeta}, original trained for "
        f"{recipe.baseline.epochs} epochs, {recipe.seeds} seeds; accuracy in percent, mean ± standard deviation.",
        "",
        "| variant | epochs | before | after | control | difference |",
        "|---|---|---|---|---|---|",
    ]
    for (name, epochs), outcome in results.items():
        rows = {row["stage"]: row for row in outcome["rows"]}
        control = rows.get(CONTROL) or _control(results, epochs)
        start, tuned = rows.get("after calibration", rows["after surgery"]), rows["after fine-tuning"]
        difference = f"{tuned['accuracy'] - control['accuracy']:+.2f}"
        lines.append(f"| {name} | {epochs} | {_shown(start)} | {_shown(tuned)} | {_shown(control)} | {difference} |")
    first = next(iter(results.values()))["rows"]
    macs = {row["stage"]: row["macs"] for row in first}
    original = next(row for row in results["converted", budgets[0]]["rows"] if row["stage"] == "original")
    lines += [
        "",
        f"Original: {original['accuracy']:.2f} %, {macs['original'] / 1e6:.2f} M MACs; converted "
        f"{macs['after fine-tuning'] / 1e6:.2f} M.",
    ]
    return "\n".join(lines)


CONTROL = "control: original, fine-tuned"


def _control(results: dict[tuple[str, int], dict[str, Any]], epochs: int) -> dict[str, Any]:
    """The control of a variant that is trained just as ``converted`` is."""
    return next(row for row in results["converted", epochs]["rows"] if row["stage"] == CONTROL)


def _shown(row: dict[str, Any]) -> str:
    spread = f" ± {row['deviation']:.2f}" if len(row["accuracies"]) > 1 else ""
    return f"{row['accuracy']:.2f}{spread}"


def _plot(path: Path, results: dict[tuple[str, int], dict[str, Any]], budgets: list[int], recipe: Recipe) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(budgets), 4.8), layout="constrained")
    panels = figure.subplots(1, len(budgets), squeeze=False, sharey=True)[0]
    for axes, epochs in zip(panels, budgets, strict=True):
        for name, colours in COLOURS.items():
            _draw_variant(axes, name, results[name, epochs], colours)
        original = _measured(results["converted", epochs]["rows"])["original"]
        axes.axhline(original.accuracy, linestyle=":", linewidth=1, color="black", label=f"original: {original}")
        axes.set(title=f"{epochs} epochs", xlabel="epoch")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("top-1 accuracy (%)")
    panels[-1].legend(fontsize="small")
    figure.suptitle(recipe.title)
    write_figure(path, figure)


def _draw_variant(axes: Any, name: str, outcome: dict[str, Any], colours: tuple[str, str]) -> None:
    """A variant's curve and its control's, both from what their networks reach before they are trained."""
    rows = _measured(outcome["rows"])
    start = rows.get("after calibration", rows["after surgery"])
    for curve, begin, style, colour in (
        ("converted", start, "-", colours[0]),
        ("control", rows["original"], "--", colours[1]),
    ):
        if curve in outcome["curves"]:
            label = name if curve == "converted" else f"{name}: control"
            epochs, runs = curve_points(outcome["curves"][curve], begin)
            draw_runs(axes, epochs, runs, label=label, color=colour, linestyle=style, marker=".")


def _measured(rows: list[dict[str, Any]]) -> dict[str, Measured]:
    return {r["stage"]: Measured(r["stage"], tuple(r["accuracies"]), r["macs"], r["params"]) for r in rows}


def _parser() -> argparse.ArgumentParser:
    parser = run_options(__doc__, RECIPE, "runs/recovery")
    parser.add_argument("--budgets", type=shares, default=[0.05, 0.25], help="shares of baseline.epochs: 0.05,0.25")
    return parser


if __name__ == "__main__":
    sys.exit(main())
