"""What recorded operations cost, one by one, from their shapes; and which of them have no count.

Multiply-accumulates (``macs``) are those of convolutions and linears, whose one operand is a weight. Products of two
computed matrices (attention: ``matmul``, ``scaled_dot_product_attention``) are in ``flops`` alone, as are norms,
activations, pooling, sums and gates. Of an attention in one call both products are counted and the softmax is not.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from surgery.core.surgery_layer import OpCost, SurgeryLayer
from surgery.graph.call_recorder import UNSEEN
from surgery.graph.dataflow import activation_name, conv_spec, source
from surgery.graph.kinds import norm_has_activation
from surgery.graph.recorder import ModelGraph
from surgery.graph.trees import shapes_in

_CHEAP_ACTS = {"relu", "relu6", "leaky_relu", "leakyrelu", "prelu", "hardtanh", "clamp", "threshold"}
# Kinds and functions that compute nothing: inputs, and the same numbers under another shape or name.
FREE_KINDS = frozenset({"input", "attribute", "item", "identity", "reshape"})
FREE_FUNCTIONS = frozenset(
    {
        *("get", "view_as", "reshape_as", "ravel", "t", "adjoint", "movedim", "moveaxis", "swapaxes", "swapdims"),
        *("broadcast_to", "broadcast_tensors", "as_strided", "diagonal", "real", "imag", "view_as_real"),
        *("view_as_complex", "atleast_1d", "atleast_2d", "atleast_3d", "tensor_split", "hsplit", "vsplit", "dsplit"),
        *("positive", "bfloat16", "double", "cpu", "cuda", "requires_grad", "unsafe_chunk", "unsafe_split"),
    }
)


@dataclass(frozen=True)
class Uncounted:
    """Operations of one name whose cost is not known, and so is in no sum.

    Attributes:
        name: the function's name, or the module's class.
        calls: how often a forward calls it.
        elements: numbers that these calls give together, for one image.
    """

    name: str
    calls: int
    elements: int

    def __str__(self) -> str:
        return f"{self.name} ×{self.calls}"


def graph_cost(graph: ModelGraph) -> OpCost:
    """Cost of a whole recorded forward for one image, without what :func:`uncounted` lists."""
    return sum((node_cost(graph, node) for node in graph), OpCost())


def node_cost(graph: ModelGraph, node: fx.Node) -> OpCost:
    """Cost of one recorded operation for one image; nothing for what :func:`uncounted` lists."""
    counter = _counter(node)
    return OpCost() if counter is None else counter(graph, node, _elements(node))


def uncounted(graph: ModelGraph) -> tuple[Uncounted, ...]:
    """Operations of a recorded forward that have no counter, by name, in the order in which they first run."""
    totals: dict[str, Uncounted] = {}
    for node in graph:
        if node.op != "output" and _counter(node) is None:
            name = _operation(graph, node)
            total = totals.get(name, Uncounted(name, 0, 0))
            totals[name] = replace(total, calls=total.calls + 1, elements=total.elements + _elements(node))
    return tuple(totals.values())


Counter = Callable[[ModelGraph, fx.Node, int], OpCost]


def _counter(node: fx.Node) -> Counter | None:
    """What counts a node, None where nothing does."""
    kind = node.meta.get("kind", "")
    if kind in FREE_KINDS or node.op == "output" or (kind == "other" and _function(node) in FREE_FUNCTIONS):
        return _free
    if kind == "matmul":
        return _PRODUCTS.get(_function(node)) if _has_sizes(node) else None
    return _COUNTERS.get(kind)


def _elements(node: fx.Node) -> int:
    """Numbers that a node gives."""
    return sum(math.prod(shape) for shape in shapes_in(node.meta["shapes"]))


def _function(node: fx.Node) -> str:
    """The plain name of a called function, "" of a module's call."""
    if node.op != "call_function":
        return ""
    name = getattr(node.target, "__name__", None) or getattr(node.target, "name", "") or str(node.target)
    return str(name).partition(".")[0].strip("_")


def _operation(graph: ModelGraph, node: fx.Node) -> str:
    """What a user would call the operation."""
    if node.meta["kind"] == UNSEEN:
        return "unrecorded call"
    name = node.meta.get("module")
    return type(graph.modules[name]).__name__ if name else _function(node)


def _conv(graph: ModelGraph, node: fx.Node, out: int) -> OpCost:
    spec = conv_spec(graph, node)
    macs = out * math.prod(spec.kernel) * spec.in_channels // spec.groups
    return OpCost(macs, macs, out)


def _conv_transpose(graph: ModelGraph, node: fx.Node, out: int) -> OpCost:
    """Each input number is multiplied with every weight that its channel has."""
    name = node.meta.get("module")
    module = graph.modules[name] if name else None
    arguments = [*node.args[1:2], node.kwargs.get("weight")]
    weight = next((a.meta["shape"] for a in arguments if isinstance(a, fx.Node)), (0,))
    if isinstance(module, nn.ConvTranspose2d):
        weight = module.weight.shape
    macs = math.prod(source(node).meta["shape"]) * math.prod(weight[1:])
    return OpCost(macs, macs, out)


def _linear(graph: ModelGraph, node: fx.Node, out: int) -> OpCost:
    macs = out * source(node).meta["shape"][-1]
    return OpCost(macs, macs, out)


def _operands(node: fx.Node) -> list[fx.Node]:
    """Tensors that a product multiplies, in order, without what is added to it."""
    nodes = list(node.all_input_nodes)
    if len(nodes) == 1:  # x @ x.T is one node where the transposition is no call of its own
        nodes *= 2
    return nodes[1:3] if _function(node) in ("addmm", "baddbmm", "addbmm", "addmv") else nodes


def _has_sizes(node: fx.Node) -> bool:
    """Whether the operands of a product are tensors with dimensions, and an einsum's equation names them all."""
    operands = _operands(node)
    if not operands or any(not operand.meta.get("shape") for operand in operands):
        return False
    return _function(node) not in ("einsum", "scaled_dot_product_attention") or _product_size(node) > 0


def _matmul(graph: ModelGraph, node: fx.Node, out: int) -> OpCost:
    return OpCost(0, out * _operands(node)[0].meta["shape"][-1], out)


def _size_counted(graph: ModelGraph, node: fx.Node, out: int) -> OpCost:
    return OpCost(0, _product_size(node), out)


def _product_size(node: fx.Node) -> int:
    """Multiply-accumulates of an einsum of two tensors or of an attention's two products; 0 where not known."""
    return _einsum_size(node) if _function(node) == "einsum" else _attention_size(node)


def _einsum_size(node: fx.Node) -> int:
    """One for each combination of values that the indices of a plain equation take."""
    arguments: list[Any] = [*node.args]
    equation = arguments[0] if arguments else ""
    rest = [a if isinstance(a, list | tuple) else [a] for a in arguments[1:]]
    operands = [operand for listed in rest for operand in listed]
    terms = equation.replace(" ", "").partition("->")[0].split(",") if isinstance(equation, str) else []
    shapes = [operand.meta["shape"] for operand in operands if isinstance(operand, fx.Node)]
    if len(terms) != 2 or [len(shape) for shape in shapes] != [len(term) for term in terms] or "." in "".join(terms):
        return 0
    sizes = {index: size for pair in zip(terms, shapes, strict=True) for index, size in zip(*pair, strict=True)}
    return math.prod(sizes.values())


def _attention_size(node: fx.Node) -> int:
    """Queries (…, L, E) with keys (…, S, E), and the weights (…, L, S) with values (…, S, V)."""
    names = ("query", "key", "value")
    arguments = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    shapes: list[tuple[int, ...]] = [
        a.meta["shape"] or () for name in names if isinstance(a := arguments.get(name), fx.Node)
    ]
    if len(shapes) != 3 or min(map(len, shapes)) < 2:
        return 0
    query, key, value = shapes
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _norm(graph: ModelGraph, node: fx.Node, out: int) -> OpCost:
    name = node.meta.get("module")
    fused = name is not None and norm_has_activation(graph.modules[name])
    return OpCost(0, 4 * out) + (_activation(graph, node, out) if fused else OpCost())


def _activation(graph: ModelGraph, node: fx.Node, out: int) -> OpCost:
    return OpCost(0, out if activation_name(graph, node) in _CHEAP_ACTS else 4 * out)


def _pooling(graph: ModelGraph, node: fx.Node, out: int) -> OpCost:
    return OpCost(0, math.prod(source(node).meta["shape"]), out) if node.all_input_nodes else OpCost()


def _pointwise(graph: ModelGraph, node: fx.Node, out: int) -> OpCost:
    return OpCost(0, out, out)


def _free(graph: ModelGraph, node: fx.Node, out: int) -> OpCost:
    return OpCost()


def _split(graph: ModelGraph, node: fx.Node, out: int) -> OpCost:
    """A view; but what tensors index is copied."""
    return OpCost(0, 0, out) if len(node.all_input_nodes) > 1 else OpCost()


def _copy(graph: ModelGraph, node: fx.Node, out: int) -> OpCost:
    return OpCost(0, 0, out)


def _surgery_layer(graph: ModelGraph, node: fx.Node, out: int) -> OpCost:
    layer = graph.modules[node.meta["module"]]
    assert isinstance(layer, SurgeryLayer)
    return layer.cost(node.meta["input_shapes"], node.meta["shapes"])


_PRODUCTS: dict[str, Counter] = {
    **dict.fromkeys(("matmul", "bmm", "mm", "addmm"), _matmul),
    **dict.fromkeys(("einsum", "scaled_dot_product_attention"), _size_counted),
}
_COUNTERS: dict[str, Counter] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": _linear,
    "norm": _norm,
    "act": _activation,
    "pool": _pooling,
    "global_pool": _pooling,
    "add": _pointwise,
    "mul": _pointwise,
    "scale": _pointwise,
    "cat": _copy,
    "split": _split,
    "pad": _copy,
    "upsample": _copy,
    "surgery": _surgery_layer,
}
