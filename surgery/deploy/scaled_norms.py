"""Norms behind methods' layers that are convolutions between several maps, folded into them."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from surgery.core.norm_folding import norm_folded
from surgery.core.surgery_layer import SurgeryLayer
from surgery.graph import ModelGraph


@dataclass(frozen=True)
class ScaledPair:
    """Names of such a convolution, and of the norm of all of its maps, or of those of each."""

    conv: str
    norms: tuple[str, ...]


def scaled_pairs(graph: ModelGraph) -> list[ScaledPair]:
    """Convolutions between maps of which norms alone read what they give; all run once in a forward."""
    pairs = []
    for node in graph:
        conv = node.meta.get("module")
        layer = graph.modules.get(conv or "")
        if conv is None or not isinstance(layer, SurgeryLayer) or layer.output_rows() is None or _hooked(layer):
            continue
        maps = [node] if isinstance(node.meta["shapes"], tuple) else list(node.users)
        readers = [list(item.users) for item in maps]
        if not graph.called_once(conv) or any(len(users) != 1 for users in readers):
            continue
        norms = list(dict.fromkeys(users[0] for users in readers))
        if all(_folds(graph, norm) for norm in norms) and _fit(layer, norms, graph):
            pairs.append(ScaledPair(conv, tuple(norm.meta["module"] for norm in norms)))
    return pairs


def _folds(graph: ModelGraph, node: fx.Node) -> bool:
    name = node.meta.get("module")
    norm = graph.modules.get(name or "")
    if name is None or norm is None or _hooked(norm) or not graph.called_once(name):
        return False
    own = isinstance(norm, SurgeryLayer) and norm.without_norm() is not None
    return own or (type(norm) is nn.BatchNorm2d and norm.running_mean is not None)


def _fit(layer: SurgeryLayer, norms: list[fx.Node], graph: ModelGraph) -> bool:
    """Whether there is a factor for every row."""
    rows = [len(cast(Tensor, graph.modules[norm.meta["module"]].running_mean)) for norm in norms]
    expected = list(layer.output_rows() or ())
    return rows in (expected, [sum(expected)])


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def fold_scaled(model: nn.Module, pair: ScaledPair) -> None:
    """Fold the norms of a pair, in place; what they do besides stays."""
    conv: Any = model.get_submodule(pair.conv)
    norms = [model.get_submodule(name) for name in pair.norms]
    rows = [len(cast(Tensor, norm.running_mean)) for norm in norms]
    biases = [None] * len(rows) if conv.bias is None else conv.bias.split(rows)
    folded = [norm_folded(*part) for part in zip(conv.weight.split(rows), biases, norms, strict=True)]
    conv.weight, conv.bias = (nn.Parameter(torch.cat([pieces[i].detach() for pieces in folded])) for i in (0, 1))
    for name, norm in zip(pair.norms, norms, strict=True):
        rest = norm.without_norm() if isinstance(norm, SurgeryLayer) else nn.Identity()
        model.set_submodule(name, cast(nn.Module, rest))
