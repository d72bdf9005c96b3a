"""Which layers share a channel dimension: the dependency groups that a narrowing must change together.

Every tensor of the recorded graph has a list of segments (one, but for concatenations); a segment belongs to a
:class:`Group`, and additions, gates, norms and depth-wise convolutions tie groups together. What this analysis does
not understand freezes the groups that it touches, with the reason.
"""

import math
from dataclasses import dataclass, field

from torch import fx, nn

from surgery.graph.dataflow import conv_spec
from surgery.graph.recorder import UNSEEN, ModelGraph

_TIED = frozenset({"act", "identity", "pool", "global_pool", "pad", "upsample", "norm"})
_ONLY_FOR_DTYPE = ("to", "type_as")  # a second tensor gives no values
_BROADCASTS = ("expand", "expand_as")


@dataclass(eq=False)
class Group:
    """Channels that live and die together.

    Attributes:
        width: number of channels.
        producers: names of the convolutions and linears that write them.
        multiple: kept counts must be a multiple of this, as many from each block (grouped convolutions).
        frozen: why the width cannot change, or "".
    """

    width: int
    producers: list[str] = field(default_factory=list)
    multiple: int = 1
    frozen: str = ""
    parent: "Group | None" = None

    def root(self) -> "Group":
        return self if self.parent is None else self.parent.root()


@dataclass
class Channels:
    """Segments of each module's input (``reads``) and output (``writes``) channels, by module name.

    ``returned`` are the segments of what the forward returns.
    """

    reads: dict[str, list[Group]] = field(default_factory=dict)
    writes: dict[str, list[Group]] = field(default_factory=dict)
    returned: list[Group] = field(default_factory=list)


def channel_groups(graph: ModelGraph) -> Channels:
    """Follow channels through a recorded graph."""
    walker = _Walker(graph)
    for node in graph:
        if node.op == "output":
            for source in node.all_input_nodes:
                segments = walker.of.get(source, [])
                walker.channels.returned += segments
                walker.freeze(segments, "it is the model's output")
        else:
            walker.of[node] = walker.visit(node)
    return walker.channels


class _Walker:
    def __init__(self, graph: ModelGraph) -> None:
        self.graph = graph
        self.of: dict[fx.Node, list[Group]] = {}
        self.channels = Channels()

    def visit(self, node: fx.Node) -> list[Group]:
        kind = node.meta.get("kind")
        inputs = [source for source in node.all_input_nodes if source in self.of]
        if kind == UNSEEN:
            return self._unseen(node)
        if _width(node) is None:
            return self._unknown(node, inputs)
        if kind in ("conv", "linear") and node.meta.get("module"):
            return self._layer(node, inputs)
        if kind in _TIED or kind == "reshape":
            return self._tied(node, inputs)
        if kind in ("add", "mul"):
            return self._joined(node, inputs)
        if kind == "cat":
            return self._concatenated(node, inputs)
        return self._unknown(node, inputs)

    def freeze(self, segments: list[Group], reason: str) -> None:
        for group in segments:
            group.root().frozen = group.root().frozen or reason

    def _unseen(self, node: fx.Node) -> list[Group]:
        """A tensor whose making was not recorded may depend on anything that was made before it."""
        for segments in self.of.values():
            self.freeze(segments, "a tensor comes after it of which is not known how it was computed")
        width = _width(node)
        return [] if width is None else [Group(width, frozen="computed in a way that is not followed")]

    def _unknown(self, node: fx.Node, inputs: list[fx.Node]) -> list[Group]:
        name = node.meta.get("module") or getattr(node.target, "__name__", str(node.target)).strip("_")
        for source in inputs:
            self.freeze(self.of[source], f"{name} reads its channels in a way that is not followed")
        width = _width(node)
        output = [] if width is None else [Group(width, frozen=f"written by {name}")]
        if output and node.meta.get("kind") in ("conv", "linear") and node.meta.get("module"):
            self.channels.writes[name] = output
        return output

    def _layer(self, node: fx.Node, inputs: list[fx.Node]) -> list[Group]:
        name = node.meta["module"]
        module = self.graph.modules[name]
        source = inputs[0] if len(inputs) == 1 else None
        if source is None or not isinstance(module, nn.Conv2d | nn.Linear):
            return self._unknown(node, inputs)
        segments, groups = self.of[source], 1
        width = module.in_features if isinstance(module, nn.Linear) else module.in_channels
        rank = 2 if isinstance(module, nn.Linear) else 4
        if len(node.meta["shape"]) != rank or _width(source) != width or sum(g.width for g in segments) != width:
            return self._unknown(node, inputs)
        if isinstance(module, nn.Conv2d):
            spec = conv_spec(self.graph, node)
            groups = spec.groups
            if groups == spec.in_channels == spec.out_channels:
                self.channels.reads[name] = self.channels.writes[name] = segments
                return segments
        output = Group(node.meta["shape"][1], [name], groups)
        if "weight" not in module._parameters:
            self.freeze([*segments, output], f"the weight of {name} is computed at call time")
        if not self.graph.called_once(name):
            self.freeze([*segments, output], f"{name} is shared")
        if groups > 1:
            if len(segments) > 1:
                self.freeze(segments, f"{name} is grouped and reads a concatenation")
            segments[0].root().multiple = math.lcm(segments[0].root().multiple, groups)
        self.channels.reads[name], self.channels.writes[name] = segments, [output]
        return [output]

    def _tied(self, node: fx.Node, inputs: list[fx.Node]) -> list[Group]:
        source = next((s for s in inputs if s.meta["kind"] != "attribute"), None)
        if source is None or _width(source) != _width(node) or _moves_channels(node, source):
            return self._unknown(node, inputs)
        others = [s for s in inputs if s is not source and _numel(s) != 1]
        if others and _function(node) not in _ONLY_FOR_DTYPE:
            return self._joined(node, inputs) if _function(node) == "expand_as" else self._unknown(node, inputs)
        name = node.meta.get("module")
        module = self.graph.modules[name] if name else None
        if node.meta["kind"] == "norm":
            if not isinstance(module, nn.modules.batchnorm._BatchNorm):
                return self._unknown(node, inputs)
            assert name is not None
            self.channels.reads[name] = self.of[source]
        elif module is not None and any(t.numel() > 1 for t in (*module.parameters(), *module.buffers())):
            return self._unknown(node, inputs)
        return self.of[source]

    def _joined(self, node: fx.Node, inputs: list[fx.Node]) -> list[Group]:
        """A sum or product: operands with all channels are tied, those that broadcast over the channels are free."""
        shape = node.meta["shape"]
        full: list[fx.Node] = []
        for source in inputs:
            own = source.meta["shape"]
            # shapes are aligned at their ends: with two dimensions less, an operand has none for the channels
            channels = own[1 - len(shape)] if own is not None and len(own) >= len(shape) - 1 else 1
            if own is None or (channels != 1 and (len(own) != len(shape) or channels != shape[1])):
                return self._unknown(node, inputs)
            if channels != 1 or shape[1] == 1:
                full.append(source)
            elif _numel(source) != 1 and len(own) != len(shape):
                self.freeze(self.of[source], "its channels are broadcast along another dimension")
        if not full or any(len(s.meta["shape"]) != len(shape) or s.meta["kind"] == "attribute" for s in full):
            return self._unknown(node, inputs)
        first = self.of[full[0]]
        for source in full[1:]:
            segments = self.of[source]
            if [g.width for g in segments] != [g.width for g in first]:
                return self._unknown(node, inputs)
            for one, two in zip(first, segments, strict=True):
                _union(one.root(), two.root())
        return first

    def _concatenated(self, node: fx.Node, inputs: list[fx.Node]) -> list[Group]:
        parts = node.args[0] if node.args else node.kwargs.get("tensors")
        if not isinstance(parts, tuple | list) or not all(isinstance(p, fx.Node) and p in self.of for p in parts):
            return self._unknown(node, inputs)
        shape, along = node.meta["shape"], node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        segments = [group for part in parts for group in self.of[part]]
        same_rank = all(len(part.meta["shape"] or ()) == len(shape) for part in parts)
        if _function(node) == "stack" or along not in (1, 1 - len(shape)) or not same_rank:
            return self._unknown(node, inputs)
        if any(part.meta["kind"] == "attribute" for part in parts) or sum(g.width for g in segments) != shape[1]:
            return self._unknown(node, inputs)
        return segments


def _width(node: fx.Node) -> int | None:
    """Size of the channel dimension, None where a tensor has none (or the value is no tensor)."""
    shape = node.meta.get("shape")
    return shape[1] if shape is not None and len(shape) > 1 else None


def _numel(node: fx.Node) -> int:
    shape = node.meta.get("shape")
    return 0 if shape is None else math.prod(shape)


def _function(node: fx.Node) -> str:
    return getattr(node.target, "__name__", "").strip("_") if node.op == "call_function" else ""


def _moves_channels(node: fx.Node, source: fx.Node) -> bool:
    """Whether an operation that keeps the size of the second dimension may still put other things there."""
    kind, rank, before = node.meta["kind"], len(node.meta["shape"]), len(source.meta["shape"])
    if kind == "reshape":
        return rank > 2 and before > 2 and not (rank == before and _function(node) in _BROADCASTS)
    if kind == "pad" and node.op == "call_function":
        widths = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad")
        return not isinstance(widths, tuple | list) or any(n != 0 for n in widths[2 * (before - 2) :])
    if kind == "global_pool" and node.op == "call_function" and rank < before:
        along = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis"))
        dims = along if isinstance(along, tuple | list) else (along,)
        return not all(isinstance(dim, int) and dim % before > 1 for dim in dims)
    return rank != before


def _union(one: Group, two: Group) -> None:
    if one is two:
        return
    two.parent = one
    one.producers += two.producers
    one.multiple = math.lcm(one.multiple, two.multiple)
    one.frozen = one.frozen or two.frozen
