"""The whole comparison: baseline, budgets, cells, times, table and plots."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

import surgery
from surgery.comparison.budgets import BudgetSettings, method_budget, resolution_budget
from surgery.comparison.cells import CONTROL, RESOLUTION, Cell, Variant, baseline_cell, variant_cell
from surgery.comparison.latency import Latencies, LatencySettings
from surgery.comparison.plot import plot_macs, plot_time
from surgery.comparison.running import run_cells
from surgery.comparison.summary import Row, as_markdown, as_text, make_row, notes, write_json
from surgery.core.atomic_file import write_atomically
from surgery.core.errors import SurgeryError, check_choice, described
from surgery.planning.registry import configure, method_named
from surgery.planning.registry import methods as registered
from surgery.planning.selection import Selection
from surgery.training.recipe import Recipe, RecipeError

Jobs = dict[tuple[str, int], list[Cell]]  # the cells of all seeds, by the variant's name and the epochs
Run = Callable[[Sequence[Variant], Sequence[int]], dict[str, str]]  # all at all lengths; returns the errors


def every_method() -> list[str]:
    """What can be compared."""
    return [*registered(), RESOLUTION]


def default_methods() -> list[str]:
    """What is compared where nobody says what: all but those that only add."""
    return [name for name in every_method() if name == RESOLUTION or not getattr(registered()[name], "adds", False)]


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        methods: names of registered ones, and ``resolution``.
        macs: budgets, shares of the original's MACs, above 0 and below 1.
        shares: lengths of the fine-tuning, as shares of ``baseline.epochs``; 0: none.
        seeds: how many, from the recipe's on.
        jobs: cells at a time.
        best: how many methods get the longest fine-tuning, those that are best after the one before; None: all.

    Raises:
        ValueError: naming the option, its value and what would be accepted.
    """

    methods: Sequence[str]
    macs: Sequence[float]
    shares: Sequence[float] = (0.0,)
    seeds: int = 1
    jobs: int = 1
    best: int | None = None

    def __post_init__(self) -> None:
        for name in self.methods:
            check_choice("--methods", name, every_method())
        for budget in self.macs:
            if not 0 < budget < 1:
                raise ValueError(f"--macs {budget:g}: a share of the original's MACs, above 0 and below 1, is needed")
        for share in self.shares:
            if not 0 <= share <= 100:
                raise ValueError(f"--budgets {share:g}: a share of baseline.epochs, from 0 to 100, is needed")
        for option, value in (("methods", self.methods), ("macs", self.macs), ("budgets", self.shares)):
            if not value or len(set(value)) < len(value):
                raise ValueError(f"--{option} {','.join(map(str, value))}: one or more, none twice, are needed")
        for option, number in (("seeds", self.seeds), ("jobs", self.jobs), ("best", self.best)):
            if number is not None and number < 1:
                raise ValueError(f"--{option} {number}: 1 or more is needed")

    def epochs(self, recipe: Recipe) -> list[int]:
        """Of the fine-tunings, shortest first.

        Raises:
            RecipeError: a share is less than one epoch, or ``best`` has no shorter length to choose by.
        """
        lengths = sorted({_epochs(recipe, share) for share in self.shares})
        if self.best is not None and len(_trained_lengths(lengths)) < 2:
            shares = ",".join(f"{share:g}" for share in self.shares)
            raise RecipeError(f"--best {self.best}: two lengths above 0 are needed, and --budgets {shares} has fewer")
        return lengths


def _epochs(recipe: Recipe, share: float) -> int:
    epochs = round(share * recipe.baseline.epochs)
    if share and not epochs:
        raise RecipeError(f"--budgets {share:g}: less than one of baseline.epochs={recipe.baseline.epochs}")
    return epochs


@dataclass(frozen=True)
class Compared:
    """What has been found out.

    Attributes:
        failed: errors by the names of cells and variants.
        best: how many methods got the longest fine-tuning; None: all.
    """

    rows: list[Row]
    seeds: int
    failed: dict[str, str]
    best: int | None = None

    @property
    def notes(self) -> list[str]:
        """What a reader of the table must know."""
        lines = notes(self.rows, self.seeds, self.failed)
        if self.best is not None:
            chosen = f"the longest fine-tuning only for the {self.best} best after the one before, at each budget"
            lines.insert(1, f"{chosen}: chosen by the accuracies that are shown, on the same test images")
        return lines

    def __str__(self) -> str:
        return "\n".join([as_text(self.rows), "", *self.notes])


def compare(
    recipe: Recipe, folder: Path, comparison: Comparison, latency: LatencySettings, original: str | None = None
) -> Compared:
    """Run what is not there yet, and write results.json, comparison.md and two plots to ``folder``.

    Args:
        recipe: of the original, its images, and the fine-tuning that all variants get.
        original: a file that surgery wrote, in place of the baseline's training.

    Raises:
        RecipeError, SurgeryError, ValueError, OSError: nothing can be compared, or ``folder`` holds other settings.
        KeyboardInterrupt: the same call goes on.
    """
    lengths = comparison.epochs(recipe)
    check_variants(recipe)
    recipe = _with_original(recipe, original)
    baseline = _baseline(recipe, folder, comparison.jobs)
    network = baseline.folder / "m.safetensors"
    variants, failed = _variants(recipe, surgery.load(network), comparison)
    make = partial(variant_cell, recipe, folder, network)
    seeds = range(recipe.seed, recipe.seed + comparison.seeds)
    trained = _trained_lengths(lengths)
    jobs = {(v.name, epochs): [make(v, (seed, epochs)) for seed in seeds] for epochs in trained for v in variants}
    for cell in (cell for cells in jobs.values() for cell in cells):
        cell.check_spec()  # also of those that are run last

    def run_all(variants: Sequence[Variant], lengths: Sequence[int]) -> dict[str, str]:
        chosen = [cell for epochs in lengths for v in variants for cell in jobs[v.name, epochs]]
        return run_cells(chosen, comparison.jobs)

    failed |= _in_rounds(run_all, variants, jobs, trained, comparison.best)
    latencies = Latencies(folder / "latency.json", latency)
    rows = list(_rows(variants, lengths, jobs, baseline, latencies))
    compared = Compared(rows, comparison.seeds, failed, comparison.best)
    _write(folder, compared, recipe, latency)
    return compared


def _baseline(recipe: Recipe, folder: Path, jobs: int) -> Cell:
    """The original's cell, which is run where it was not."""
    baseline = baseline_cell(recipe, folder)
    failed = run_cells([baseline], 1 if baseline.finished else jobs)
    if failed:
        raise RecipeError(f"the original failed: {failed['baseline']} ({baseline.log})")
    return baseline


def _with_original(recipe: Recipe, original: str | None) -> Recipe:
    if original is None:
        return recipe
    values: dict[str, Any] = recipe.to_dict()
    values["model"] |= {"checkpoint": original, "weights": None, "pretrained": False, "kwargs": {}}
    values["baseline"] |= {"epochs": 0}
    return Recipe(**values)


def _in_rounds(
    run: Run, variants: Sequence[Variant], jobs: Jobs, lengths: Sequence[int], best: int | None
) -> dict[str, str]:
    """All lengths; the longest only of the best, where that is asked for. Returns the errors."""
    if best is None:
        return run(variants, lengths)
    failed = run(variants, lengths[:-1])
    return failed | run(best_variants(variants, jobs, lengths[-2], best), lengths[-1:])


def best_variants(variants: Sequence[Variant], jobs: Jobs, epochs: int, count: int) -> list[Variant]:
    """The control, and the methods or variants that are best at each budget after ``epochs``."""
    accuracies: dict[str, float] = {}
    for variant in variants:
        cells = [cell for cell in jobs[variant.name, epochs] if cell.finished]
        if cells:
            accuracies[variant.name] = statistics.fmean(cell.read()["rows"][-1]["accuracies"][0] for cell in cells)
    chosen, ranked = {CONTROL}, [variant for variant in variants if variant.method != CONTROL]
    for budget in {variant.budget for variant in ranked}:
        names = [variant.name for variant in ranked if variant.budget == budget and variant.name in accuracies]
        chosen.update(sorted(names, key=lambda name: -accuracies[name])[:count])
    return [variant for variant in variants if variant.name in chosen]


def _trained_lengths(lengths: Sequence[int]) -> Sequence[int]:
    """A longer fine-tuning's cells say what there was before it."""
    return [epochs for epochs in lengths if epochs] or lengths


def _variants(recipe: Recipe, original: nn.Module, comparison: Comparison) -> tuple[list[Variant], dict[str, str]]:
    """The control, and every method at every budget or what the recipe names; with the errors of what cannot be."""
    variants, failed = [Variant(CONTROL, 1.0, BudgetSettings("the original"))], dict[str, str]()
    if recipe.variants:
        return [*variants, *(_named_variant(recipe, name) for name in recipe.variants)], failed
    wanted = [(method, budget) for budget in comparison.macs for method in comparison.methods]
    for method, budget in tqdm(wanted, "budgets", leave=False):
        try:
            settings = (
                resolution_budget(recipe, original, budget)
                if method == RESOLUTION
                else method_budget(recipe, original, method, budget)
            )
            variants.append(Variant(method, budget, settings))
        except (SurgeryError, ValueError, TypeError) as error:
            failed[f"{method}-{budget:g}"] = described(error)
    return variants, failed


def check_variants(recipe: Recipe) -> None:
    """Raise RecipeError for an option of a variant that its method does not take, before anything is trained."""
    method = method_named(recipe.surgery.method)
    for name, options in recipe.variants.items():
        arguments = {**recipe.surgery_arguments, **options}
        del arguments["input_size"]
        try:
            Selection(arguments.pop("include", ()), arguments.pop("exclude", ()))
            configure(method, arguments)
        except (ValueError, TypeError) as error:
            raise RecipeError(f"variants.{name}: {error}") from None


def _named_variant(recipe: Recipe, name: str) -> Variant:
    """A variant that the recipe names, as it is converted: it has no budget."""
    settings, options = recipe.surgery, recipe.variants[name]
    changes = ", ".join(f"{option}={value}" for option, value in options.items()) or "as it is"
    how = BudgetSettings(changes, {**settings.options, **options}, settings.zeta, settings.mode)
    return Variant(settings.method, 1.0, how, name, recipe.published.get(name))


def _rows(
    variants: Sequence[Variant],
    lengths: Sequence[int],
    jobs: Jobs,
    baseline: Cell,
    latencies: Latencies,
) -> Iterable[Row]:
    original = baseline.read()["rows"][-1]
    trained = _trained_lengths(lengths)
    for epochs in lengths:
        for variant in variants:
            cells = [cell for cell in jobs.get((variant.name, epochs or trained[0]), ()) if cell.finished]
            if cells:
                time = _time(variant, cells[0], baseline, latencies)
                yield make_row(variant, epochs, [cell.read() for cell in cells], original, time)


def _time(variant: Variant, cell: Cell, baseline: Cell, latencies: Latencies) -> tuple[float, float, float] | None:
    if variant.method == CONTROL:
        return (1.0, 1.0, 1.0)
    sides = cell.recipe.data.image_size, baseline.recipe.data.image_size
    files = cell.folder / "m.safetensors", baseline.folder / "m.safetensors"
    return latencies.ratio(variant.name, *files, sides)


def _write(folder: Path, compared: Compared, recipe: Recipe, latency: LatencySettings) -> None:
    """The files of a comparison."""
    rows = compared.rows
    over = "1 seed" if compared.seeds == 1 else f"{compared.seeds} seeds"
    title = f"{recipe.model.checkpoint or recipe.model.name} on {recipe.data.name}, {over}"
    listed = "\n".join(f"- {note}" for note in compared.notes)
    write_atomically(folder / "comparison.md", f"{title}\n\n{as_markdown(rows)}\n\n{listed}\n".encode())
    more = {"recipe": recipe.to_dict(), "latency": vars(latency), "best": compared.best}
    write_json(folder / "results.json", rows, compared.failed, **more)
    plot_macs(folder / "accuracy_macs.png", rows, title)
    plot_time(folder / "accuracy_time.png", rows, title)
