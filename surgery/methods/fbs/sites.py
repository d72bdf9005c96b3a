"""Convolutions that can leave channels out, with the norm and the activation that go into the layer."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from timm.layers import BatchNormAct2d
from torch import fx, nn

from surgery.graph import ModelGraph
from surgery.graph.dataflow import back_to, conv_spec, convs, is_pooled, non_negative, sole_user, source, spatial_size
from surgery.planning.sites import COMPUTED, Skipped

_ZERO_STAYS_ZERO = {
    *("relu", "relu_", "relu6", "leaky_relu", "silu", "gelu", "elu", "selu", "celu", "tanh", "mish", "hardswish"),
}
_EACH_CHANNEL_ALONE = (nn.MaxPool2d, nn.AvgPool2d, nn.Identity, nn.Dropout, nn.Dropout2d)
_EACH_CHANNEL_ALONE_FUNCTIONS = {"max_pool2d", "avg_pool2d", "dropout", "dropout2d", *_ZERO_STAYS_ZERO}
_BETWEEN = frozenset({"norm", "act", "identity"})
BATCH_NORMS = (nn.BatchNorm2d, BatchNormAct2d)


@dataclass(frozen=True)
class GatedSite:
    """A convolution with what goes into its layer.

    Attributes:
        name, channels: of the convolution.
        norm, act: names of the modules that go into the layer, or "".
        last: the node whose result the layer will give.
        non_negative: what it reads is never negative.
    """

    name: str
    channels: tuple[int, int]
    norm: str
    act: str
    node: fx.Node
    last: fx.Node
    non_negative: bool


def gated_sites(graph: ModelGraph, changes_filters: bool = False) -> tuple[list[GatedSite], list[Skipped]]:
    """All convolutions that can leave channels out, in order, and the others with the reason.

    Args:
        changes_filters: filters may change their sign, which no other module that holds them must see.
    """
    sites: list[GatedSite] = []
    skipped: dict[str, str] = {}
    classifiers, tied = _classifiers(graph), _tied(graph) if changes_filters else set()
    for node in convs(graph):
        name = node.meta.get("module")
        reason = "a bare F.conv2d call, not a module that can be replaced" if name is None else _refused(graph, node)
        if name in tied:
            reason = reason or "another module holds its weight too, whose filters must not change their sign"
        if node in classifiers:
            reason = "a classifier written as a convolution: it uses each weight once"
        if reason:
            skipped.setdefault(name or f"{node.meta['owner']} (F.conv2d)", reason)
        else:
            sites.append(_site(graph, node))
    return sites, [Skipped(name, reason) for name, reason in skipped.items()]


def producers(graph: ModelGraph, sites: list[GatedSite]) -> Mapping[str, str]:
    """Of each site that alone reads another one's result, channel by channel, that other's name."""
    giving = {site.last: site.name for site in sites}
    result = {}
    for site in sites:
        node = source(site.node)
        while node not in giving and _keeps_channels_apart(graph, node) and len(node.users) == 1:
            node = source(node)
        if node in giving and len(node.users) == 1:
            result[site.name] = giving[node]
    return result


def _tied(graph: ModelGraph) -> set[str]:
    """Names of the modules with a parameter that another module holds too."""
    holders = Counter(id(tensor) for module in graph.modules.values() for tensor in module._parameters.values())
    return {
        name
        for name, module in graph.modules.items()
        if any(tensor is not None and holders[id(tensor)] > 1 for tensor in module._parameters.values())
    }


def _classifiers(graph: ModelGraph) -> set[fx.Node]:
    """Convolutions that make one value of a whole map, as VGG's in timm, and those of what these give."""
    classifiers: set[fx.Node] = set()
    for node in convs(graph):
        kernel, sides = conv_spec(graph, node).kernel, source(node).meta["shape"][2:]
        covers = spatial_size(node) == 1 and tuple(sides) == kernel and kernel != (1, 1)
        after = back_to(source(node), lambda n: n in classifiers, _BETWEEN) if spatial_size(node) == 1 else None
        if covers or after is not None:
            classifiers.add(node)
    return classifiers


def _refused(graph: ModelGraph, node: fx.Node) -> str:
    """Why a convolution cannot be one, or ""."""
    name, spec = node.meta["module"], conv_spec(graph, node)
    conv = graph.modules[name]
    if spec.groups != 1:
        return "depth-wise" if spec.depthwise else f"grouped ({spec.groups} groups)"
    if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros":
        return f"{type(conv).__name__}, padding_mode {conv.padding_mode!r}: a plain Conv2d padded with zeros is needed"
    if not graph.called_once(name):
        return "shared: called more than once in a forward, or registered under several names"
    if "weight" not in conv._parameters:
        return COMPUTED
    if _hooked(conv):
        return "it carries hooks, which a replacement would lose"
    if spec.out_channels == 1:
        return "gives a single channel"
    if spatial_size(source(node)) == 1 and is_pooled(source(node)):
        return "works on a pooled descriptor (attention gate or classifier)"
    return _refused_by_reader(graph, node)


def _refused_by_reader(graph: ModelGraph, node: fx.Node) -> str:
    if any(user.op == "output" for user in node.users):
        return "its output is the model's"
    reader, between = _behind(graph, node)
    if reader is None or reader.meta.get("kind") != "norm":
        return ""
    name = reader.meta.get("module")
    module = graph.modules.get(name or "")
    if type(module) not in BATCH_NORMS:
        return f"{type(module).__name__ if module else 'a norm'} reads it: only a BatchNorm2d keeps zero channels apart"
    if between:
        return f"{between} stands between it and its norm"
    if not graph.called_once(cast(str, name)) or not cast(nn.BatchNorm2d, module).track_running_stats:
        return "its norm is shared, or has no running statistics"
    if _hooked(cast(nn.Module, module)):
        return "its norm carries hooks, which see no channels that are left out"
    if isinstance(module, BatchNormAct2d) and not _zero_stays_zero(module.act):
        return f"its norm's activation {type(module.act).__name__} makes something of zero"
    return ""


def _site(graph: ModelGraph, node: fx.Node) -> GatedSite:
    spec, last, norm, act = conv_spec(graph, node), node, "", ""
    behind, between = _behind(graph, node)
    if behind is not None and behind.meta.get("kind") == "norm":
        norm, last = behind.meta["module"], behind
        behind, between = _behind(graph, behind)
    is_act = behind is not None and not between and behind.meta.get("kind") == "act"
    if behind is not None and is_act and _taken_in(graph, behind.meta.get("module")):
        act, last = behind.meta["module"], behind
    reads = non_negative(graph, source(node))
    return GatedSite(node.meta["module"], (spec.in_channels, spec.out_channels), norm, act, node, last, reads)


def _behind(graph: ModelGraph, node: fx.Node) -> tuple[fx.Node | None, str]:
    """The only reader, past what eval mode does not notice; and what of that does something in training, or ""."""
    reader, between = sole_user(node), ""
    while reader is not None and reader.meta.get("kind") == "identity":
        between = between or _what_it_does(graph, reader)
        reader = sole_user(reader)
    return reader, between


def _what_it_does(graph: ModelGraph, node: fx.Node) -> str:
    """The name of an operation; "" for a module that does nothing in any mode."""
    module = graph.modules.get(node.meta.get("module") or "")
    if module is None:
        return str(getattr(node.target, "__name__", node.target))
    nothing = type(module) is nn.Identity or (type(module) is nn.Sequential and not len(module))
    return "" if nothing and not _hooked(module) else type(module).__name__


def _hooked(module: nn.Module) -> bool:
    """Whether a module, or one inside, carries hooks of its forward or backward."""
    stores = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(inner, store) for inner in module.modules() for store in stores)


def _taken_in(graph: ModelGraph, name: str | None) -> bool:
    """Whether an activation can go into a layer: a module that is called once, without parameters, with f(0) = 0."""
    if name is None or not graph.called_once(name) or _hooked(graph.modules[name]):
        return False
    return _zero_stays_zero(graph.modules[name])


def _zero_stays_zero(act: nn.Module) -> bool:
    if any(True for _ in (*act.parameters(), *act.buffers())):
        return False
    try:
        with torch.no_grad():
            return not act(torch.zeros(1, 2, 2, 2, device="cpu")).any()
    except Exception:  # a user's module may raise anything on a map that it was not made for
        return False


def _keeps_channels_apart(graph: ModelGraph, node: fx.Node) -> bool:
    """Whether an operation can take some channels alone, and makes zero of zero."""
    name = node.meta.get("module")
    if name is None:
        return node.op == "call_function" and getattr(node.target, "__name__", "") in _EACH_CHANNEL_ALONE_FUNCTIONS
    module = graph.modules[name]
    if node.meta.get("kind") == "act":
        return _zero_stays_zero(module)
    return type(module) in _EACH_CHANNEL_ALONE


__all__ = ["BATCH_NORMS", "GatedSite", "gated_sites", "producers"]
