"""What the norms' scales leave of each channel on its way to the layers that read it."""

import math
from collections.abc import Callable

import numpy as np
from torch import fx, nn

from surgery.core.surgery_layer import SurgeryLayer
from surgery.graph import ModelGraph, record
from surgery.graph.channel_classes import Coupling
from surgery.graph.dataflow import conv_spec
from surgery.graph.input_size import InputSize

_SAME = frozenset({"act", "identity", "pool", "global_pool", "pad", "upsample"})


def gamma(model: nn.Module, coupling: Coupling, input_size: InputSize | None = None) -> np.ndarray:
    """The largest |γ| by which any layer still sees a channel.

    A norm whose γ is 0 gives a channel one value for all images. So along a chain (convolution, norm, depth-wise
    convolution, norm, …) the smallest |γ| counts; where branches are added, and where several layers read, the largest.
    Infinite where no norm lies between a channel and a layer that reads it.

    Liu et al., Learning Efficient Convolutional Networks through Network Slimming, 2017, for |γ| as a score.
    """
    graph = record(model, input_size)
    left = _Left(graph)
    scores = np.full(coupling.count(), -math.inf)
    for node in graph:
        layer = coupling.layers.get(node.meta.get("module") or "")
        if layer is None or layer.depthwise:
            continue
        values = np.concatenate([left.of(source) for source in node.all_input_nodes])
        if values.shape != layer.reads.shape:
            values = np.full(layer.reads.shape, math.inf)
        np.maximum.at(scores, layer.reads, values)
    scores[scores == -math.inf] = math.inf  # nobody reads it, or only in training
    return scores


class _Left:
    """For each recorded map, the least |γ| on the way to each of its channels."""

    def __init__(self, graph: ModelGraph) -> None:
        self._graph = graph
        self._values: dict[fx.Node, np.ndarray] = {}
        for node in graph:
            if node.op != "output":
                self._values[node] = self._computed(node)

    def of(self, node: fx.Node) -> np.ndarray:
        """(channels,)."""
        return self._values[node]

    def _computed(self, node: fx.Node) -> np.ndarray:
        kind, shape = node.meta.get("kind"), tuple(node.meta.get("shape") or ())
        whole = np.full(shape[1:2] or (1,), math.inf)
        rules: dict[str, Callable[[fx.Node], np.ndarray]] = {
            "norm": self._normalised,
            "conv": self._convolved,
            "add": self._added,
            "cat": self._concatenated,
            "reshape": self._flattened,
            "item": self._of_several,
            "surgery": self._of_several,
        } | dict.fromkeys(_SAME, self._first)
        values = rules[kind](node) if kind in rules and node.all_input_nodes else whole
        return values if values.shape == whole.shape else whole

    def _first(self, node: fx.Node) -> np.ndarray:
        return self.of(node.all_input_nodes[0])

    def _normalised(self, node: fx.Node) -> np.ndarray:
        module, before = self._graph.modules.get(node.meta.get("module") or ""), self._first(node)
        weight = getattr(module, "weight", None)
        if not isinstance(module, nn.modules.batchnorm._BatchNorm) or weight is None or before.shape != weight.shape:
            return before
        return np.minimum(before, weight.detach().double().abs().cpu().numpy())

    def _of_several(self, node: fx.Node) -> np.ndarray:
        """One of several maps: of a norm of them all, or handed on."""
        source, position = (node.all_input_nodes[0], node.args[1]) if node.meta["kind"] == "item" else (node, 0)
        layer = self._graph.modules.get(source.meta.get("module") or "")
        if source.meta.get("kind") == "identity" and isinstance(position, int):
            return self.of(source.all_input_nodes[position])
        maps = layer.weight_maps() if isinstance(layer, SurgeryLayer) else None
        weight = getattr(layer, "weight", None)
        if maps is None or not maps.per_channel or weight is None or not isinstance(position, int):
            return np.array([math.inf])
        own = weight.detach().double().abs().cpu().split(maps.in_channels)[position].numpy()
        before = self.of(source.all_input_nodes[position])
        return np.minimum(before, own) if before.shape == own.shape else own

    def _convolved(self, node: fx.Node) -> np.ndarray:
        """A depth-wise convolution hands its channels on; another mixes them, and what it gives is new."""
        spec, before = conv_spec(self._graph, node), self._first(node)
        if spec.groups == spec.in_channels > 1 and len(before) == spec.in_channels:
            return before.repeat(spec.out_channels // spec.in_channels)
        return np.full(spec.out_channels, math.inf)

    def _added(self, node: fx.Node) -> np.ndarray:
        """Infinite where what is added are no maps of the same channels."""
        operands = [
            self.of(source) for source in node.all_input_nodes if source.meta.get("shape") == node.meta["shape"]
        ]
        if not operands or len(operands) < len(node.all_input_nodes):
            return np.array([math.inf])
        return np.max(operands, axis=0)

    def _concatenated(self, node: fx.Node) -> np.ndarray:
        return np.concatenate([self.of(source) for source in node.all_input_nodes])

    def _flattened(self, node: fx.Node) -> np.ndarray:
        before, shape = self._first(node), node.meta["shape"]
        times = shape[1] // len(before) if shape and len(shape) > 1 else 0
        return before.repeat(times) if times else before
