"""The recipes that come with the package, by name: a wheel holds them, a checkout has them beside the package."""

import difflib
import itertools
import textwrap
from pathlib import Path

import surgery

QUICKSTART = "quickstart"


def shipped_recipes() -> dict[str, Path]:
    """Files by name, sorted."""
    package = Path(surgery.__file__).resolve().parent
    folder = next((path for path in (package / "recipes", package.parent / "recipes") if path.is_dir()), package)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The file of that path, or else the recipe of that name which comes with the package.

    Raises:
        FileNotFoundError: neither; with the names that there are.
    """
    path, recipes = Path(name), shipped_recipes()
    if path.is_file() or name not in recipes:
        if not path.is_file():
            near = difflib.get_close_matches(path.stem, recipes, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise FileNotFoundError(
                f"there is no recipe {name!r}: a YAML file, or one of {', '.join(recipes)} is needed{hint}"
            )
        return path
    return recipes[name]


def recipe_list() -> str:
    """Each recipe's name with the first sentence of its file, which says what it does."""
    recipes = shipped_recipes()
    width = max(map(len, recipes), default=0) + 2
    return "\n".join(
        textwrap.fill(_sentence(path), 110, initial_indent=name.ljust(width), subsequent_indent=" " * width)
        for name, path in recipes.items()
    )


def _sentence(path: Path) -> str:
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return " ".join(line.lstrip("# ") for line in lines).partition(". ")[0].rstrip(".")
