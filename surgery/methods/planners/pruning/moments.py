"""Mean and variance of every channel, from what BatchNorms know, without an image.

Behind a BatchNorm a channel is taken as Gaussian, of mean β and deviation γ. What operations do to that is followed
through the recorded graph: activations by integration, sums of streams as sums of independent values.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, fx, nn

from surgery.graph import ModelGraph
from surgery.graph.dataflow import followers, source
from surgery.graph.kinds import has_activation_module
from surgery.methods.planners.pruning.weights import effective_weight

_POINTS = np.linspace(-8, 8, 1601)
_WEIGHTS = np.exp(-(_POINTS**2) / 2) / np.exp(-(_POINTS**2) / 2).sum()


@dataclass(frozen=True)
class Moments:
    """Of the channels of one tensor.

    Attributes:
        mean, variance: (channels,) float64.
        exact: whether the scale is that of the tensor; behind a pooling or a gate it is known but for a factor.
    """

    mean: np.ndarray
    variance: np.ndarray
    exact: bool = True


class ChannelMoments:
    """Moments of every tensor of a recorded model that can be known.

    Args:
        graph: the model, recorded; channels may have been removed from the model since.
    """

    def __init__(self, graph: ModelGraph, model: nn.Module) -> None:
        self._graph = graph
        self._modules = dict(model.named_modules())
        self._moments: dict[fx.Node, Moments | None] = {}
        self._calls = {node.meta["module"]: node for node in graph if node.meta.get("module")}
        for node in graph:
            self._moments[node] = self._of(node)

    def inputs(self, layer: str) -> Moments | None:
        """Of what a layer reads; None where they are not known."""
        node = self._calls.get(layer)
        return None if node is None else self._moments[source(node)]

    def output_variance(self, layer: str) -> Tensor | None:
        """(out,) running variance of the BatchNorm behind a layer, or None."""
        norm = followers(self._graph, self._calls[layer]).norm
        module = None if norm is None else self._modules.get(norm.meta.get("module") or "")
        follows = norm is not None and norm.all_input_nodes[0] is self._calls[layer]
        if not follows or not isinstance(module, nn.modules.batchnorm._BatchNorm) or module.running_var is None:
            return None
        return module.running_var.detach().double().cpu()

    def _of(self, node: fx.Node) -> Moments | None:
        kind = node.meta.get("kind")
        read = [self._moments.get(parent) for parent in node.all_input_nodes]
        if kind == "norm":
            return self._behind_norm(node)
        if not read:
            return None
        rules: dict[str, Callable[[fx.Node, list[Moments | None]], Moments | None]] = {
            "act": lambda node, read: self._activated(node, read[0]),
            "add": _added,
            "cat": _concatenated,
            "mul": _gated,
            "reshape": _flattened,
            "conv": self._mixed,
            "linear": self._mixed,
        }
        if kind in rules:
            return rules[kind](node, read)
        first = read[0]
        if kind == "identity" and first is not None:
            return first
        return replace(first, exact=False) if kind in ("pool", "global_pool", "pad", "upsample") and first else None

    def _behind_norm(self, node: fx.Node) -> Moments | None:
        module = self._modules.get(node.meta.get("module") or "")
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            return None
        width = module.num_features
        scale, shift = (
            default if tensor is None else tensor.detach().double().cpu().numpy()
            for tensor, default in ((module.weight, np.ones(width)), (module.bias, np.zeros(width)))
        )
        moments = Moments(shift, scale**2)
        if has_activation_module(module):
            assert isinstance(module.act, nn.Module)
            return through(module.act, moments)
        return moments

    def _mixed(self, node: fx.Node, read: list[Moments | None]) -> Moments | None:
        """What a layer without a norm gives, as a sum of independent values; kernels see the same mean everywhere."""
        name, first = node.meta.get("module"), read[0]
        module = self._modules.get(name or "")
        if first is None or not isinstance(module, nn.Conv2d | nn.Linear):
            return None
        groups = module.groups if isinstance(module, nn.Conv2d) else 1
        weight = effective_weight(self._modules[""], str(name)).double().cpu()
        taps = weight.reshape(*weight.shape[:2], -1)
        mean, variance = (torch.from_numpy(values).reshape(groups, -1, 1) for values in (first.mean, first.variance))
        by_group = taps.unflatten(0, (groups, -1))
        mixed_mean = (by_group.sum(3) @ mean).flatten()
        if module.bias is not None:
            mixed_mean = mixed_mean + module.bias.detach().double().cpu()
        mixed = (by_group.square().sum(3) @ variance).flatten()
        return Moments(mixed_mean.numpy(), mixed.numpy(), exact=False)

    def _activated(self, node: fx.Node, moments: Moments | None) -> Moments | None:
        name = node.meta.get("module")
        if moments is None:
            return None
        if name:
            return through(self._modules[name], moments)
        if any(isinstance(arg, fx.Node) for arg in (*node.args[1:], *node.kwargs.values())):
            return None
        return through(lambda x: node.target(x, *node.args[1:], **node.kwargs), moments)  # type: ignore[operator]


def through(function: Callable[[Tensor], Tensor], moments: Moments) -> Moments:
    """Moments of f(X) for Gaussian X of given moments, by numerical integration."""
    points = moments.mean[None, :] + _POINTS[:, None] * np.sqrt(moments.variance)[None, :]
    with torch.no_grad():
        inputs = torch.from_numpy(points)
        module = next(function.parameters(), None) if isinstance(function, nn.Module) else None
        values = function(inputs if module is None else inputs.to(module)).double().cpu().numpy()
    mean = _WEIGHTS @ values
    return Moments(mean, _WEIGHTS @ (values - mean) ** 2, moments.exact)


def _added(node: fx.Node, read: list[Moments | None]) -> Moments | None:
    operands = [moments for moments in read if moments is not None]
    if len(operands) != len(read) or len({len(moments.mean) for moments in operands}) != 1:
        return None
    exact = all(moments.exact for moments in operands)
    sign = -1 if "sub" in getattr(node.target, "__name__", "") else 1
    mean = operands[0].mean + sign * sum(moments.mean for moments in operands[1:])
    return Moments(mean, np.sum([moments.variance for moments in operands], axis=0), exact)


def _concatenated(node: fx.Node, read: list[Moments | None]) -> Moments | None:
    parts = node.args[0] if node.args else None
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    operands = [moments for moments in read if moments is not None]
    rank = len(node.meta.get("shape") or ())
    if not isinstance(parts, list | tuple) or len(parts) != len(operands) or dim not in (1, 1 - rank):
        return None
    mean, variance = (np.concatenate([getattr(m, name) for m in operands]) for name in ("mean", "variance"))
    return Moments(mean, variance, all(moments.exact for moments in operands))


def _gated(node: fx.Node, read: list[Moments | None]) -> Moments | None:
    """A gate multiplies each channel of each image by a number that is not known."""
    whole = [
        moments
        for moments, operand in zip(read, node.all_input_nodes, strict=True)
        if operand.meta["shape"] == node.meta["shape"]
    ]
    first = whole[0] if len(whole) == 1 else None
    return None if first is None else replace(first, exact=False)


def _flattened(node: fx.Node, read: list[Moments | None]) -> Moments | None:
    shape, before = node.meta["shape"], node.all_input_nodes[0].meta["shape"]
    first = read[0]
    if first is None or len(shape) != 2 or len(before) < 2 or shape[1] % before[1]:
        return None
    repeats = shape[1] // before[1]
    return Moments(first.mean.repeat(repeats), first.variance.repeat(repeats), first.exact)
