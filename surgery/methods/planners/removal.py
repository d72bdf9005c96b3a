"""How the norm and activation behind a replaced convolution go away."""

from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from surgery.graph import ModelGraph
from surgery.graph.dataflow import activation_name, back_to, non_negative, role_of, source
from surgery.graph.kinds import has_activation_module
from surgery.planning.sites import Site
from surgery.transforms.edit import call_name


@dataclass
class Removal:
    """How calls go away.

    Attributes:
        identity: modules to swap for nn.Identity.
        erase: where that cannot do, [block, convolution in it, [[n, name], …]]: the n-th call after the convolution.
    """

    identity: list[str] = field(default_factory=list)
    erase: list[Any] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        return {"identity": self.identity, "erase": self.erase}


def plan_removal(graph: ModelGraph, site: Site, keep_norm: bool = False) -> Removal:
    """Decide how what follows a squeeze convolution is removed.

    A module that runs once becomes nn.Identity. A shared or functional activation stays where it provably does
    nothing (ReLU after a PiX of a non-negative map); else its calls are erased from the smallest enclosing block.
    """
    norm, act = site.after.norm, site.after.act
    removal = Removal()
    calls: list[fx.Node] = []
    if norm is not None and (not keep_norm or (norm is act and _holds_activation(graph, norm))):
        name = norm.meta.get("module")
        if name is not None and graph.called_once(name):
            removal.identity.append(f"{name}.act" if keep_norm else name)
        else:
            calls.append(norm)
    if act is not None and act is not norm and not _does_nothing(graph, site, act):
        name = act.meta.get("module")
        if name is not None and graph.called_once(name):
            removal.identity.append(name)
        else:
            calls.append(act)
    if calls:
        removal.erase = _enclosing(graph, site, calls)
    return removal


def _holds_activation(graph: ModelGraph, norm: fx.Node) -> bool:
    """Whether a fused norm's activation is a module, that can go while the norm stays (EvoNorm's cannot)."""
    return has_activation_module(graph.modules.get(norm.meta.get("module") or "", nn.Identity()))


def _does_nothing(graph: ModelGraph, site: Site, act: fx.Node) -> bool:
    """Whether an activation is the identity on any PiX of this site's input, and cannot be swapped away."""
    module = act.meta.get("module")
    if (module is not None and graph.called_once(module)) or _is_scaled(site.node, act):
        return False
    name = activation_name(graph, act)
    if name == "relu6":
        feeding = back_to(source(site.node), lambda n: n.meta.get("kind") == "act", frozenset({"identity", "pool"}))
        return feeding is not None and activation_name(graph, feeding) == "relu6"
    return name == "relu" and non_negative(graph, source(site.node))


def _is_scaled(conv: fx.Node, act: fx.Node) -> bool:
    """Whether a scale of any sign, which stays, stands between a convolution and its activation."""
    node, scaled = conv, False
    while (node := next(iter(node.users))) is not act:
        scaled = scaled or role_of(node) == "scale"
    return scaled


def _enclosing(graph: ModelGraph, site: Site, calls: list[fx.Node]) -> list[Any]:
    """The smallest module that makes all the calls, the convolution's name in it, and which calls they are."""
    parts = site.name.split(".")[:-1]
    for call in calls:
        owner = call.meta["owner"].split(".") if call.meta["owner"] else []
        shared = 0
        while shared < min(len(parts), len(owner)) and parts[shared] == owner[shared]:
            shared += 1
        parts = parts[:shared]
    block = ".".join(parts)
    inside = site.name[len(block) + 1 :] if block else site.name
    return [block, inside, [[_steps(site.node, call), call_name(graph.modules, call)] for call in calls]]


def _steps(conv: fx.Node, call: fx.Node) -> int:
    """How many calls after the convolution this one comes, along its only users."""
    steps, node = 0, conv
    while node is not call:
        node = next(iter(node.users))
        steps += 1
    return steps
