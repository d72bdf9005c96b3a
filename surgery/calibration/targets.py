"""Which layers behind a change are fitted again, and to what: read off the recorded graphs of both networks."""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from surgery.calibration.changes import behind_changes
from surgery.calibration.kept_channels import KeptChannels
from surgery.calibration.patches import FITTED, groups_of, outputs_of
from surgery.graph import ModelGraph
from surgery.graph.dataflow import sole_user
from surgery.graph.kinds import norm_has_activation
from surgery.graph.place import Place
from surgery.planning.sites import Skipped
from surgery.transforms.squeezed_conv import SqueezedConv2d

# So many unknowns are solved for in seconds, where a layer reads what a surgery gives even in minutes, with 0.8 GB; the
# heads of networks that label pixels have up to seven times more.
MOST_UNKNOWNS, MOST_BEHIND_SURGERY = 5_000, 10_000


@dataclass(frozen=True)
class Target:
    """A layer to fit; or, with ``aim`` None, a surgery layer that sets itself from what it reads, or a norm to measure.

    Attributes:
        layer: its name, in both networks.
        norm: the BatchNorm that alone reads it, or None.
        reads: where its input is, in the converted network.
        aim: where the original network holds what it is fitted to: the layer's own output, or, with ``addends``, the
            output of the last module before a sum.
        addends: the other operand of that sum, in the converted and in the original network: the sum is fitted, so
            that what earlier layers left undone is made up for.
        outputs: which of the original's outputs the layer still has; None for all.
        fixed: the layer is a norm, of which only the statistics are measured (why, in a few words).
        own_reads: where its input is in the original network, for a layer that reads fewer channels than it did: what
            those that are left can tell of the others is learnt there.
        elements: numbers that both networks hold for one image while they wait here.
        own_norm: the norm's name in the original network, where it has another there.
    """

    layer: str
    norm: str | None
    reads: Place
    aim: Place | None
    addends: tuple[Place, Place] | None = None
    outputs: tuple[int, ...] | None = None
    fixed: str = ""
    own_reads: Place | None = None
    elements: int = 0
    own_norm: str | None = None


def targets(
    converted: ModelGraph,
    original: ModelGraph,
    channels: KeptChannels | None = None,
    touched: Collection[str] = (),
) -> tuple[list[Target], list[Skipped]]:
    """Layers behind the first change, in the order in which they run, and those that cannot be fitted.

    Args:
        channels: of layers that were narrowed, what they still have.
        touched: names of the modules that were changed, besides the surgery layers.
    """
    finder = _Finder(converted, original, channels or KeptChannels(original, {}))
    for node in behind_changes(converted, original, touched, finder.channels):
        finder.visit(node)
    return finder.targets, finder.skipped


class _Finder:
    """Takes the nodes behind a surgery in order, and collects what is to be done there."""

    def __init__(self, converted: ModelGraph, original: ModelGraph, channels: KeptChannels) -> None:
        self.converted, self.original, self.channels = converted, original, channels
        self.targets: list[Target] = []
        self.skipped: list[Skipped] = []
        self.own = {name: node for node in original if (name := layer_of(original, node) or node.meta.get("module"))}
        self._unfitted: dict[fx.Node, str] = {}

    def visit(self, node: fx.Node) -> None:
        if node.meta["kind"] == "surgery":
            self._start(node)
        elif (name := layer_of(self.converted, node)) is not None:
            self._fit(node, name)
        elif node.meta["kind"] == "norm":
            self._measure(node)

    def _start(self, node: fx.Node) -> None:
        name = node.meta["module"]
        if self.converted.called_once(name):
            elements = live_elements(self.converted, node)
            self.targets.append(Target(name, None, Place(name, False), None, elements=elements))

    def _fit(self, node: fx.Node, name: str) -> None:
        target = None
        if not (reason := self._obstacle(node, name)):
            target = _target(self.converted, self.original, node, self.own[name], name)
            width, full = (outputs_of(graph.modules[name]) for graph in (self.converted, self.original))
            if width != full:
                kept = self.channels.outputs(name, width)
                target = replace(target, outputs=kept) if kept is not None else None
                reason = "narrowed: which outputs were kept is not known here"
        if target is None:
            self._unfitted[node] = reason
            self.skipped.append(Skipped(name, reason))
            return
        if self._reads_fewer(name):
            target = replace(target, own_reads=Place(name, False))
        aim = cast(Place, target.aim)
        behind = next((n for n in self.original if n.meta.get("module") == aim.module), self.own[name])
        elements = live_elements(self.converted, node) + live_elements(self.original, behind)
        self.targets.append(replace(target, elements=elements))

    def _reads_fewer(self, name: str) -> bool:
        """Whether a layer lost inputs, and it is known which."""
        layer, own = (graph.modules[name] for graph in (self.converted, self.original))
        if type(layer) is not type(own) or groups_of(layer) != groups_of(own) or isinstance(layer, _BatchNorm):
            return False
        shape, full = cast(torch.Tensor, layer.weight).shape, cast(torch.Tensor, own.weight).shape
        return shape[1:] != full[1:] and self.channels.slice_of(name, shape) is not None

    def _obstacle(self, node: fx.Node, name: str) -> str:
        """Why a layer cannot be fitted, or ""."""
        if reason := _cannot(self.converted, node, name):
            return reason
        if name not in self.own:
            return "the original network has no such layer"
        return _cannot(self.original, self.own[name], name) or _too_many(self.converted, node, name)

    def _measure(self, node: fx.Node) -> None:
        """A BatchNorm behind a layer that is not fitted learns what it reads now."""
        name, before = cast("str | None", node.meta.get("module")), node.all_input_nodes[0]
        reason = self._unfitted.get(before, "" if name in self.own else "the original network has no such norm")
        if not reason or name is None or not isinstance(self.converted.modules[name], nn.BatchNorm2d):
            return
        norm = cast(nn.BatchNorm2d, self.converted.modules[name])
        if norm.running_mean is None or not self.converted.called_once(name) or len(node.meta["shape"]) != 4:
            return
        point, elements = Place(name, False), live_elements(self.converted, node)
        self.targets.append(Target(name, name, point, None, fixed=reason, elements=elements))


def layer_of(graph: ModelGraph, node: fx.Node) -> str | None:
    """Name of what can be fitted where a node is its call: a convolution, a linear layer, a norm behind surgery."""
    kind, name = node.meta.get("kind"), cast("str | None", node.meta.get("module"))
    if kind == "norm":
        return name if _right_behind_surgery(graph, node) else None
    if kind not in ("conv", "linear"):
        return None
    if name is None and isinstance(graph.modules.get(node.meta["owner"]), SqueezedConv2d):
        return cast(str, node.meta["owner"])
    return name


def _right_behind_surgery(graph: ModelGraph, norm: fx.Node) -> bool:
    """Whether a BatchNorm is all that can be fitted of what a surgery layer gives."""
    module = graph.modules.get(norm.meta.get("module") or "")
    if not isinstance(module, _BatchNorm) or module.running_mean is None or not module.affine:
        return False
    if norm_has_activation(module):
        return False
    before = norm.all_input_nodes[0]
    return before.meta.get("kind") == "surgery" and sole_user(before) is norm and len(norm.meta["shape"]) == 4


def _cannot(graph: ModelGraph, node: fx.Node, name: str) -> str:
    layer = graph.modules[name]
    if type(layer) not in FITTED:
        return f"{type(layer).__name__}: its weight is not what it multiplies with"
    if not graph.called_once(name):
        return "shared: called more than once in a forward, or registered under several names"
    if "weight" not in layer._parameters:
        return "its weight is computed at call time"
    shape = node.all_input_nodes[0].meta["shape"]
    if shape is None or len(shape) not in ((2, 3, 4) if isinstance(layer, nn.Linear) else (4,)):
        return f"reads a tensor of shape {shape}"
    return ""


def _too_many(graph: ModelGraph, node: fx.Node, name: str) -> str:
    unknowns = math.prod(cast(torch.Tensor, graph.modules[name].weight).shape[1:])
    most = MOST_BEHIND_SURGERY if _reads_surgery(node) else MOST_UNKNOWNS
    return f"{unknowns} unknowns for each output; at most {most} are solved for here" if unknowns > most else ""


def _reads_surgery(node: fx.Node) -> bool:
    """Whether a layer reads a surgery's output, with nothing that has weights of its own but norms between."""
    while len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
        if node.meta.get("kind") in ("conv", "linear", "surgery"):
            return node.meta["kind"] == "surgery"
    return False


def _target(converted: ModelGraph, original: ModelGraph, node: fx.Node, own: fx.Node, name: str) -> Target:
    layer = converted.modules[name]
    reads = Place(f"{name}.squeeze", True) if isinstance(layer, SqueezedConv2d) else Place(name, False)
    norm, last, total = to_sum(converted, node)
    own_norm, own_last, own_total = to_sum(original, own)
    if total is not None and own_total is not None:
        other, own_other = addend_of(total, last), addend_of(own_total, own_last)
        places = place_of(converted, other), place_of(original, own_other), place_of(original, own_last)
        alike = _alike(other, last) and _alike(own_other, own_last)
        if all(places) and alike and _precedes(converted, other, node):
            addends = cast("tuple[Place, Place]", places[:2])
            return Target(name, norm, reads, cast(Place, places[2]), addends, own_norm=own_norm)
    return Target(name, norm, reads, Place(name, True), own_norm=own_norm)


def to_sum(graph: ModelGraph, node: fx.Node) -> tuple[str | None, fx.Node, fx.Node | None]:
    """The BatchNorm behind a layer, the last node before the sum of two that alone reads it, and that sum."""
    norm: str | None = node.meta["module"] if node.meta["kind"] == "norm" else None
    while (after := sole_user(node)) is not None:
        kind, name = after.meta.get("kind"), after.meta.get("module")
        module = graph.modules.get(name or "")
        if kind == "norm" and norm is None and isinstance(module, _BatchNorm):
            if module.running_mean is None or not graph.called_once(cast(str, name)):
                return None, node, None
            norm = name
            if norm_has_activation(module):
                return norm, after, None
        elif kind == "add" and after.op == "call_function" and len(after.all_input_nodes) == 2:
            return norm, node, after
        elif kind != "identity" or name is None:
            return norm, node, None
        node = after
    return norm, node, None


def addend_of(total: fx.Node, operand: fx.Node) -> fx.Node:
    return next(node for node in total.all_input_nodes if node is not operand)


def _alike(one: fx.Node, two: fx.Node) -> bool:
    """Whether two operands are of one shape, so that neither is spread along the other."""
    return bool(one.meta["shape"] == two.meta["shape"])


def place_of(graph: ModelGraph, node: fx.Node) -> Place | None:
    """Where a hook can see a node's tensor: a module's output, what a block is called with, or what a module reads."""
    name = node.meta.get("module")
    if name is not None and graph.called_once(name):
        return Place(name, True)
    blocks = [block for block in node.meta.get("enters", []) if graph.called_once(block)]
    users = [
        user for user in node.users if user.meta.get("kind") in ("norm", "conv", "linear") and user.args[0] is node
    ]
    readers = [user.meta["module"] for user in users if user.meta.get("module") is not None]
    seen = next((reader for reader in (*blocks, *readers) if graph.called_once(reader)), None)
    return None if seen is None else Place(seen, False)


def _precedes(graph: ModelGraph, one: fx.Node, two: fx.Node) -> bool:
    """Whether a tensor can be seen before ``two`` runs."""
    order = {node: number for number, node in enumerate(graph)}
    point = place_of(graph, one)
    if point is None or point.output or point.module in one.meta.get("enters", []):
        return order[one] < order[two]
    return next(order[user] for user in one.users if user.meta.get("module") == point.module) < order[two]


def live_elements(graph: ModelGraph, at: fx.Node) -> int:
    """Numbers that a forward on one image holds while it waits before ``at``.

    What a block was called with stays in its caller's hands until the block is done.
    """
    order = {node: number for number, node in enumerate(graph)}
    ends = {node.meta["owner"]: number for node, number in order.items() if node.op != "output"}
    total = 0
    for node, number in order.items():
        shape = node.meta.get("shape")
        if number >= order[at] or not shape or node.meta["kind"] == "attribute":
            continue
        blocks = node.meta.get("enters", [])
        held = [end for owner, end in ends.items() for block in blocks if f"{owner}.".startswith(f"{block}.")]
        if max([*(order[user] for user in node.users), *held], default=0) >= order[at]:
            total += math.prod(shape[1:])
    return total
