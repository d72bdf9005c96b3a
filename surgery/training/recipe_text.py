"""The YAML of recipes and of ``key=value`` arguments, read so that no text can take long, or memory, or be ambiguous.

A recipe is a small file of plain values. So YAML's anchors and aliases, by which few lines stand for billions of
values, are refused, as are keys that occur twice, values nested deeper than any recipe's, and files that are too large.
A date is a text, as is 1:30, which YAML 1.1 takes for 90; and 1e-3 is a number, which YAML 1.1 takes for a text.
"""

import math
import re
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node

from surgery.training.recipe_errors import RecipeError, shown

BYTES = 1 << 16
DEPTH = 16
DATE = "tag:yaml.org,2002:timestamp"
FLOAT = "tag:yaml.org,2002:float"
WITH_EXPONENT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
NUMBERS = {
    tag: re.compile(rf"(?!.*:)(?:{pattern.pattern})", re.VERBOSE)
    for resolvers in yaml.SafeLoader.yaml_implicit_resolvers.values()
    for tag, pattern in resolvers
    if tag in ("tag:yaml.org,2002:int", FLOAT)
}


class _Refused(yaml.YAMLError):
    """Something that YAML has and recipes have not."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(problem)
        self.problem, self.problem_mark = problem, mark


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """Those of SafeLoader by first character, without dates and numbers of base 60, and with 1e-3 as a number."""
    recipe_resolvers = {
        first: [(tag, NUMBERS.get(tag, pattern)) for tag, pattern in resolvers if tag != DATE]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for first in "+-.0123456789":
        recipe_resolvers.setdefault(first, []).append((FLOAT, WITH_EXPONENT))
    return {first: resolvers for first, resolvers in recipe_resolvers.items() if resolvers}


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases, repeated keys, keys that are no text, and depth."""

    depth = 0
    yaml_implicit_resolvers = _resolvers()

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

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:  # a number that cannot be
            raise _Refused(str(error).partition(";")[0], node.start_mark) from None
        if isinstance(value, float) and math.isinf(value) and "inf" not in str(node.value).lower():
            raise _Refused(f"{node.value} is larger than any number that a computer holds", node.start_mark)
        return value


class _Dumper(yaml.SafeDumper):
    """Puts a text in quotes that :class:`_Loader` would take for something else."""

    yaml_implicit_resolvers = _resolvers()


def _check_keys(node: MappingNode) -> None:
    names = set()
    for key, _ in node.value:
        if key.tag != "tag:yaml.org,2002:str":
            description = shown(key.value) if isinstance(key.value, str) else "a list or a mapping"
            raise _Refused(f"the key {description} is no name; put it in quotes", key.start_mark)
        if key.value in names:
            raise _Refused(f"the key {shown(key.value)} occurs twice", key.start_mark)
        names.add(key.value)


def recipe_text(values: Any, **options: Any) -> str:
    """Values as YAML that :func:`read_recipe` reads as they are; options are those of ``yaml.dump``."""
    text: str = yaml.dump(values, Dumper=_Dumper, **options)
    return text


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
    except RecursionError as error:
        raise RecipeError(f"{complaint}: {_words(str(error))}") from None


def _words(problem: str) -> str:
    line = " ".join(problem.split())
    return f"{line}; indent with spaces" if r"'\t'" in line else line
