"""What a model costs, counted from its recorded graph: no forward of real data, any input size."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import fx, nn

from surgery.core.checked_model import check_model, unwrapped
from surgery.core.surgery_layer import OpCost, SurgeryLayer
from surgery.core.table import html_table, si, table
from surgery.graph import ModelGraph, record
from surgery.graph.dataflow import activation_name, conv_spec, source
from surgery.graph.input_size import InputSize
from surgery.graph.kinds import norm_has_activation
from surgery.planning.sites import squeeze_sites
from surgery.transforms.history import changed_modules

_CHEAP_ACTS = {"relu", "relu6", "leaky_relu", "leakyrelu", "prelu", "hardtanh", "clamp", "threshold"}


HEADER = ("site", "kind", "MACs", "FLOPs", "params", "memory")
MEMORY = "memory: bytes that operations write; norms and activations work in place, weights are not counted"


@dataclass(frozen=True)
class SiteCost:
    """Cost of one site for one image: a squeeze convolution with its norm and activation, or what replaced it."""

    name: str
    kind: str
    macs: int
    flops: int
    params: int
    memory: int


@dataclass(frozen=True)
class Cost:
    """Cost of a model for one image. Prints as a table.

    Attributes:
        macs: multiply-accumulates of convolutions and linears (the convention of fvcore and torch's flop counter,
            which counts 2 each).
        flops: everything: besides these, norms, activations, pooling, sums and products of maps.
        params: number of parameters.
        memory: bytes that the operations write in the model's dtype; norms and activations work in place. It is the
            traffic of one forward, neither the peak nor the weights.
        sites: the same per site.
    """

    macs: int
    flops: int
    params: int
    memory: int
    sites: tuple[SiteCost, ...]
    input_size: tuple[int, ...]

    def _title(self) -> str:
        return f"input {'×'.join(map(str, self.input_size))}, one image"

    def _rows(self) -> list[tuple[str, ...]]:
        total = SiteCost("total", "", self.macs, self.flops, self.params, self.memory)
        return [
            (s.name, s.kind, si(s.macs), si(s.flops), si(s.params), si(s.memory, "B")) for s in (*self.sites, total)
        ]

    def __str__(self) -> str:
        return f"{self._title()}\n{MEMORY}\n{table(HEADER, self._rows(), right=(2, 3, 4, 5))}"

    def _repr_html_(self) -> str:
        """The same for notebooks."""
        return html_table(HEADER, self._rows(), right=(2, 3, 4, 5), caption=f"{self._title()}; {MEMORY}")


def cost(model: nn.Module, input_size: InputSize | None = None) -> Cost:
    """Count a model's operations.

    Args:
        model: any nn.Module that maps an image batch; also on the meta device.
        input_size: (C, H, W), (H, W) or one side; default: the model's configured size, else 224 pixels.

    Raises:
        TypeError, ValueError: the model or the size cannot be.
        TraceError: the forward fails on that size.
    """
    model = unwrapped(model) if isinstance(model, nn.Module) else model
    check_model(model)
    graph = record(model, input_size)
    costs = {node: node_cost(graph, node) for node in graph}
    total = graph_cost(graph)
    width = next((p.element_size() for p in model.parameters()), 4)
    sites = tuple(_site_costs(model, graph, costs, width))
    params = sum(p.numel() for p in model.parameters())
    return Cost(total.macs, total.flops, params, total.memory * width, sites, graph.input_shape)


def graph_cost(graph: ModelGraph) -> OpCost:
    """Cost of a whole recorded forward for one image."""
    return sum((node_cost(graph, node) for node in graph), OpCost())


def _site_costs(model: nn.Module, graph: ModelGraph, costs: dict[fx.Node, OpCost], width: int) -> list[SiteCost]:
    rows: dict[str, SiteCost] = {}
    edited = set(changed_modules(model))
    for site in squeeze_sites(graph)[0]:
        behind = [node for node in (site.after.norm, site.after.act) if node is not None]
        parts = dict.fromkeys([site.node, *behind])
        spent = sum((costs[node] for node in parts), OpCost())
        params = sum(_own_params(graph, node) for node in parts)
        rows[site.name] = SiteCost(site.name, site.role, spent.macs, spent.flops, params, spent.memory * width)
    for node, spent in costs.items():
        name = str(node.meta.get("module"))
        if node.meta.get("kind") == "surgery" and (name in edited or name not in rows):
            kind = type(graph.modules[name]).__name__
            rows[name] = SiteCost(name, kind, spent.macs, spent.flops, _own_params(graph, node), spent.memory * width)
    order = {name: i for i, name in enumerate(graph.modules)}
    return sorted(rows.values(), key=lambda row: order[row.name])


def _own_params(graph: ModelGraph, node: fx.Node) -> int:
    name = node.meta.get("module")
    return sum(p.numel() for p in graph.modules[name].parameters()) if name else 0


def node_cost(graph: ModelGraph, node: fx.Node) -> OpCost:
    """Cost of one recorded operation for one image."""
    count = _COUNTERS.get(node.meta.get("kind", ""))
    if count is None or not node.meta.get("shape"):
        return OpCost()
    return count(graph, node, math.prod(node.meta["shape"]))


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


def _matmul(graph: ModelGraph, node: fx.Node, out: int) -> OpCost:
    shape = node.all_input_nodes[0].meta["shape"] if node.all_input_nodes else None
    return OpCost(0, out * shape[-1] if shape else 0, out)


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


def _copy(graph: ModelGraph, node: fx.Node, out: int) -> OpCost:
    return OpCost(0, 0, out)


def _surgery_layer(graph: ModelGraph, node: fx.Node, out: int) -> OpCost:
    layer = graph.modules[node.meta["module"]]
    assert isinstance(layer, SurgeryLayer)
    return layer.cost(source(node).meta["shape"], node.meta["shape"])


_COUNTERS: dict[str, Callable[[ModelGraph, fx.Node, int], OpCost]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": _linear,
    "matmul": _matmul,
    "norm": _norm,
    "act": _activation,
    "pool": _pooling,
    "global_pool": _pooling,
    "add": _pointwise,
    "mul": _pointwise,
    "scale": _pointwise,
    "cat": _copy,
    "pad": _copy,
    "upsample": _copy,
    "surgery": _surgery_layer,
}
