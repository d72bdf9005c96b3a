"""Dynamic weight decay: norms' scales decay the more, the more their channels say.

Gao et al., Highly Efficient Salient Object Detection with 100K Parameters (ECCV 2020), section 3.3: the loss grows by
λ · Σ ½ |GAP(y)| γ², with the mean over the batch of what global average pooling gives of a norm's output behind its
activation, and no gradient through it. So channels come to like sizes, or to nothing, and ``gamma`` removes the latter.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from surgery.core.errors import TraceError
from surgery.graph import ModelGraph, record
from surgery.graph.dataflow import sole_user
from surgery.training.recipe import RecipeError

Activation = Callable[[Tensor], Tensor]


class DynamicWeightDecay:
    """Watches every BatchNorm with scales of a network in training mode.

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
        self._means: dict[str, Tensor] = {}
        behind = _watched(network)
        for name, norm in self.norms.items():
            module, activation = behind.get(name, (norm, None))
            module.register_forward_hook(self._watch(name, activation))

    def _watch(self, name: str, activation: Activation | None) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, inputs: object, y: Tensor) -> None:
            if not module.training:
                return
            with torch.no_grad():
                seen = y.detach() if activation is None else activation(y.detach().clone())
                mean = seen.float().flatten(2).mean(2) if seen.ndim > 2 else seen.float()
                self._means[name] = mean.abs().mean(0)

        return hook

    def loss(self) -> Tensor:
        """λ · Σ ½ · mean over images of |GAP(y)| · γ² of the forward just made; a scalar, float32."""
        scales = {name: cast(Tensor, self.norms[name].weight).float() for name in self._means}
        terms = [0.5 * (mean * scales[name].square()).sum() for name, mean in self._means.items()]
        self._means = {}
        return self.strength * torch.stack(terms).sum()


def scaling_norms(network: nn.Module) -> dict[str, nn.Module]:
    """The BatchNorms with scales, by name."""
    norms = {name: m for name, m in network.named_modules() if isinstance(m, _BatchNorm)}
    return {name: norm for name, norm in norms.items() if norm.weight is not None}


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
        behind = sole_user(node) if node.meta.get("kind") == "norm" and name else None
        if behind is not None and behind.meta.get("kind") == "act":
            watched[str(name)] = _behind(graph, modules, modules[str(name)], behind)
    return watched


def _behind(
    graph: ModelGraph, modules: dict[str, nn.Module], norm: nn.Module, node: fx.Node
) -> tuple[nn.Module, Activation | None]:
    """An activation that is a module of its own is watched itself; one that others use too is applied once more."""
    name = node.meta.get("module")
    if name is None:
        return norm, lambda y: node.target(y, *node.args[1:], **node.kwargs)  # type: ignore[operator]
    act = modules[name]
    return (act, None) if graph.called_once(name) else (norm, act.forward)
