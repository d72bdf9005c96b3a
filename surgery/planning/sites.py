"""Where surgery is possible in a recorded model, what each place is, and why a candidate is not one."""

from dataclasses import dataclass, field

from timm.layers import Conv2dSame
from torch import fx, nn

from surgery.graph import ModelGraph
from surgery.graph.dataflow import (
    THROUGH,
    ConvSpec,
    Followers,
    back_to,
    conv_spec,
    convs,
    followers,
    is_pooled,
    is_squeeze,
    readers,
    source,
    spatial_size,
    stem,
)
from surgery.graph.kinds import STANDARDISED
from surgery.graph.scripted import is_scripted_conv
from surgery.transforms.erase_calls import call_name

HEAD, PROJECTION, TRANSITION, SPATIAL = (
    "bottleneck head",
    "inverted projection",
    "transition projection",
    "spatial conv",
)
COMPUTED = "its weight is computed from others at call time (parametrised, weight-normed or masked)"
ATTENTION = "attention reads it (queries, keys or values)"
SCRIPTED = "inside a scripted module (TorchScript), whose code cannot be changed: convert it before it is scripted"
_TO_DEPTHWISE = frozenset({"norm", "act", "identity", "mul", "pad", "scale"})
_TO_PRODUCER = frozenset({"norm", "act", "identity", "pad", "scale"})
_TO_READER = THROUGH | {"norm", "act", "split", "item"}


@dataclass(frozen=True)
class Site:
    """A convolution that a method can work on.

    Attributes:
        name: qualified module name of the convolution.
        role: ``bottleneck head``, ``inverted projection`` or ``spatial conv``.
        in_channels, out_channels: of the convolution as it is.
        node, after: the recorded call and what follows it.
    """

    name: str
    role: str
    in_channels: int
    out_channels: int
    node: fx.Node = field(repr=False, compare=False)
    after: Followers = field(repr=False, compare=False)

    @property
    def ratio(self) -> float:
        """C_in / C_out, the site's own zeta."""
        return self.in_channels / self.out_channels


@dataclass(frozen=True)
class Skipped:
    """A candidate that is not converted, and why."""

    name: str
    reason: str


def squeeze_sites(graph: ModelGraph) -> tuple[list[Site], list[Skipped]]:
    """Squeeze convolutions of a model: (sites, every other 1×1 convolution with the reason)."""
    in_stem = stem(graph)
    sites: list[Site] = []
    skipped: list[Skipped] = []
    seen: set[str] = set()
    for node in convs(graph):
        spec = conv_spec(graph, node)
        if not spec.pointwise:
            continue
        name = node.meta.get("module") or _function_name(graph, node)
        if name in seen:
            continue
        seen.add(name)
        found = _not_replaceable(graph, node, spec) or _squeeze_role(graph, node, spec, in_stem)
        if found in (HEAD, PROJECTION, TRANSITION):
            sites.append(Site(name, found, spec.in_channels, spec.out_channels, node, followers(graph, node)))
        else:
            skipped.append(Skipped(name, found))
    return sites, skipped + _not_reached(graph)


def spatial_sites(graph: ModelGraph) -> tuple[list[Site], list[Skipped]]:
    """Spatial (k > 1) convolutions on feature maps: (sites, the rest with the reason)."""
    sites: list[Site] = []
    skipped: list[Skipped] = []
    for node in convs(graph):
        spec = conv_spec(graph, node)
        if spec.pointwise:
            continue
        name = node.meta.get("module") or _function_name(graph, node)
        reason = _not_insertable(graph, node, spec)
        if reason:
            skipped.append(Skipped(name, reason))
        else:
            sites.append(Site(name, SPATIAL, spec.in_channels, spec.out_channels, node, followers(graph, node)))
    return sites, skipped


def first_of_stage(graph: ModelGraph, site: Site) -> bool:
    """Whether a spatial convolution opens a resolution stage: it strides, or reads a pooled map or the image."""
    if max(conv_spec(graph, site.node).stride) > 1:
        return True
    producer = back_to(source(site.node), lambda n: n.meta.get("kind") not in _TO_PRODUCER, _TO_PRODUCER)
    return producer is None or producer.meta["kind"] in ("pool", "global_pool", "input")


def _function_name(graph: ModelGraph, node: fx.Node) -> str:
    """A name for a bare F.conv2d call: the convolution module that makes it, else its owner."""
    owner = str(node.meta["owner"])
    return owner if isinstance(graph.modules.get(owner), nn.Conv2d) else f"{owner} (F.conv2d)"


def _not_replaceable(graph: ModelGraph, node: fx.Node, spec: ConvSpec) -> str:
    name = node.meta.get("module")
    if name is None:
        if isinstance(graph.modules.get(node.meta["owner"]), nn.Conv2d):
            return COMPUTED
        return "a bare F.conv2d call, not a module that can be replaced"
    if spec.groups != 1:
        return f"grouped ({spec.groups} groups)"
    if not graph.called_once(name):
        return "shared: called more than once in a forward, or registered under several names"
    conv = graph.modules[name]
    if "weight" not in conv._parameters:
        return COMPUTED
    if conv._forward_hooks or conv._forward_pre_hooks:
        return "it carries forward hooks, which a replacement would lose"
    if _tied(graph, name):
        return "its weight is tied to another module's"
    if spec.padded:
        return "padded: its output is larger than its input"
    own_forward = type(conv).forward not in (nn.Conv2d.forward, Conv2dSame.forward)
    if own_forward and not isinstance(conv, STANDARDISED):
        return f"{type(conv).__name__} computes a forward of its own"
    if spatial_size(source(node)) == 0:
        return "its input is not an (N, C, H, W) map"
    if spatial_size(source(node)) == 1 and is_pooled(source(node)):
        return "works on a pooled descriptor (attention gate or classifier)"
    return ""


def _tied(graph: ModelGraph, name: str) -> bool:
    weight = graph.modules[name].weight
    return any(
        other != name and any(p is weight for p in module.parameters(recurse=False))
        for other, module in graph.modules.items()
    )


def _squeeze_role(graph: ModelGraph, node: fx.Node, spec: ConvSpec, in_stem: set[fx.Node]) -> str:
    """A role, or the reason for none."""
    if spec.out_channels > spec.in_channels:
        return f"expands {spec.in_channels} to {spec.out_channels} channels"
    if spec.out_channels == 1:
        return "gives a single channel (spatial attention)"
    after = followers(graph, node)
    if not after.consumers:
        return "its output is the model's"
    depthwise = back_to(source(node), lambda n: _is_depthwise(graph, n), _TO_DEPTHWISE)
    if depthwise is not None:
        if spec.out_channels == spec.in_channels:
            return "separable: keeps the width after a depth-wise convolution"
        if _feeds_attention(after):
            return ATTENTION
        return PROJECTION if _is_added(after, spec.out_channels) else TRANSITION
    if node in in_stem:
        return "part of the stem"
    if is_squeeze(graph, after):
        return HEAD
    if _feeds_attention(after):
        return ATTENTION
    return _reason_by_readers(graph, readers(after.consumers, _TO_READER))


def _is_depthwise(graph: ModelGraph, node: fx.Node) -> bool:
    return node.meta.get("kind") == "conv" and conv_spec(graph, node).depthwise


def _feeds_attention(after: Followers) -> bool:
    """Whether a product of matrices reads it, with nothing but changes of shape and scale between."""
    reading = readers(after.consumers, _TO_READER | {"reshape"})
    return bool(reading) and all(reader.meta.get("kind") == "matmul" for reader in reading)


def _is_added(after: Followers, width: int) -> bool:
    """Whether what follows is a residual sum; of all channels, or of the first half or more (ReXNet)."""
    reading = readers(after.consumers)
    added = [reader for reader in reading if reader.meta.get("kind") == "add"]
    if len(added) == len(reading):
        return True
    parts = [part for reader in reading if reader.meta.get("kind") == "split" for part in _parts(reader)]
    joined = [any(user.meta.get("kind") == "add" for user in part.users) for part in parts]
    summed = sum(part.meta["shape"][1] for part, is_sum in zip(parts, joined, strict=True) if is_sum)
    rest = [part for part, is_sum in zip(parts, joined, strict=True) if not is_sum]
    to_cat = all(user.meta.get("kind") == "cat" for part in rest for user in part.users)
    only_splits = all(reader.meta.get("kind") == "split" for reader in reading)
    return only_splits and to_cat and 2 * summed >= width


def _parts(split: fx.Node) -> list[fx.Node]:
    """The tensors that a split or a slice gives."""
    return [split] if split.meta["shape"] is not None else list(split.users)


def _reason_by_readers(graph: ModelGraph, reading: tuple[fx.Node, ...]) -> str:
    kinds = {reader.meta.get("kind") for reader in reading}
    if "add" in kinds:
        return "goes into a sum without a depth-wise convolution before it (shortcut, lateral or MLP)"
    if "cat" in kinds:
        return "goes into a concatenation (branch or cross-stage)"
    if kinds == {"conv"}:
        return "no spatial convolution reads it"
    if kinds == {"global_pool", "mul"}:
        return "an attention gate reads it (squeeze and excitation)"
    names = ", ".join(sorted({_called(graph, reader) for reader in reading}))
    return f"no spatial convolution alone reads it (read by: {names})"


def _called(graph: ModelGraph, node: fx.Node) -> str:
    """What an operation is called: its kind where that says enough, else its class or function."""
    kind = node.meta.get("kind")
    if node.op == "output":
        return "the model's output"
    return kind if kind in ("conv", "linear", "pool", "global_pool", "upsample") else call_name(graph.modules, node)


def _not_insertable(graph: ModelGraph, node: fx.Node, spec: ConvSpec) -> str:
    name = node.meta.get("module")
    if name is None:
        return "a bare F.conv2d call, or squeezed already"
    if source(node).meta.get("kind") == "input":
        return "part of the stem: reads the image"
    if not graph.called_once(name):
        return "shared: called more than once in a forward, or registered under several names"
    if "weight" not in graph.modules[name]._parameters:
        return COMPUTED
    if type(graph.modules[name]) is not nn.Conv2d:
        return f"{type(graph.modules[name]).__name__}: insertion works before a plain Conv2d"
    if spatial_size(node) <= 1:
        return "gives a 1×1 map (a classifier written as a convolution)"
    return ""


def _not_reached(graph: ModelGraph) -> list[Skipped]:
    """1×1 convolutions that an eval-mode forward never calls (auxiliary heads, training branches)."""
    never = [
        Skipped(name, "not called in an eval-mode forward")
        for name, module in graph.modules.items()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and not graph.calls[name]
    ]
    return never + [Skipped(name, SCRIPTED) for name, module in graph.modules.items() if is_scripted_conv(module)]
