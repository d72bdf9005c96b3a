"""What is wrong with a recipe, in one line that names the key, its value and what would be accepted."""

import dataclasses
import difflib
import functools
import math
import typing
from collections.abc import Iterable
from typing import Any, TypeVar

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from surgery.core.errors import check_choice

SHOWN = 80  # characters of a value, and
NEAREST = 3  # names, of many
ERRORS = 5  # wrong keys, that one message holds
C = TypeVar("C", bound=type)
LIMITS = {Ge: "ge", Gt: "gt", Le: "le", Lt: "lt"}
WORDS = {Ge: "at least", Gt: "above", Le: "at most", Lt: "below"}
KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text that is not empty",
    type(None): "null",
}


class RecipeError(ValueError):
    """A recipe with an unknown key, a wrong type or a combination that cannot be."""


def check_key(key: str, value: str, accepted: Iterable[str]) -> None:
    """Raise RecipeError, with the nearest of what is accepted, for a value that is not."""
    try:
        check_choice(key, value, accepted)
    except ValueError as error:
        raise RecipeError(str(error)) from None


def shown(value: object) -> str:
    """A value as YAML writes it, text in quotes, cut where it is long."""
    try:
        text = _written(value)
    except (ValueError, RecursionError):  # Python writes no integer of more than 4,300 digits
        return f"a {type(value).__name__} of absurd size"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _written(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)}: {_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else repr(value)


def _key(key: object) -> str:
    return key if isinstance(key, str) else _written(key)


def raises_recipe_errors(cls: C) -> C:
    """Class decorator: what pydantic finds wrong in a group of keys is raised as RecipeError."""
    init = cls.__init__  # type: ignore[misc]

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except ValidationError as error:
            raise RecipeError(described(error, cls)) from None

    cls.__init__ = __init__  # type: ignore[misc]
    return cls


def described(error: ValidationError, cls: type) -> str:
    """All wrong keys of a group, in one line."""
    problems = error.errors(include_url=False)
    lines = list(dict.fromkeys(_line(problem, cls) for problem in problems))
    more = f"; and {len(lines) - ERRORS} more" if len(lines) > ERRORS else ""
    return "; ".join(lines[:ERRORS]) + more


def _line(error: Any, cls: type) -> str:
    if error["type"] == "value_error" and isinstance(error["ctx"]["error"], RecipeError):
        return str(error["ctx"]["error"])
    prefix = getattr(cls, "PREFIX", "")
    groups, key, annotation, item_path = _declared(error["loc"], cls)
    group = ".".join(part for part in (prefix, *groups) if part)
    if error["type"] == "unexpected_keyword_argument":
        owner = annotation
        return f"in {group or 'the recipe'}: {_unknown(error['loc'][-1], [f.name for f in dataclasses.fields(owner)])}"
    if error["type"] == "missing":  # a list that is too short
        item_path = ()
    name = ".".join(part for part in (group, key) if part) + "".join(f"[{n}]" for n in item_path if isinstance(n, int))
    if dataclasses.is_dataclass(annotation):
        return f"{name}={shown(error['input'])}: a group of keys is needed"
    return _refusal(name, error["input"], _element(annotation, item_path))


def _refusal(name: str, value: object, annotation: Any) -> str:
    names, source = choices(annotation), listed_at(annotation)
    if source and isinstance(value, str):
        nearest = difflib.get_close_matches(value, names, NEAREST, cutoff=0.3)
        hint = f"; did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
        return f"{name}={shown(value)}: {accepted(annotation)} is needed{hint}"
    if names and isinstance(value, str):
        try:
            check_choice(name, value, names)
        except ValueError as error:
            return str(error)
    return f"{name}={shown(value)}: {accepted(annotation)} is needed"


def _unknown(key: object, recipe_keys: list[str]) -> str:
    try:
        check_choice("recipe key", key, recipe_keys)
    except ValueError as error:
        return str(error)
    return f"recipe key={key!r} is given twice"


def _declared(loc: tuple[Any, ...], cls: type) -> tuple[list[str], str, Any, tuple[Any, ...]]:
    """Of an error's place: the groups above the key, the key, what it is declared as, and what follows inside it."""
    groups: list[str] = []
    owner: Any = cls
    for position, name in enumerate(loc):
        declared = owner.__pydantic_fields__.get(name)
        if declared is None:
            return groups, "", owner, ()
        if not dataclasses.is_dataclass(declared.annotation):
            return groups, name, annotation_of(declared), loc[position + 1 :]
        if position == len(loc) - 1:
            return groups, name, declared.annotation, ()
        groups, owner = [*groups, name], declared.annotation
    return groups, "", owner, ()


def annotation_of(declared: FieldInfo) -> Any:
    """A key's type with its range, as one annotation."""
    return typing.Annotated[(declared.annotation, *declared.metadata)] if declared.metadata else declared.annotation


def _element(annotation: Any, item_path: tuple[Any, ...]) -> Any:
    """The declaration of an element of a list, else of the whole."""
    plain, _ = _split(annotation)
    if item_path and isinstance(item_path[0], int) and typing.get_origin(plain) is tuple:
        return typing.get_args(plain)[item_path[0]]
    return annotation


def _split(annotation: Any) -> tuple[Any, list[Any]]:
    """A type without its annotations, and these, those of pydantic's Field unfolded."""
    if typing.get_origin(annotation) is not typing.Annotated:
        return annotation, []
    plain, *notes = typing.get_args(annotation)
    unfolded = [part for note in notes for part in (note.metadata if isinstance(note, FieldInfo) else [note])]
    return plain, unfolded


def choices(annotation: Any) -> list[str]:
    """The names that a key takes, where it takes only some."""
    plain, notes = _split(annotation)
    own = [list(note.names) for note in notes if hasattr(note, "names")]
    return own[0] if own else next((names for part in typing.get_args(plain) if (names := choices(part))), [])


def listed_at(annotation: Any) -> str:
    """Where the names that a key takes are listed, where they are too many for a line; else nothing."""
    _, notes = _split(annotation)
    return next((note.source for note in notes if hasattr(note, "names")), "")


def accepted(annotation: Any, notes: Iterable[Any] = ()) -> str:
    """What a key takes, in words: ``a number from 0 to 1``."""
    plain, own = _split(annotation)
    notes = [*own, *notes]
    arguments = typing.get_args(plain)
    if typing.get_origin(plain) is tuple:
        if arguments[1:] == (Ellipsis,):
            return f"a list, each {accepted(arguments[0])}"
        return f"a list [{', '.join(accepted(argument) for argument in arguments)}]"
    if typing.get_origin(plain) is dict:
        return "a group of keys"
    if arguments:
        return " or ".join(accepted(argument, notes if argument is not type(None) else ()) for argument in arguments)
    if source := listed_at(annotation):
        return f"a name of {source}"
    names = choices(annotation)
    return f"one of {', '.join(names)}" if names else KINDS.get(plain, str(plain)) + _range(notes)


def _range(notes: Iterable[Any]) -> str:
    """Limits in words; pydantic does not say in which order they come."""
    limits = {
        kind: f"{getattr(note, name):.12g}" for note in notes for kind, name in LIMITS.items() if isinstance(note, kind)
    }
    if Ge in limits and (Le in limits or Lt in limits):
        return f" from {limits[Ge]} to {limits[Le]}" if Le in limits else f" from {limits[Ge]} to below {limits[Lt]}"
    words = [f"{WORDS[kind]} {limits[kind]}" for kind in WORDS if kind in limits]
    return (" " if words else "") + ", ".join(words)
