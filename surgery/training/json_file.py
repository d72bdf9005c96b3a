"""JSON files that a job left in its output folder."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from surgery.training.recipe_errors import RecipeError


def damaged(path: Path, reason: object) -> RecipeError:
    """The error for a file or folder of an earlier run that cannot be used."""
    return RecipeError(f"{path} is damaged ({reason}): fresh=true starts over, output=FOLDER keeps it")


def read_json(path: Path, keys: Iterable[str]) -> dict[str, Any]:
    """The content of a file that holds an object with ``keys``.

    Raises:
        RecipeError: it does not; names the file.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:  # no JSON, or no text
        raise damaged(path, error) from None
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise damaged(path, f"it lacks {', '.join(missing)}")
    return content
