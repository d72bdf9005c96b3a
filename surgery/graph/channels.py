"""Which layers share a channel dimension: the dependency groups that a narrowing must change together.

Every tensor of the recorded graph has a list of segments (one, but for concatenations); a segment belongs to a
:class:`Group`, and additions, gates, norms and depth-wise convolutions tie groups together. What this analysis does
not understand freezes the groups that it touches, with the reason.
"""

import math
from dataclasses import dataclass, field

from torch import fx, nn

from surgery.graph.dataflow import conv_spec
from surgery.graph.recorder import ModelGraph

_TIED = frozenset({"act", "identity", "pool", "global_pool", "pad", "upsample", "norm"})


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
        kind, shape = node.meta.get("kind"), node.meta.get("shape")
        inputs = [source for source in node.all_input_nodes if source in self.of]
        if shape is None or len(shape) < 2:
            return self._unknown(node, inputs)
        if kind in ("conv", "linear") and node.meta.get("module"):
            return self._layer(node, inputs[0])
        if kind in _TIED or kind == "reshape":
            return self._tied(node, inputs)
        if kind in ("add", "mul"):
            return self._joined(node, inputs)
        if kind == "cat":
            segments = [group for source in inputs for group in self.of[source]]
            if sum(group.width for group in segments) == shape[1]:
                return segments
        return self._unknown(node, inputs)

    def freeze(self, segments: list[Group], reason: str) -> None:
        for group in segments:
            group.root().frozen = group.root().frozen or reason

    def _unknown(self, node: fx.Node, inputs: list[fx.Node]) -> list[Group]:
        name = node.meta.get("module") or getattr(node.target, "__name__", str(node.target)).strip("_")
        for source in inputs:
            self.freeze(self.of[source], f"{name} reads its channels in a way that is not followed")
        shape = node.meta.get("shape")
        return [Group(shape[1], frozen=f"written by {name}")] if shape and len(shape) > 1 else []

    def _layer(self, node: fx.Node, source: fx.Node) -> list[Group]:
        name = node.meta["module"]
        segments = self.of[source]
        if node.meta["kind"] == "linear":
            if len(node.meta["shape"]) != 2 or sum(g.width for g in segments) != source.meta["shape"][1]:
                return self._unknown(node, [source])
            groups = 1
        else:
            spec = conv_spec(self.graph, node)
            groups = spec.groups
            if groups == spec.in_channels == spec.out_channels:
                self.channels.reads[name] = self.channels.writes[name] = segments
                return segments
        output = Group(node.meta["shape"][1], [name], groups)
        if "weight" not in self.graph.modules[name]._parameters:
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
        if source is None or node.meta["shape"][1] != source.meta["shape"][1]:
            return self._unknown(node, inputs)
        name = node.meta.get("module")
        module = self.graph.modules[name] if name else None
        if node.meta["kind"] == "norm":
            if not isinstance(module, nn.modules.batchnorm._BatchNorm):
                return self._unknown(node, inputs)
            assert name is not None
            self.channels.reads[name] = self.of[source]
        elif (module is not None and any(t.numel() > 1 for t in (*module.parameters(), *module.buffers()))) or (
            node.meta["kind"] == "reshape" and len(node.meta["shape"]) > 2 < len(source.meta["shape"])
        ):
            return self._unknown(node, inputs)
        return self.of[source]

    def _joined(self, node: fx.Node, inputs: list[fx.Node]) -> list[Group]:
        width = node.meta["shape"][1]
        full = [
            s
            for s in inputs
            if s.meta["shape"] is not None and len(s.meta["shape"]) > 1 and s.meta["shape"][1] == width
        ]
        others = [s for s in inputs if s not in full and math.prod(s.meta["shape"] or (0,)) != 1]
        others = [s for s in others if len(s.meta["shape"] or ()) != 4 or s.meta["shape"][1] != 1]
        if others or not full or any(s.meta["kind"] == "attribute" for s in full):
            return self._unknown(node, inputs)
        first = self.of[full[0]]
        for source in full[1:]:
            segments = self.of[source]
            if [g.width for g in segments] != [g.width for g in first]:
                return self._unknown(node, inputs)
            for one, two in zip(first, segments, strict=True):
                _union(one.root(), two.root())
        return first


def _union(one: Group, two: Group) -> None:
    if one is two:
        return
    two.parent = one
    one.producers += two.producers
    one.multiple = math.lcm(one.multiple, two.multiple)
    one.frozen = one.frozen or two.frozen
