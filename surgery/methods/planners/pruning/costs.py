"""What a network costs without some of its channels, from the coupling alone: no forward, no recording."""

import math

import numpy as np

from surgery.graph import ModelGraph
from surgery.graph.channel_classes import Coupling
from surgery.planning.cost import graph_cost


class PrunedCosts:
    """Multiply-accumulates and parameters of a network when channel classes are gone.

    Attributes:
        original_macs, original_params: with all channels; multiply-accumulates for one image.
    """

    def __init__(self, graph: ModelGraph, coupling: Coupling) -> None:
        self._layers = list(coupling.layers.values())
        self.original_macs = graph_cost(graph).macs
        self._other_macs = self.original_macs - sum(layer.macs for layer in self._layers)
        tensors = {
            id(p): (name, p)
            for name, module in graph.modules.items()
            for p in module._parameters.values()
            if p is not None
        }
        self.original_params = sum(tensor.numel() for _, tensor in tensors.values())
        self._sides: dict[tuple[str, str], list[np.ndarray]] = {}
        for side in coupling.sides:
            if side.parameter in graph.modules[side.module]._parameters:
                self._sides.setdefault((side.module, side.parameter), []).append(side.numbers)
        self._sizes = {
            (name, key): graph.modules[name]._parameters[key].numel()  # type: ignore[union-attr]
            for name, key in self._sides
        }

    def macs(self, gone: np.ndarray) -> int:
        """Multiply-accumulates for one image; ``gone`` is a mask (count,) over channel classes."""
        stays = ~gone
        return self._other_macs + sum(layer.macs_left(stays) for layer in self._layers)

    def params(self, gone: np.ndarray) -> int:
        """Number of parameters; ``gone`` is a mask (count,) over channel classes."""
        stays, saved = ~gone, 0
        for key, sides in self._sides.items():
            left = math.prod(int(stays[numbers].sum()) for numbers in sides)
            saved += self._sizes[key] - self._sizes[key] * left // math.prod(len(numbers) for numbers in sides)
        return self.original_params - saved
