"""Regions of a network in which values can lie on two maps: runs of modules that take and give one map."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from timm.layers import BatchNormAct2d
from torch import fx, nn

from surgery.graph import ModelGraph
from surgery.graph.dataflow import spatial_size
from surgery.methods.octave.scales import split_channels
from surgery.planning.sites import Skipped

LEAST_CONVS = 2
LEAST_SIDE = 3  # of the smallest fine map, in pixels: the coarse one has more than one value to normalise by


@dataclass
class Region:
    """A run of modules, and what is in it.

    Attributes:
        first, last: modules; all between them is run in order.
        channels: of the map that it takes.
        convs, norms, others: names, in the order in which they run.
    """

    first: str
    last: str
    channels: int
    convs: list[str] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


class RegionFinder:
    """Looks for the largest regions, but for those across a map that the network's user may ask for.

    Args:
        alpha: share of the channels on the coarse map.

    Attributes:
        regions, skipped: what it came to.
    """

    def __init__(self, graph: ModelGraph, alpha: float) -> None:
        self.graph, self.alpha = graph, alpha
        self.regions: list[Region] = []
        self.skipped: list[Skipped] = []
        self._nodes = [node for node in graph if node.op not in ("placeholder", "output")]
        self._asked_for = _feature_modules(graph.modules[""])
        self._visit_children("")

    def _visit_children(self, name: str, obstacle: str = "") -> None:
        """Regions among a module's children; ``obstacle`` is why the module itself is in none."""
        prefix = f"{name}." if name else ""
        children = [f"{prefix}{child}" for child, _ in self.graph.modules[name].named_children()]
        obstacles = {child: self._obstacle(child) for child in children if self._inside([child])}
        if name and isinstance(self.graph.modules[name], nn.Sequential):
            runs = self._runs(obstacles)
        else:
            runs = [self._unpacked(child) for child in obstacles if self._whole(child, obstacles)]
        for run in runs:
            self._take(run, obstacle)
        taken = {child for child in obstacles if any(_below(run[0], child) for run in runs)}
        taken |= {child for run in runs for child in run}
        for child in [child for child in obstacles if child not in taken]:
            if any(True for _ in self.graph.modules[child].children()):
                self._visit_children(child, obstacles[child])
            elif isinstance(self.graph.modules[child], nn.Conv2d):
                self.skipped.append(Skipped(child, obstacles[child]))

    def _whole(self, child: str, obstacles: dict[str, str]) -> bool:
        return not obstacles[child] and not self._reaches_across(child)

    def _runs(self, obstacles: dict[str, str]) -> list[list[str]]:
        """Consecutive children without an obstacle, up to one whose map the network's user may ask for."""
        runs: list[list[str]] = [[]]
        for child in obstacles:
            if not self._whole(child, obstacles):
                runs.append([])
                continue
            if runs[-1] and not self._reads_alone(child, runs[-1][-1]):
                runs.append([])
            runs[-1].append(child)
            if child in self._asked_for:
                runs.append([])
        return [run for run in runs if run]

    def _reads_alone(self, name: str, before: str) -> bool:
        """Whether a module, and nothing else, reads what another gives, and reads nothing else."""
        nodes, source_nodes = self._inside([name]), self._exits(self._inside([before]))
        return self._entries(nodes) == source_nodes and all(
            user in nodes for node in source_nodes for user in node.users
        )

    def _unpacked(self, name: str) -> list[str]:
        """The children of a Sequential in its place, so that it keeps its length and what it holds."""
        module = self.graph.modules[name]
        children = [f"{name}.{child}" for child, _ in module.named_children()]
        if type(module) is not nn.Sequential or not children or any(not self._inside([child]) for child in children):
            return [name]
        if any(not self.graph.called_once(child) or self._obstacle(child) for child in children):
            return [name]
        chained = all(self._reads_alone(child, before) for before, child in itertools.pairwise(children))
        return children if chained else [name]

    def _reaches_across(self, name: str) -> bool:
        return any(asked.startswith(f"{name}.") for asked in self._asked_for)

    def _inside(self, run: Sequence[str]) -> list[fx.Node]:
        return [node for node in self._nodes if any(_below(_name(node), name) for name in run)]

    def _obstacle(self, name: str) -> str:
        """Why a module cannot be in a region, or ""."""
        if any(_hooked(module) for below, module in self.graph.modules.items() if _below(below, name)):
            return f"{name} has forward hooks, or a module in it"
        if not self.graph.called_once(name):
            return "shared: called more than once in a forward, or registered under several names"
        nodes = self._inside([name])
        if len(self._entries(nodes)) != 1 or len(self._exits(nodes)) != 1:
            return f"{name} does not take one map and give one"
        for node in nodes:
            if reason := self._unsafe(node):
                return reason
        return ""

    def _unsafe(self, node: fx.Node) -> str:
        kind, name = node.meta.get("kind"), node.meta.get("module")
        if spatial_size(node) == 0:
            return f"{_name(node)} gives no map"
        if node.op == "call_function" and kind == "add" and len(node.all_input_nodes) == 2:
            one, two = (operand.meta["shape"] for operand in node.all_input_nodes)
            return "" if one == two else f"{_name(node)} adds maps of two shapes"
        module = self.graph.modules.get(name or "")
        if name is None or module is None:
            return f"{_name(node)} computes {getattr(node.target, '__name__', node.target)}, which is not followed"
        if isinstance(module, nn.Conv2d):
            return _unsuitable_conv(module, name, self.alpha) or self._shared(name)
        if kind == "norm":
            return _unsuitable_norm(module, name, self.alpha) or self._shared(name)
        if kind in ("act", "identity") and not [*module.parameters(), *module.buffers()]:
            held_once = self.graph.aliases[id(module)] == 1
            return "" if held_once else f"{name} is registered under several names"
        return f"{name} is a {type(module).__name__}, which is not followed"

    def _shared(self, name: str) -> str:
        return "" if self.graph.called_once(name) else f"{name} is called more than once"

    def _entries(self, nodes: Sequence[fx.Node]) -> set[fx.Node]:
        own = set(nodes)
        return {source for node in nodes for source in node.all_input_nodes if source not in own}

    def _exits(self, nodes: Sequence[fx.Node]) -> set[fx.Node]:
        own = set(nodes)
        return {node for node in nodes if any(user not in own for user in node.users)}

    def _take(self, run: Sequence[str], obstacle: str) -> None:
        """Make a region of a run of modules where it is worth it; else say of its convolutions why not."""
        nodes = self._inside(run)
        if len(self._entries(nodes)) != 1 or len(self._exits(nodes)) != 1:
            return
        (entry,) = self._entries(nodes)
        region = Region(run[0], run[-1], int(entry.meta["shape"][1]))
        for node in nodes:
            self._sort_in(region, node)
        if reason := self._not_worth(region, nodes):
            alone = len(region.convs) < LEAST_CONVS
            self.skipped += [Skipped(name, obstacle if alone and obstacle else reason) for name in region.convs]
        else:
            self.regions.append(region)

    def _sort_in(self, region: Region, node: fx.Node) -> None:
        name = node.meta.get("module")
        module = self.graph.modules.get(name or "")
        if name is None or module is None:
            return
        listed = region.others
        if isinstance(module, nn.Conv2d):
            listed = region.convs
        elif node.meta.get("kind") == "norm":
            listed = region.norms
        elif type(module) is nn.Identity or isinstance(module, nn.Sequential):
            return
        if name not in listed:
            listed.append(name)

    def _not_worth(self, region: Region, nodes: Sequence[fx.Node]) -> str:
        if len(region.convs) < LEAST_CONVS:
            return "no other convolution beside it between which values could lie on two maps"
        side = min(min(node.meta["shape"][-2:]) for node in nodes)
        if side < LEAST_SIDE:
            return f"its map is {side} pixels wide: at least {LEAST_SIDE} are needed"
        whole = region.first not in region.convs and len(split_channels(region.channels, self.alpha)) < 2
        return f"{region.channels} channels cannot be split" if whole else ""


def _feature_modules(model: nn.Module) -> tuple[str, ...]:
    """Modules whose outputs timm hands out (``features_only``, ``forward_intermediates``)."""
    names = []
    for prefix, module in model.named_modules():
        info = vars(module).get("feature_info")
        entries = getattr(info, "info", info)
        if isinstance(entries, list | tuple):
            listed = [str(entry["module"]) for entry in entries if isinstance(entry, dict) and "module" in entry]
            names += [f"{prefix}.{name}".strip(".") for name in listed]
    return tuple(names)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _unsuitable_conv(conv: nn.Conv2d, name: str, alpha: float) -> str:
    if type(conv) is not nn.Conv2d or "weight" not in conv._parameters:
        return f"{name} is a {type(conv).__name__}, whose weight is not what it multiplies with"
    same = tuple(dilation * (side - 1) / 2 for side, dilation in zip(conv.kernel_size, conv.dilation, strict=True))
    if conv.padding != same or conv.padding_mode != "zeros":
        return f"{name} does not keep the size of its map by zeros around it"
    if len(set(conv.stride)) > 1 or len(set(conv.dilation)) > 1:
        return f"{name} has another stride or dilation for height than for width"
    for channels in (conv.in_channels, conv.out_channels):
        parts, size = split_channels(channels, alpha), channels // conv.groups
        if conv.groups > 1 and (len(parts) < 2 or parts[0] % size):
            return f"{name}: of its {conv.groups} groups one would lie on both maps"
        if len(parts) < 2:
            return f"{name}: {channels} channels cannot be split"
    return ""


def _unsuitable_norm(module: nn.Module, name: str, alpha: float) -> str:
    if type(module) not in (nn.BatchNorm2d, BatchNormAct2d) or module.running_mean is None or module.momentum is None:
        return f"{name} is a {type(module).__name__}: a BatchNorm2d with running statistics is needed"
    assert isinstance(module, nn.BatchNorm2d)
    return "" if len(split_channels(module.num_features, alpha)) == 2 else f"{name} cannot be split"


def _name(node: fx.Node) -> str:
    return str(node.meta.get("module") or node.meta.get("owner") or "")


def _below(name: str, above: str) -> bool:
    return name == above or name.startswith(f"{above}.")
