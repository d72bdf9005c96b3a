"""Values that models take and give: tensors, and lists, dicts and objects of them."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

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


def shape_tree(value: Any, above: tuple[int, ...] = ()) -> Any:
    """Shapes of a value of tensors, or of recorded nodes that stand for them.

    Returns:
        A tuple of ints for a tensor, a list for lists and tuples, a dict for dicts (and objects, by attribute), None
        for what is no tensor. So ``(1, 8, 4, 4)`` is one map, and ``[(1, 8, 4, 4), (1, 8, 2, 2)]`` two.
    """
    if isinstance(value, fx.Node):
        return value.meta["shapes"]
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if id(value) in above or isinstance(value, nn.Module | type | str):
        return None
    inside = (*above, id(value))
    if isinstance(value, list | tuple):
        return [shape_tree(item, inside) for item in value]
    held = {str(key): shape_tree(item, inside) for key, item in attributes(value).items()}
    return held if isinstance(value, Mapping) or next(shapes_in(held), None) is not None else None


def shapes_of_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The :func:`shape_tree` of a call's only argument that holds tensors; of several, a list of theirs, in order."""
    trees = [shape_tree(argument) for argument in (*args, *kwargs.values())]
    holding = [tree for tree in trees if next(shapes_in(tree), None) is not None]
    return holding[0] if len(holding) == 1 else holding


def shapes_in(tree: Any) -> Iterator[tuple[int, ...]]:
    """Every tensor's shape of a tree of shapes, in order."""
    if isinstance(tree, tuple):
        yield tree
    elif tree is not None:
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from shapes_in(item)
