"""Questions about a recorded graph: what a convolution is, what follows it, what feeds it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import fx, nn

from surgery.graph.kinds import norm_has_activation
from surgery.graph.recorder import ModelGraph

THROUGH = frozenset({"identity", "pad", "scale"})
_NON_NEGATIVE_ACTS = {"relu", "relu6", "sigmoid", "hardsigmoid"}
_KEEPS_SIGN = frozenset({"identity", "pool", "global_pool", "pad", "reshape", "add", "cat", "split", "item"})


@dataclass(frozen=True)
class ConvSpec:
    """What a convolution node computes, from its module or from the arguments of a bare function call."""

    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    groups: int
    padded: bool

    @property
    def pointwise(self) -> bool:
        return self.kernel == (1, 1)

    @property
    def depthwise(self) -> bool:
        return not self.pointwise and self.groups == self.in_channels > 1


def source(node: fx.Node) -> fx.Node:
    """The node that gives this one's first tensor argument, whether it is named or inside a list."""
    arguments = (*node.args, node.kwargs.get("input"), *node.all_input_nodes)
    return next(argument for argument in arguments if isinstance(argument, fx.Node))


def conv_spec(graph: ModelGraph, node: fx.Node) -> ConvSpec:
    """Read a node of kind ``conv``; its shapes are (N, C, H, W)."""
    name = node.meta.get("module")
    if name is not None:
        conv = graph.modules[name]
        assert isinstance(conv, nn.Conv2d)
        return ConvSpec(
            conv.in_channels,
            conv.out_channels,
            _pair(conv.kernel_size),
            _pair(conv.stride),
            conv.groups,
            conv.padding not in (0, (0, 0), "valid"),
        )
    arguments = dict(
        zip(("input", "weight", "bias", "stride", "padding", "dilation", "groups"), node.args, strict=False)
    )
    arguments.update(node.kwargs)
    weight, groups = arguments["weight"], arguments.get("groups", 1)
    groups = groups if isinstance(groups, int) else 1
    in_channels, out_channels = source(node).meta["shape"][1], node.meta["shape"][1]
    kernel = weight.meta["shape"][2:] if isinstance(weight, fx.Node) else (0, 0)
    padded = arguments.get("padding", 0) not in (0, (0, 0), [0, 0], "valid")
    return ConvSpec(in_channels, out_channels, _pair(kernel), _pair(arguments.get("stride", 1)), groups, padded)


def _pair(value: object) -> tuple[int, int]:
    if isinstance(value, tuple | list):
        return int(value[0]), int(value[-1])
    return int(value), int(value)  # type: ignore[call-overload]


def spatial_size(node: fx.Node) -> int:
    """H · W of a 4-D map, 0 of anything else."""
    shape = node.meta.get("shape")
    return shape[2] * shape[3] if shape is not None and len(shape) == 4 else 0


def is_pooled(node: fx.Node) -> bool:
    """Whether a node is a 1×1 map that comes from nothing but a global pooling.

    Strides alone leave a 1×1 map of a small image, too, and one that a pooled descriptor gates is still a map.
    """
    if spatial_size(node) > 1:
        return False
    pooled: set[fx.Node] = set()
    for current in node.graph.nodes:
        small = [arg for arg in current.all_input_nodes if arg.op != "get_attr"]
        if current.meta.get("kind") == "global_pool" or _takes_all(current) or (small and pooled.issuperset(small)):
            pooled.add(current)
        if current is node:
            break
    return node in pooled


def _takes_all(node: fx.Node) -> bool:
    """Whether a plain pooling makes one value of a map that no usual stride would."""
    whole = node.meta.get("kind") == "pool" and spatial_size(node) == 1
    return whole and any(spatial_size(arg) > 9 for arg in node.all_input_nodes)


def sole_user(node: fx.Node) -> fx.Node | None:
    """The only user of a node, or None."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def role_of(node: fx.Node) -> str | None:
    """A node's kind; a product with a number or a parameter (LayerScale as ``x * self.gamma``) is a ``scale``."""
    kind: str | None = node.meta.get("kind")
    if kind != "mul" or "mul" not in getattr(node.target, "__name__", ""):
        return kind
    operands = [arg for arg in node.args if isinstance(arg, fx.Node)]
    return "scale" if sum(not _is_parameter(arg) for arg in operands) == 1 else kind


def _is_parameter(node: fx.Node) -> bool:
    """Whether a tensor is a parameter or buffer, reshaped at most."""
    while node.meta.get("kind") == "reshape" and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node.meta.get("kind") == "attribute"


@dataclass(frozen=True)
class Followers:
    """What comes after a convolution: [norm] [act] (with pads and identities between), then ``consumers``."""

    norm: fx.Node | None
    act: fx.Node | None
    consumers: tuple[fx.Node, ...]


def followers(graph: ModelGraph, conv: fx.Node) -> Followers:
    """Walk from a convolution past one norm and one activation, in either order, to the nodes that read the result."""
    norm = act = None
    node = conv
    while (after := sole_user(node)) is not None:
        kind = role_of(after)
        if kind == "norm" and norm is None:
            name = after.meta.get("module")
            if name is not None and norm_has_activation(graph.modules[name]):
                if act is not None:
                    break
                act = after
            norm = after
        elif kind == "act" and act is None:
            act = after
        elif kind not in THROUGH:
            break
        node = after
    return Followers(norm, act, tuple(user for user in node.users if user.op != "output"))


def readers(nodes: Iterable[fx.Node], through: frozenset[str] = THROUGH) -> tuple[fx.Node, ...]:
    """What reads a tensor in the end: its consumers, nodes of the given kinds replaced by what reads them."""
    reached: dict[fx.Node, None] = {}
    seen: set[fx.Node] = set()
    front = list(nodes)
    while front:
        node = front.pop(0)
        if node in seen:
            continue
        seen.add(node)
        if role_of(node) in through and node.users:
            front += node.users
        else:
            reached[node] = None
    return tuple(reached)


def back_to(node: fx.Node, stop: Callable[[fx.Node], bool], through: frozenset[str]) -> fx.Node | None:
    """The nearest ancestor that ``stop`` accepts, reached only through nodes of the given kinds."""
    seen: set[fx.Node] = set()
    front = [node]
    while front:
        current = front.pop()
        if current in seen:
            continue
        seen.add(current)
        if stop(current):
            return current
        if current.meta.get("kind") in through:
            front += [arg for arg in current.all_input_nodes if spatial_size(arg) > 0]
    return None


def residual_sum(node: fx.Node) -> fx.Node | None:
    """The first sum of two maps of one width, only one of which depends on ``node``: where its block ends."""
    behind = {node}
    later = node.next
    while later.op != "output":
        sources = later.all_input_nodes
        dependent = [source in behind for source in sources]
        if any(dependent):
            behind.add(later)
            if later.meta.get("kind") == "add" and dependent.count(False) == 1 == dependent.count(True):
                shapes: list[tuple[int, ...]] = [source.meta.get("shape") or () for source in sources]
                one, two = shapes
                if len(one) == len(two) == 4 and one[1] == two[1]:
                    return later
        later = later.next
    return None


def activation_name(graph: ModelGraph, node: fx.Node) -> str:
    """Lower-case name of an activation node: ``relu``, ``silu``, …; of a fused norm, its activation's."""
    name = node.meta.get("module")
    if name is None:
        return getattr(node.target, "__name__", str(node.target)).strip("_").lower()
    module = graph.modules[name]
    act = getattr(module, "act", module)
    return type(act).__name__.lower()


def non_negative(graph: ModelGraph, node: fx.Node, depth: int = 200) -> bool:
    """Whether a tensor is provably >= 0 everywhere."""
    kind = node.meta.get("kind")
    if depth == 0:
        return False
    if kind == "act" or (
        kind == "norm" and norm_has_activation(graph.modules.get(node.meta.get("module", ""), nn.Identity()))
    ):
        return activation_name(graph, node) in _NON_NEGATIVE_ACTS
    if kind == "surgery":
        return graph.modules[node.meta["module"]].keeps_sign is True and non_negative(graph, source(node), depth - 1)
    if kind == "mul" or kind in _KEEPS_SIGN:
        name = getattr(node.target, "__name__", "")
        tensors = node.all_input_nodes
        if (
            "sub" in name
            or "truediv" in name
            or any(isinstance(a, float | int) and a < 0 for a in (*node.args, *node.kwargs.values()))
        ):
            return False
        return bool(tensors) and all(non_negative(graph, arg, depth - 1) for arg in tensors)
    return False


def convs(graph: ModelGraph) -> Iterator[fx.Node]:
    """Every 2-D convolution call on a 4-D map."""
    for node in graph:
        if node.meta.get("kind") == "conv" and node.all_input_nodes:
            yield node
