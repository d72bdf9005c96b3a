"""Values that models take and give: tensors, and lists, dicts and objects of them."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def tensors_in(value: Any, above: tuple[int, ...] = ()) -> Iterator[Tensor]:
    """Every tensor of a value, in order: of lists, tuples, dicts, dataclasses and plain objects (an ``ImageList``)."""
    if isinstance(value, Tensor):
        yield value
        return
    if id(value) in above or isinstance(value, nn.Module | type | str):
        return
    inside = (*above, id(value))
    items = value if isinstance(value, tuple | list) else attributes(value).values()
    for item in items:
        yield from tensors_in(item, inside)


def own_attributes(module: nn.Module) -> dict[str, Any]:
    """What a module holds as plain attributes, besides those that every module has."""
    return {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}


def attributes(value: Any) -> Mapping[Any, Any]:
    """The items of a dict, the fields of a dataclass, or the attributes of a plain object; else nothing."""
    if isinstance(value, Mapping):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    held = getattr(value, "__dict__", None)
    return held if isinstance(held, dict) and not callable(value) else {}
