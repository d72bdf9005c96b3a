"""Which convolutions narrow a map for spatial convolutions that read it, and where the stem ends."""

from torch import fx, nn

from surgery.graph.dataflow import THROUGH, Followers, conv_spec, followers, is_pooled, source, spatial_size
from surgery.graph.recorder import ModelGraph


def is_pointwise_conv(graph: ModelGraph, node: fx.Node) -> bool:
    """Whether a node is a 1×1 convolution of a map."""
    return node.meta.get("kind") == "conv" and conv_spec(graph, node).pointwise and spatial_size(source(node)) > 1


def reaches_spatial_conv(graph: ModelGraph, node: fx.Node) -> bool:
    """Whether a node is a spatial convolution, or a split or slice whose parts (or their sums) lead to one.

    A transposed convolution is spatial where its kernel is larger than one pixel.
    """
    kind = node.meta.get("kind")
    if kind == "conv_transpose":
        return _transposed_kernel(graph, node) != (1, 1) and spatial_size(source(node)) > 1
    if kind == "conv":
        spec = conv_spec(graph, node)
        return not spec.pointwise and not is_pooled(source(node))
    if kind in ("split", *THROUGH):
        return any(reaches_spatial_conv(graph, user) or _sum_reaches(graph, user) for user in node.users)
    return False


def is_squeeze(graph: ModelGraph, after: Followers) -> bool:
    """Whether only convolutions read it, at least one of them a spatial one (SqueezeNet has a 1×1 beside the 3×3)."""
    spatial = [reaches_spatial_conv(graph, reader) for reader in after.consumers]
    pairs = zip(after.consumers, spatial, strict=True)
    return any(spatial) and all(is_spatial or is_pointwise_conv(graph, reader) for reader, is_spatial in pairs)


def _transposed_kernel(graph: ModelGraph, node: fx.Node) -> tuple[int, ...]:
    module = graph.modules.get(node.meta.get("module") or "")
    if isinstance(module, nn.ConvTranspose2d):
        return tuple(module.kernel_size)
    weight = node.kwargs.get("weight", node.args[1] if len(node.args) > 1 else None)
    return tuple(weight.meta["shape"][2:]) if isinstance(weight, fx.Node) else (1, 1)


def _sum_reaches(graph: ModelGraph, node: fx.Node) -> bool:
    return node.meta.get("kind") == "add" and any(reaches_spatial_conv(graph, user) for user in node.users)


def stem(graph: ModelGraph) -> set[fx.Node]:
    """Nodes on the single path from the input to the first fork or the first head; none where there is neither.

    The first head is a 1×1 convolution that narrows and that a spatial convolution reads: a network that has one there
    is built of such blocks, with or without shortcuts.
    """
    nodes: set[fx.Node] = set()
    node = next(iter(graph.graph.nodes))
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.op == "output":
            return set()
        if _is_narrowing_head(graph, node):
            return nodes
        nodes.add(node)
    return nodes


def _is_narrowing_head(graph: ModelGraph, node: fx.Node) -> bool:
    if not is_pointwise_conv(graph, node):
        return False
    spec = conv_spec(graph, node)
    return 1 < spec.out_channels < spec.in_channels and is_squeeze(graph, followers(graph, node))
