"""What a comparison runs: one cell is one job, in a folder of its own."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from surgery.comparison.budgets import BudgetSettings
from surgery.core.atomic_file import write_atomically
from surgery.planning.registry import method_named
from surgery.training.recipe import Recipe, RecipeError, TrainSettings
from surgery.training.recipe_sections import LEAST_SIDE, SurgerySettings

Kind = Literal["baseline", "original", "surgery"]
CONTROL, RESOLUTION = "control", "resolution"
INDECISIVE = ("threads", "fresh", "output", "track")  # a cell that is finished stays so with others


@dataclass(frozen=True)
class Variant:
    """A network that is compared: what a method makes of the original at one budget.

    Attributes:
        method: a registered one, ``resolution`` (the original on smaller images) or ``control`` (the original).
        budget: share of the original's MACs that is asked for; 1 for the control.
        settings: by which it is reached.
        label: of a variant that a recipe names; it has no budget to reach.
        published: a paper's figure of that, in percent.
    """

    method: str
    budget: float
    settings: BudgetSettings
    label: str = ""
    published: float | None = None

    @property
    def name(self) -> str:
        return self.label or (self.method if self.method == CONTROL else f"{self.method}-{self.budget:g}")

    @property
    def title(self) -> str:
        """In tables."""
        return self.label or (self.method if self.method == CONTROL else f"{self.method} {self.budget:g}")


@dataclass(frozen=True)
class Cell:
    """One job.

    Attributes:
        kind: ``surgery`` converts and fine-tunes, ``original`` fine-tunes without surgery, ``baseline`` trains the
            original.
    """

    name: str
    kind: Kind
    recipe: Recipe

    @property
    def folder(self) -> Path:
        return Path(self.recipe.output)

    @property
    def results(self) -> Path:
        return self.folder / "results.json"

    @property
    def spec(self) -> Path:
        """The file that says what the cell is: it stays beside its folder."""
        return self.folder.with_name(f"{self.folder.name}.json")

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def finished(self) -> bool:
        return self.results.exists()

    def read(self) -> dict[str, Any]:
        """The results of a finished cell."""
        results: dict[str, Any] = json.loads(self.results.read_text())
        return results

    def write_spec(self) -> None:
        content = {"name": self.name, "kind": self.kind, "recipe": self.recipe.to_dict()}
        write_atomically(self.spec, json.dumps(content, indent=1).encode())

    def check_spec(self) -> None:
        """Raise RecipeError where the folder holds the same cell with other settings.

        A cell that an earlier version finished stays so; one that it left unfinished has a state that refuses to go on.
        """
        if not self.spec.exists():
            return
        before, now = _with_defaults(json.loads(self.spec.read_text())["recipe"]), _as_json(self.recipe)
        changed = [f"{key}={old!r:.60}, now {new!r:.60}" for key, old, new in _differences(before, now)]
        if changed:
            raise RecipeError(
                f"{self.folder} was run with {'; '.join(changed)}: the same settings, or another --output, are needed"
            )


def read_cell(path: Path) -> Cell:
    """The cell of a file that :meth:`Cell.write_spec` wrote."""
    content = json.loads(path.read_text())
    return Cell(content["name"], content["kind"], Recipe(**content["recipe"]))


def _as_json(recipe: Recipe) -> dict[str, Any]:
    """Its values as a JSON file gives them back: lists in place of tuples."""
    values: dict[str, Any] = json.loads(json.dumps(recipe.to_dict()))
    return values


def _with_defaults(recipe: dict[str, Any]) -> dict[str, Any]:
    """An earlier version's recipe with the defaults of the keys that have come since; as it is if it is none now."""
    try:
        return _as_json(Recipe(**recipe))
    except (RecipeError, TypeError):
        return recipe


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    rows: list[tuple[str, Any, Any]] = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if (not prefix and key in INDECISIVE) or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            rows += _differences(old, new, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", old, new))
    return rows


def baseline_cell(recipe: Recipe, folder: Path) -> Cell:
    """The original, trained where the recipe says so; what comes after it does not matter to it."""
    alone = dataclasses.replace(
        recipe,
        output=str(folder / "cells" / "baseline"),
        seeds=1,
        variants={},
        published={},
        surgery=SurgerySettings(),
        finetune=TrainSettings(epochs=0),
    )
    return Cell("baseline", "baseline", alone)


def variant_cell(recipe: Recipe, folder: Path, original: Path, variant: Variant, run: tuple[int, int]) -> Cell:
    """One variant's job; ``run`` is its seed and its epochs."""
    seed, epochs = run
    name = f"{variant.name}-e{epochs}-s{seed}"
    tuning = recipe.finetune
    warmup = min(tuning.warmup_epochs, epochs) if epochs else tuning.warmup_epochs
    side = variant.settings.image_size or recipe.data.image_size
    changed = dataclasses.replace(
        recipe,
        output=str(folder / "cells" / name),
        seed=seed,
        seeds=1,
        variants={},
        published={},
        control=False,
        model=dataclasses.replace(recipe.model, checkpoint=str(original), weights=None, pretrained=False, kwargs={}),
        baseline=TrainSettings(epochs=0),
        finetune=dataclasses.replace(tuning, epochs=epochs, warmup_epochs=warmup, first_size=_first_size(recipe, side)),
        data=dataclasses.replace(recipe.data, image_size=side),
        surgery=_surgery(recipe, variant, seed),
    )
    return Cell(name, "original" if variant.method in (CONTROL, RESOLUTION) else "surgery", changed)


def _first_size(recipe: Recipe, side: int) -> int | None:
    """Of images with another side the same share; None where that is less than images may have."""
    first = recipe.finetune.first_size
    scaled = None if first is None else first * side // recipe.data.image_size
    return scaled if scaled is not None and LEAST_SIDE <= scaled < side else None


def _surgery(recipe: Recipe, variant: Variant, seed: int) -> SurgerySettings:
    if variant.method in (CONTROL, RESOLUTION):
        return SurgerySettings()
    settings = variant.settings
    draws = any(field.name == "seed" for field in dataclasses.fields(method_named(variant.method).Config))
    options = {**settings.options, "seed": seed} if draws else dict(settings.options)
    return dataclasses.replace(
        recipe.surgery, method=variant.method, zeta=settings.zeta, mode=settings.mode, options=options
    )
