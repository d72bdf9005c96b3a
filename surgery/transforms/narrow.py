"""Make layers narrower, consistently."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from surgery.core.errors import is_whole
from surgery.transforms.field_checks import LARGEST
from surgery.transforms.slicing import Keep, Sizes, slice_channels
from surgery.transforms.transform import CALL, PER_INDEX, UNSTORED, Choice, Transform, transform

Chooser = Callable[[nn.Module], Keep]


@dataclass(frozen=True, eq=False)
class SameChannels:
    """The chooser of what was planned: the same channels in every model, whatever its weights."""

    keep: Keep = field(repr=False)

    def __call__(self, model: nn.Module) -> Keep:
        return self.keep


@transform("narrow")
@dataclass(frozen=True)
class Narrow(Transform):
    """Slices of the parameters of modules.

    Attributes:
        widths: module → [in, out] that it has then; None where a side stays.
        parameters: full name of whatever else is indexed by channels → [dimension, size].
        maps: module, a convolution between several maps → [channels of each that goes in, of each that comes out].
        chooser: which indices stay (:data:`surgery.transforms.slicing.Keep`), by the weights that a model has; without
            it the first ones.
    """

    widths: dict[str, list[int | None]]
    parameters: dict[str, list[int]] = field(default_factory=dict)
    chooser: Chooser | None = field(default=None, compare=False, repr=False, metadata=UNSTORED)
    maps: dict[str, list[list[int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = Sizes.from_json({"widths": self.widths, "parameters": self.parameters, "maps": self.maps})
        numbers = list(_numbers(sizes))
        if not all(is_whole(n, 0, LARGEST) for n in numbers):
            raise ValueError(f"widths={self.widths!r:.120}: whole numbers up to {LARGEST} are needed")
        object.__setattr__(self, "widths", {name: list(entry) for name, entry in sizes.widths.items()})
        object.__setattr__(self, "parameters", {name: list(entry) for name, entry in sizes.parameters.items()})
        maps = {name: [list(side) for side in entry] for name, entry in sizes.maps.items()}
        object.__setattr__(self, "maps", maps)

    def choose(self, model: nn.Module) -> Choice:
        return None if self.chooser is None else self.chooser(model)

    def apply(self, model: nn.Module, choice: Choice = None) -> None:
        slice_channels(model, self._sizes(), choice)

    def changed(self) -> tuple[str, ...]:
        return self.resized()

    def resized(self) -> tuple[str, ...]:
        owners = (name.rpartition(".")[0] for name in self.parameters)
        return tuple(dict.fromkeys([*self.widths, *self.maps, *(owner for owner in owners if owner)]))

    def kept_outputs(self, choice: Choice) -> dict[str, list[int]]:
        kept: dict[str, list[int]] = {}
        for (name, parameter), dims in ({} if choice is None else choice).items():
            if parameter == "weight" and 0 in dims:
                kept[name] = np.asarray(dims[0]).tolist()
        return kept

    def work(self, model: nn.Module) -> int:
        sides = list(_numbers(self._sizes()))
        return PER_INDEX * sum(sides) + CALL * len(sides)

    def _sizes(self) -> Sizes:
        return Sizes(self.widths, self.parameters, self.maps)


def _numbers(sizes: Sizes) -> Iterator[int]:
    """All that are written, whatever they mean."""
    pairs: list[list[Any]] = [*sizes.widths.values(), *sizes.parameters.values()]
    sides = [side for entry in sizes.maps.values() for side in entry]
    yield from (n for entry in [*pairs, *sides] for n in entry if n is not None)
