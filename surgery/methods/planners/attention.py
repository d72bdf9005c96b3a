"""Planning of a layer behind modules: at the end of residual branches, or behind chosen convolutions."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from surgery.core.errors import is_whole
from surgery.graph import ModelGraph
from surgery.graph.dataflow import conv_spec, convs, followers, is_pooled, source, spatial_size
from surgery.planning.decision import Decision, PlanRow
from surgery.planning.registry import Proposal
from surgery.planning.selection import Selection, matches, patterns
from surgery.planning.sites import Skipped
from surgery.transforms.insert_behind import InsertBehind

BRANCH, CONV = "end of a residual branch", "behind a convolution"


@dataclass(frozen=True)
class AttentionOptions:
    """Where attention goes, and how narrow its inside is.

    Attributes:
        ratio: r, channels ÷ width of the bottleneck inside.
        insert: name patterns of convolutions to insert behind (behind the norm and activation that follow them);
            default: at the end of every residual branch, in a network without any behind its spatial convolutions.
    """

    ratio: int = 16
    insert: str | Iterable[str] = ()

    def __post_init__(self) -> None:
        if not is_whole(self.ratio, 1):
            raise ValueError(f"ratio={self.ratio!r}: a whole number >= 1 is needed")
        object.__setattr__(self, "insert", patterns("insert", self.insert))


@dataclass(frozen=True)
class Host:
    """A module that something can be put behind: its name, what it ends, and the channels that it gives."""

    name: str
    role: str
    channels: int


def plan_attention(
    graph: ModelGraph, selection: Selection, options: AttentionOptions, layer: tuple[str, dict[str, Any]]
) -> Proposal:
    """Decisions that put a layer behind modules.

    Args:
        layer: kind of layer and its options.
    """
    hosts, skipped = _hosts(graph, options)
    selection.check([host.name for host in hosts])
    decisions = []
    for host in hosts:
        if reason := selection.unwanted(host.name):
            skipped.append(Skipped(host.name, reason))
            continue
        change = InsertBehind(host.name, layer[0], host.channels, layer[1])
        row = PlanRow(host.name, host.role, (host.channels, host.channels), f"{layer[0]} behind it")
        decisions.append(Decision(host.name, (change,), (row,)))
    return Proposal(decisions, skipped)


def _hosts(graph: ModelGraph, options: AttentionOptions) -> tuple[list[Host], list[Skipped]]:
    if options.insert:
        return _behind_convs(graph, tuple(options.insert))
    branches = dict.fromkeys(_branch_ends(graph))
    if not branches:
        return _behind_convs(graph, ())
    hosts, skipped = [], []
    for node in branches:
        host = _host(graph, node, BRANCH)
        if host is None:
            skipped.append(Skipped(str(node.meta.get("module") or node.meta["owner"]), _no_host(graph, node)))
        else:
            hosts.append(host)
    return hosts, skipped


def _behind_convs(graph: ModelGraph, wanted: tuple[str, ...]) -> tuple[list[Host], list[Skipped]]:
    """Hosts behind the convolutions of some patterns, or behind all spatial ones but the stem's."""
    hosts: list[Host] = []
    skipped: list[Skipped] = []
    named = [(node.meta.get("module"), node) for node in convs(graph)]
    Selection().check([name for name, _ in named if name], insert=wanted)
    for name, node in named:
        reason = _conv_unwanted(graph, name, node, wanted)
        last = _last(graph, node)
        host = None if reason else _host(graph, last, CONV)
        if host is None:
            label = name or f"{node.meta['owner']} (F.conv2d)"
            skipped.append(Skipped(label, reason or _no_host(graph, last)))
        else:
            hosts.append(host)
    return hosts, skipped


def _conv_unwanted(graph: ModelGraph, name: str | None, node: fx.Node, wanted: tuple[str, ...]) -> str:
    if name is None:
        return "a bare F.conv2d call, not a module"
    if wanted:
        return "" if any(matches(name, pattern) for pattern in wanted) else "not in insert="
    if spatial_size(source(node)) == 1 and is_pooled(source(node)):
        return "works on a pooled descriptor (attention gate or classifier)"
    if conv_spec(graph, node).pointwise:
        return "a 1×1 convolution (insert= includes it)"
    return "reads the image (insert= includes it)" if source(node).meta.get("kind") == "input" else ""


def _last(graph: ModelGraph, conv: fx.Node) -> fx.Node:
    """The last of a convolution, its norm and its activation that is a module called once."""
    after = followers(graph, conv)
    order = {node: number for number, node in enumerate(graph)}
    behind = sorted((n for n in (after.norm, after.act) if n is not None), key=lambda n: order[n], reverse=True)
    return next((n for n in behind if _can_host(graph, n)), conv)


def _branch_ends(graph: ModelGraph) -> Iterator[fx.Node]:
    """Of each residual sum of two maps, the last module of the branch with more convolutions of its own."""

    @functools.cache
    def before(node: fx.Node) -> frozenset[fx.Node]:
        own = {node} if node.meta.get("kind") in ("conv", "surgery") else set()
        return frozenset(own.union(*(before(arg) for arg in node.all_input_nodes)))

    for node in graph:
        before(node)  # in order, so that no recursion runs deep
        maps = [arg for arg in node.all_input_nodes if spatial_size(arg) > 0]
        if node.meta.get("kind") != "add" or len(maps) != 2 or maps[0].meta["shape"] != maps[1].meta["shape"]:
            continue
        counts = [len(before(one) - before(other)) for one, other in (maps, maps[::-1])]
        if counts[0] != counts[1]:
            yield _end(graph, maps[0] if counts[0] > counts[1] else maps[1])


def _end(graph: ModelGraph, node: fx.Node) -> fx.Node:
    """The module that gives a map, past what does nothing and has no reader of its own."""
    while node.meta.get("kind") in ("identity", "scale") and len(node.all_input_nodes) == 1:
        earlier = node.all_input_nodes[0]
        if len(earlier.users) > 1:
            break
        node = earlier
    return node


def _can_host(graph: ModelGraph, node: fx.Node) -> bool:
    name = node.meta.get("module")
    return name is not None and graph.called_once(name) and node.meta.get("shape") is not None


def _host(graph: ModelGraph, node: fx.Node, role: str) -> Host | None:
    if not _can_host(graph, node):
        return None
    return Host(node.meta["module"], role, int(node.meta["shape"][1]))


def _no_host(graph: ModelGraph, node: fx.Node) -> str:
    name = node.meta.get("module")
    if name is not None and isinstance(graph.modules.get(name), nn.Module):
        return "shared: called more than once in a forward, or registered under several names"
    return "ends in an operation that is no module"
