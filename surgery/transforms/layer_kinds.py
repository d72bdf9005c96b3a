"""Kinds of layers that a method can put into a model, by the names that files call them by."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from surgery.core.errors import check_choice
from surgery.core.registering import check_name_free
from surgery.transforms.transform import plain

LONGEST = 128  # characters of a name


@dataclass(frozen=True)
class Insertion:
    """A module to put in front of a convolution.

    Attributes:
        module: maps (N, C, H, W) to (N, squeezed, H, W).
        gain: by which the convolution's filters are multiplied, where the module divides by it.
        grouping: which input channels go into which squeezed one (``transforms.subsets``).
    """

    module: nn.Module
    gain: float = 1.0
    grouping: str = "contiguous"


@dataclass(frozen=True)
class LayerKind:
    """A kind of layer.

    Attributes:
        name: in files.
        Options: a frozen dataclass of JSON values, which checks them; a tuple comes as a list.
        replacing: makes the layer that takes a convolution's place, from it and the options.
        inserted: makes the layer in front of a convolution, from its width, the squeezed width and the options.
        behind: makes the layer behind a module, from the width of the map that this gives and the options.
    """

    name: str
    Options: type[Any]
    replacing: Callable[[nn.Conv2d, Any], nn.Module] | None = None
    inserted: Callable[[int, int, Any], Insertion] | None = None
    behind: Callable[[int, Any], nn.Module] | None = None


_KINDS: dict[str, LayerKind] = {}


def register_layer(kind: LayerKind) -> LayerKind:
    """Make a kind of layer known; raises ValueError if the name is taken by one with other options or functions."""
    earlier = _KINDS.get(kind.name)
    check_name_free(f"layer {kind.name!r}", _parts(kind), earlier and _parts(earlier))
    _KINDS[kind.name] = kind
    return kind


def _parts(kind: LayerKind) -> tuple[Any, ...]:
    return kind.Options, kind.replacing, kind.inserted, kind.behind


def layer_kind(name: str) -> LayerKind:
    """The kind of that name; raises ValueError that lists what there is."""
    if not isinstance(name, str) or len(name) > LONGEST:
        raise ValueError(f"layer={name!r:.80}: the name of a kind of layer is needed")
    check_choice("layer", name, sorted(_KINDS))
    return _KINDS[name]


def checked_options(layer: str, options: Any) -> dict[str, Any]:
    """All options of a kind of layer as JSON values, defaults included.

    Raises:
        ValueError: for an option that there is not, or a value that cannot be.
    """
    kind = layer_kind(layer)
    accepted = [field.name for field in dataclasses.fields(kind.Options)]
    if not isinstance(options, Mapping) or not set(options) <= set(accepted):
        raise ValueError(f"options={options!r:.120}: of layer {layer!r} there are {', '.join(accepted) or 'none'}")
    try:
        return {name: plain(value) for name, value in dataclasses.asdict(kind.Options(**options)).items()}
    except TypeError as error:
        raise ValueError(str(error)) from error
