"""Dynamic weight decay: norms' scales decay the more, the more their channels say.

Gao et al., Highly Efficient Salient Object Detection with 100K Parameters (ECCV 2020), section 3.3: the loss grows by
λ · Σ ½ |GAP(y)| γ², with the mean over the batch of what global average pooling gives of a norm's output behind its
activation, and no gradient through it. So channels come to like sizes, or to nothing, and ``gamma`` removes the latter.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from surgery.core.batch_norms import batch_norms_of, is_batch_norm
from surgery.core.errors import TraceError
from surgery.graph import ModelGraph, record
from surgery.graph.dataflow import sole_user
from surgery.training.recipe import RecipeError

Activation = Callable[[Tensor], Tensor]
Output = Tensor | Sequence[Tensor]


class DynamicWeightDecay:
    """Watches every BatchNorm with scales of a network in training mode, until :meth:`close`.

    Args:
        strength: λ; 3 in the paper.

    Raises:
        RecipeError: the network has none.
    """

    def __init__(self, network: nn.Module, strength: float) -> None:
        self.strength = strength
        self.norms = scaling_norms(network)
        if not self.norms:
            raise RecipeError(
                f"dynamic_weight_decay={strength:g}: {type(network).__name__} has no BatchNorm with scales, which it "
                "acts on; 0 is needed"
            )
        self._means: dict[str, list[Tensor]] = {}
        behind = _watched(network)
        self._handles = [
            module.register_forward_hook(self._watch(name, activation))
            for name, norm in self.norms.items()
            for module, activation in [behind.get(name, (norm, None))]
        ]
        self._handles.append(network.register_forward_pre_hook(self._begin))

    def _begin(self, network: nn.Module, inputs: object) -> None:
        """Forget what activation checkpointing computed again in the backward before."""
        self._means = {}

    def _watch(self, name: str, activation: Activation | None) -> Callable[[nn.Module, object, Output], None]:
        norm = self.norms[name]

        def hook(module: nn.Module, inputs: object, output: Output) -> None:
            if not norm.training or not norm.weight.requires_grad:
                return
            with torch.no_grad():
                maps = [output.detach()] if isinstance(output, Tensor) else [y.detach() for y in output]
                means = [_mean(y if activation is None else activation(y.clone())) for y in maps]
                self._means.setdefault(name, []).append(torch.cat(means, 1).abs().mean(0))

        return hook

    def loss(self) -> Tensor:
        """λ · Σ ½ · mean over images of |GAP(y)| · γ² of the forward just made; a scalar, float32.

        Of a norm that ran several times the mean over its calls; norms in eval mode, and frozen ones, count nothing.
        """
        terms = [
            0.5 * (torch.stack(means).mean(0) * self.norms[name].weight.float().square()).sum()
            for name, means in self._means.items()
        ]
        self._means = {}
        return self.strength * torch.stack(terms).sum() if terms else torch.zeros(())

    def close(self) -> None:
        """Watch no longer."""
        for handle in self._handles:
            handle.remove()


def _mean(y: Tensor) -> Tensor:
    """Of each channel of each image: (N, C)."""
    return y.float().flatten(2).mean(2) if y.ndim > 2 else y.float()


def scaling_norms(network: nn.Module) -> dict[str, Any]:
    """The BatchNorms with scales, by name."""
    return {name: norm for name, norm in batch_norms_of(network).items() if norm.weight is not None}


def _watched(network: nn.Module) -> dict[str, tuple[nn.Module, Activation | None]]:
    """For norms with an activation behind: the module whose output is watched, and what is still to be applied to it.

    A network that cannot be followed is watched at its norms.
    """
    try:
        graph = record(network)
    except TraceError:
        return {}
    modules = dict(network.named_modules())
    watched = {}
    for node in graph:
        name = node.meta.get("module")
        norm = modules.get(name or "")
        if name is None or norm is None or not is_batch_norm(norm):
            continue
        several = not isinstance(node.meta["shapes"], tuple)
        act = _activation_behind(next(iter(node.users), node) if several else node)
        if act is not None:
            watched[str(name)] = _behind(graph, modules, norm, act, several)
    return watched


def _activation_behind(node: fx.Node) -> fx.Node | None:
    """The activation that alone reads a map, past what does nothing."""
    after = sole_user(node)
    while after is not None and after.meta.get("kind") == "identity":
        several = after.meta["shape"] is None
        after = sole_user(next(iter(after.users), after)) if several else sole_user(after)
    return after if after is not None and after.meta.get("kind") == "act" else None


def _behind(
    graph: ModelGraph, modules: dict[str, nn.Module], norm: nn.Module, node: fx.Node, several: bool
) -> tuple[nn.Module, Activation | None]:
    """An activation that is a module of its own is watched itself; one that others use too is applied once more."""
    name = node.meta.get("module")
    if name is None:
        if any(isinstance(argument, fx.Node) for argument in (*node.args[1:], *node.kwargs.values())):
            return norm, None  # what it takes besides is not at hand
        return norm, lambda y: node.target(y, *node.args[1:], **node.kwargs)  # type: ignore[operator]
    act = modules[name]
    return (act, None) if graph.called_once(name) and not several else (norm, act.forward)
