"""How the norm and activation behind a replaced convolution go away."""

from torch import fx, nn

from surgery.graph import ModelGraph
from surgery.graph.dataflow import activation_name, back_to, non_negative, role_of, source
from surgery.graph.kinds import has_activation_module
from surgery.planning.sites import Site
from surgery.transforms.drop import Drop
from surgery.transforms.erase_calls import EraseCalls, call_name
from surgery.transforms.transform import Transform


def plan_removal(graph: ModelGraph, site: Site, keep_norm: bool = False) -> tuple[Transform, ...]:
    """Decide how what follows a squeeze convolution is removed.

    A module that runs once becomes nn.Identity. A shared or functional activation stays where it provably does
    nothing (ReLU after a squeeze that keeps the sign of a non-negative map); else its calls are erased from the
    smallest enclosing block.
    """
    norm, act = site.after.norm, site.after.act
    identity: list[str] = []
    calls: list[fx.Node] = []
    if norm is not None and (not keep_norm or (norm is act and _holds_activation(graph, norm))):
        name = norm.meta.get("module")
        if name is not None and graph.called_once(name):
            identity.append(f"{name}.act" if keep_norm else name)
        else:
            calls.append(norm)
    if act is not None and act is not norm and not _does_nothing(graph, site, act):
        name = act.meta.get("module")
        if name is not None and graph.called_once(name):
            identity.append(name)
        else:
            calls.append(act)
    dropped = (Drop(tuple(identity)),) if identity else ()
    return (*dropped, *([_erasing(graph, site, calls)] if calls else []))


def _holds_activation(graph: ModelGraph, norm: fx.Node) -> bool:
    """Whether a fused norm's activation is a module, that can go while the norm stays (EvoNorm's cannot)."""
    return has_activation_module(graph.modules.get(norm.meta.get("module") or "", nn.Identity()))


def _does_nothing(graph: ModelGraph, site: Site, act: fx.Node) -> bool:
    """Whether an activation, which no swap removes, is the identity on a squeeze of this input that keeps signs."""
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


def _erasing(graph: ModelGraph, site: Site, calls: list[fx.Node]) -> EraseCalls:
    """From the smallest module that makes all the calls."""
    parts = site.name.split(".")[:-1]
    for call in calls:
        owner = call.meta["owner"].split(".") if call.meta["owner"] else []
        shared = 0
        while shared < min(len(parts), len(owner)) and parts[shared] == owner[shared]:
            shared += 1
        parts = parts[:shared]
    block = ".".join(parts)
    inside = site.name[len(block) + 1 :] if block else site.name
    return EraseCalls(block, inside, tuple((_steps(site.node, call), call_name(graph.modules, call)) for call in calls))


def _steps(conv: fx.Node, call: fx.Node) -> int:
    """How many calls after the convolution this one comes, along its only users."""
    steps, node = 0, conv
    while node is not call:
        node = next(iter(node.users))
        steps += 1
    return steps
