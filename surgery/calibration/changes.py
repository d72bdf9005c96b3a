"""Where a network differs from the one that it was made from: there calibration begins."""

from collections.abc import Collection, Iterator

from torch import fx, nn

from surgery.calibration.kept_channels import KeptChannels
from surgery.graph import ModelGraph

_PER_CHANNEL = frozenset({"act", "add", "mul", "cat", "split", "item", "pool", "global_pool"}) | {
    *("pad", "upsample", "identity", "reshape", "scale"),
}


def behind_changes(
    converted: ModelGraph, original: ModelGraph, touched: Collection[str], channels: KeptChannels
) -> Iterator[fx.Node]:
    """Nodes whose tensors are not those of the original, nor a part of their channels, in order.

    A layer that only lost outputs, and whatever treats each channel for itself behind it, still gives what it gave; the
    first layer that mixes those channels does not.
    """
    changed: set[fx.Node] = set()
    fewer: set[fx.Node] = set()
    for node in converted:
        sources = node.all_input_nodes
        own_change = _own_change(converted, original, node, touched, channels)
        reads_fewer = any(source in fewer for source in sources)
        if own_change == "other" or any(s in changed for s in sources) or (reads_fewer and _mixes(converted, node)):
            changed.add(node)
            if node.op != "output":
                yield node
        elif own_change == "narrowed" or reads_fewer:
            fewer.add(node)


def _own_change(
    converted: ModelGraph, original: ModelGraph, node: fx.Node, touched: Collection[str], channels: KeptChannels
) -> str:
    """What was done to the module that a node calls: "", "narrowed" (nothing but channels gone) or "other"."""
    if node.meta.get("kind") == "surgery":
        return "other"
    name = node.meta.get("module") or node.meta.get("owner") or ""
    if not _below(name, touched):
        return ""
    layer, own = converted.modules.get(name), original.modules.get(name)
    if layer is None or own is None or type(layer) is not type(own):
        return "other"
    if not any(True for _ in layer.parameters(recurse=False)):
        return "" if node.meta.get("kind") != "norm" else "other"
    return "narrowed" if channels.is_slice(name, layer) else "other"


def _below(name: str, touched: Collection[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:count]) in touched for count in range(1, len(parts) + 1))


def _mixes(graph: ModelGraph, node: fx.Node) -> bool:
    """Whether an output of an operation depends on several channels."""
    kind, module = node.meta.get("kind"), graph.modules.get(node.meta.get("module") or "")
    if isinstance(module, nn.Conv2d):
        return module.groups != module.in_channels
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return False
    return kind not in _PER_CHANNEL
