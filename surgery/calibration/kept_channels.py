"""Which of the original's channels a narrowed network still has at every layer, read off the outputs that some kept."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from surgery.graph import ModelGraph
from surgery.graph.coupling import couple


class KeptChannels:
    """Kept inputs and outputs of the layers and norms of a network.

    Channels that live and die together are known wherever one of their layers is.

    Args:
        original: the recorded network before it was narrowed.
        kept: of some layers, which outputs are still there.
    """

    def __init__(self, original: ModelGraph, kept: Mapping[str, Sequence[int]]) -> None:
        self._original, self._kept = original, kept

    @cached_property
    def _numbers(self) -> dict[tuple[str, int], np.ndarray]:
        """Channel classes along each dimension of every weight."""
        if not self._kept:
            return {}
        sides = couple(self._original).sides
        return {(side.module, side.dim): side.numbers for side in sides if side.parameter == "weight"}

    @cached_property
    def _staying_and_gone(self) -> tuple[np.ndarray, np.ndarray]:
        staying, gone = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for name, outputs in self._kept.items():
            numbers = self._numbers.get((name, 0))
            if numbers is not None:
                stays = np.isin(np.arange(len(numbers)), np.asarray(outputs))
                staying.append(numbers[stays])
                gone.append(numbers[~stays])
        return np.concatenate(staying), np.concatenate(gone)

    def outputs(self, name: str, width: int) -> tuple[int, ...] | None:
        """Which outputs of the original the ``width`` of a layer or norm are; None where that is not known."""
        told = self._kept.get(name)
        return tuple(told) if told is not None and len(told) == width else self._along(name, 0, width)

    def inputs(self, name: str, width: int) -> tuple[int, ...] | None:
        """The same of what each output reads (of the first group, where there are several)."""
        return self._along(name, 1, width)

    def _along(self, name: str, dim: int, width: int) -> tuple[int, ...] | None:
        numbers = self._numbers.get((name, dim))
        if numbers is None:
            return None
        staying, gone = self._staying_and_gone
        if np.isin(numbers, np.intersect1d(staying, gone)).any():  # a group lost another channel than its neighbour
            return None
        left = np.flatnonzero(~np.isin(numbers, gone))
        return tuple(left.tolist()) if len(left) == width else None

    def slice_of(self, name: str, shape: torch.Size) -> Tensor | None:
        """What a weight of that shape was in the original; None where that is not known."""
        weight = cast(Tensor, self._original.modules[name].weight).detach()
        for dim, size in enumerate(shape[:2]):
            if dim < weight.dim() and weight.shape[dim] != size:
                index = self.outputs(name, size) if dim == 0 else self.inputs(name, size)
                if index is None:
                    return None
                weight = weight.index_select(dim, torch.tensor(index, device=weight.device))
        return weight if weight.shape == shape else None

    def is_slice(self, name: str, layer: nn.Module) -> bool:
        """Whether a layer only lost channels: its weights are the original's otherwise."""
        weight = layer._parameters.get("weight")
        if weight is None or "weight" not in self._original.modules[name]._parameters:
            return False
        own = self.slice_of(name, weight.shape)
        return own is not None and torch.equal(own.to(weight.device), weight.detach())
