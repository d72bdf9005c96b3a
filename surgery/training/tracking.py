"""What a job says of itself while it runs: a CSV file always, and the tracker that is asked for."""

import csv
import io
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import is_mlflow_available, is_tensorboard_available, is_wandb_available

from surgery.core.atomic_file import write_atomically
from surgery.training.recipe import Recipe, RecipeError
from surgery.training.recipe_text import recipe_text

AVAILABLE = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available, "mlflow": is_mlflow_available}
COLUMNS = ("training", "epoch", "loss", "lr", "accuracy")


def check_tracker(name: str | None) -> None:
    """Raise RecipeError where the tracker's package is not installed; Accelerate would leave it out without a word."""
    if name is not None and not AVAILABLE[name]():
        raise RecipeError(f"track={name}: the package is not installed; pip install {name}")


class Log:
    """Rows of all trainings of a job, in ``log.csv`` and at a tracker; only the main process writes."""

    def __init__(self, accelerator: Accelerator, recipe: Recipe, path: Path) -> None:
        self.accelerator, self.path = accelerator, path
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.epochs = 0  # of all trainings, since wandb drops what has a lower step than it has seen
        if recipe.track:
            try:
                accelerator.init_trackers("surgery", {"recipe": recipe_text(recipe.to_dict())})
            except Exception as error:  # each tracker has its own, for a missing key, server or folder
                raise RecipeError(f"track={recipe.track}: {error}") from error

    def write(self, training: str, history: list[dict[str, Any]]) -> None:
        """The rows of a training so far; those that are new go to the tracker."""
        reported = len(self.rows.get(training, []))
        self.rows[training] = history
        for row in history[reported:]:
            self.epochs += 1
            self.accelerator.log({f"{training}/{key}": value for key, value in row.items()}, step=self.epochs)
        if self.accelerator.is_main_process:
            content = io.StringIO()
            writer = csv.DictWriter(content, COLUMNS)
            writer.writeheader()
            writer.writerows({"training": name, **row} for name, rows in self.rows.items() for row in rows)
            write_atomically(self.path, content.getvalue().encode())
