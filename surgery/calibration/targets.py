"""Which layers behind a surgery are fitted again, and to what: read off the recorded graphs of both networks."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import cast

import torch
from torch import fx, nn

from surgery.calibration.patches import FITTED, outputs_of
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
    """A layer to fit; or, with ``aim`` None, a surgery layer that sets itself from what it reads.

    Attributes:
        layer: its name, in both networks.
        norm: the BatchNorm that alone reads it, or None.
        reads: where its input is, in the converted network.
        aim: where the original network holds what it is fitted to: the layer's own output, or, with ``addends``, the
            output of the last module before a sum.
        addends: the other operand of that sum, in the converted and in the original network: the sum is fitted, so
            that what earlier layers left undone is made up for.
        outputs: which of the original's outputs the layer still has; None for all.
        fixed: only the norm's statistics are measured (why, in a few words).
        elements: numbers that both networks hold for one image while they wait here.
    """

    layer: str
    norm: str | None
    reads: Place
    aim: Place | None
    addends: tuple[Place, Place] | None = None
    outputs: tuple[int, ...] | None = None
    fixed: str = ""
    elements: int = 0


def targets(
    converted: ModelGraph, original: ModelGraph, kept: Mapping[str, Sequence[int]] = MappingProxyType({})
) -> tuple[list[Target], list[Skipped]]:
    """Layers behind the first surgery, in the order in which they run, and those that cannot be fitted.

    Args:
        kept: of layers that were narrowed, the outputs that they still have.
    """
    found: list[Target] = []
    skipped: list[Skipped] = []
    own = {name: node for node in original if (name := layer_of(original, node) or node.meta.get("module"))}
    for node in _behind_surgery(converted):
        if node.meta["kind"] == "surgery":
            if converted.called_once(node.meta["module"]):
                place = Place(node.meta["module"], False)
                found.append(Target(place.module, None, place, None, elements=live_elements(converted, node)))
            continue
        name = layer_of(converted, node)
        if name is None:
            continue
        reason = _cannot(converted, node, name) or ("" if name in own else "the original network has no such layer")
        reason = reason or _cannot(original, own[name], name) or _too_many(converted, node, name)
        if reason:
            skipped.append(Skipped(name, reason))
        else:
            target = _target(converted, original, node, own[name], name)
            if outputs_of(converted.modules[name]) != outputs_of(original.modules[name]):
                target = _narrowed(target, outputs_of(converted.modules[name]), kept.get(name))
            aim = cast(Place, target.aim)
            behind = next((n for n in original if n.meta.get("module") == aim.module), own[name])
            found.append(replace(target, elements=live_elements(converted, node) + live_elements(original, behind)))
    return found, skipped


def layer_of(graph: ModelGraph, node: fx.Node) -> str | None:
    """Name of what can be fitted where a node is its call: a convolution, a linear layer, a BatchNorm behind a PiX."""
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
    if not isinstance(module, nn.modules.batchnorm._BatchNorm) or module.running_mean is None or not module.affine:
        return False
    if norm_has_activation(module):
        return False
    before = norm.all_input_nodes[0]
    return before.meta.get("kind") == "surgery" and sole_user(before) is norm and len(norm.meta["shape"]) == 4


def _behind_surgery(graph: ModelGraph) -> Iterator[fx.Node]:
    """Surgery layers, and the nodes that depend on one, in order."""
    behind: set[fx.Node] = set()
    for node in graph:
        if node.meta.get("kind") == "surgery" or any(source in behind for source in node.all_input_nodes):
            behind.add(node)
            if node.op != "output":
                yield node


def _cannot(graph: ModelGraph, node: fx.Node, name: str) -> str:
    layer = graph.modules[name]
    if type(layer) not in FITTED:
        return f"{type(layer).__name__}: its weight is not what it multiplies with"
    if not graph.called_once(name):
        return "shared: called more than once in a forward, or registered under several names"
    if "weight" not in layer._parameters:
        return "its weight is computed at call time"
    shape = node.all_input_nodes[0].meta["shape"]
    if shape is None or len(shape) != (2 if isinstance(layer, nn.Linear) else 4):
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
    norm, last, total = _to_sum(converted, node)
    _, own_last, own_total = _to_sum(original, own)
    if total is not None and own_total is not None:
        other, own_other = _other(total, last), _other(own_total, own_last)
        places = place_of(converted, other), place_of(original, own_other), place_of(original, own_last)
        if all(places) and _precedes(converted, other, node):
            addends = cast("tuple[Place, Place]", places[:2])
            return Target(name, norm, reads, cast(Place, places[2]), addends)
    return Target(name, norm, reads, Place(name, True))


def _narrowed(target: Target, width: int, kept: Sequence[int] | None) -> Target:
    plain = replace(target, aim=Place(target.layer, True), addends=None)
    if kept is None or len(kept) != width:
        return replace(plain, fixed="narrowed: which outputs were kept is not known here")
    return replace(plain, outputs=tuple(kept))


def _to_sum(graph: ModelGraph, node: fx.Node) -> tuple[str | None, fx.Node, fx.Node | None]:
    """The BatchNorm behind a layer, the last node before the sum of two that alone reads it, and that sum."""
    norm: str | None = node.meta["module"] if node.meta["kind"] == "norm" else None
    while (after := sole_user(node)) is not None:
        kind, name = after.meta.get("kind"), after.meta.get("module")
        module = graph.modules.get(name or "")
        if kind == "norm" and norm is None and isinstance(module, nn.modules.batchnorm._BatchNorm):
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


def _other(total: fx.Node, operand: fx.Node) -> fx.Node:
    return next(node for node in total.all_input_nodes if node is not operand)


def place_of(graph: ModelGraph, node: fx.Node) -> Place | None:
    """Where a hook can see a node's tensor: a module's output, or what a block is called with."""
    name = node.meta.get("module")
    if name is not None and graph.called_once(name):
        return Place(name, True)
    return next((Place(block, False) for block in node.meta.get("enters", []) if graph.called_once(block)), None)


def _precedes(graph: ModelGraph, one: fx.Node, two: fx.Node) -> bool:
    order = {node: number for number, node in enumerate(graph)}
    return order[one] < order[two]


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
