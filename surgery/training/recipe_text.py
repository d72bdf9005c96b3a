"""The YAML of recipes and of ``key=value`` arguments, read so that no text can take long, or memory, or be ambiguous.

A recipe is a small file of plain values. So YAML's anchors and aliases, by which few lines stand for billions of
values, are refused, as are keys that occur twice, values nested deeper than any recipe's, and files that are too large.
"""

from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node

from surgery.training.recipe_errors import RecipeError, shown

BYTES = 1 << 16
DEPTH = 16


class _Refused(yaml.YAMLError):
    """Something that YAML has and recipes have not."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(problem)
        self.problem, self.problem_mark = problem, mark


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases, repeated keys, keys that are no text, and depth."""

    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event: Any = self.peek_event()
        if getattr(event, "anchor", None) is not None:
            raise _Refused("anchors and aliases (& and *) are not for recipes: write the value out", event.start_mark)
        self.depth += 1
        if self.depth > DEPTH:
            raise _Refused(f"values are nested deeper than {DEPTH} levels", event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(node, MappingNode):
            _check_keys(node)
        return node


def _check_keys(node: MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        if key.tag != "tag:yaml.org,2002:str":
            what = shown(key.value) if isinstance(key.value, str) else "a list or a mapping"
            raise _Refused(f"the key {what} is no name; put it in quotes", key.start_mark)
        if key.value in seen:
            raise _Refused(f"the key {shown(key.value)} occurs twice", key.start_mark)
        seen.add(key.value)


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The values of a recipe file.

    Raises:
        OSError: it cannot be read.
        RecipeError: it is no mapping in YAML, or too large; names line and column.
    """
    with open(path, "rb") as file:
        content = file.read(BYTES + 1)
    if len(content) > BYTES:
        raise RecipeError(f"{path} is larger than {BYTES >> 10} KiB: no recipe is")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not YAML: it is no text in UTF-8 (byte {error.start})") from None
    values = _parse(text, f"{path} is not YAML for recipes")
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a mapping of recipe keys is needed, found {type(values).__name__}")
    return values


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one ``key=value``: a dotted key, a YAML value.

    Raises:
        RecipeError: it is no such thing.
    """
    key, separator, text = override.partition("=")
    path = key.strip().split(".")
    if not separator or not all(path):
        raise RecipeError(f"{shown(override)}: key=value is needed, such as finetune.epochs=5")
    if len(override) > BYTES or len(path) > DEPTH:
        raise RecipeError(f"{shown(override)} is longer than any setting")
    value = _parse(text, f"{shown(override)}: {shown(text)} is no YAML value")
    for name in path[:-1]:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise RecipeError(f"{shown(override)}: {shown(name)} is a value, not a group of keys")
    values[path[-1]] = value


def _parse(text: str, complaint: str) -> Any:
    """A YAML value; raises RecipeError, in one line that begins with the complaint."""
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise RecipeError(f"{complaint}: {_words(problem or str(error))}{where}") from None
    except (ValueError, OverflowError, RecursionError) as error:  # a date or a number that cannot be
        raise RecipeError(f"{complaint}: {_words(str(error).partition(';')[0])}") from None


def _words(problem: str) -> str:
    line = " ".join(problem.split())
    return f"{line}; indent with spaces" if r"'\t'" in line else line
