"""What a model costs, counted from its recorded graph: no forward of real data, any input size."""

from dataclasses import dataclass

from torch import fx, nn

from surgery.core.checked_model import check_model, unwrapped
from surgery.core.surgery_layer import OpCost
from surgery.core.table import html_table, si, table
from surgery.graph import ModelGraph, record
from surgery.graph.input_size import InputSize
from surgery.graph.operation_cost import Uncounted, graph_cost, node_cost, uncounted
from surgery.planning.sites import squeeze_sites
from surgery.transforms.history import changed_modules

__all__ = ["Cost", "SiteCost", "Uncounted", "cost", "graph_cost", "node_cost"]

HEADER = ("site", "kind", "MACs", "FLOPs", "params", "memory")
MACS = "MACs: of convolutions and linears; products of attention are FLOPs, a multiply-accumulate counts once"
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
            which counts 2 each). Products of two computed matrices, as in attention, are in ``flops`` alone.
        flops: everything: besides these, norms, activations, pooling, sums and products of maps.
        params: number of parameters.
        memory: bytes that the operations write in the model's dtype; norms and activations work in place. It is the
            traffic of one forward, neither the peak nor the weights.
        sites: the same per site.
        uncounted: operations that no sum above holds, since nothing is known of their cost; by name, with their calls
            and the numbers that they give.
    """

    macs: int
    flops: int
    params: int
    memory: int
    sites: tuple[SiteCost, ...]
    input_size: tuple[int, ...]
    uncounted: tuple[Uncounted, ...] = ()

    def _title(self) -> str:
        return f"input {'×'.join(map(str, self.input_size))}, one image"

    def _lines(self) -> list[str]:
        return [f"not counted: {', '.join(map(str, self.uncounted))}"] if self.uncounted else []

    def _rows(self) -> list[tuple[str, ...]]:
        total = SiteCost("total", "", self.macs, self.flops, self.params, self.memory)
        return [
            (s.name, s.kind, si(s.macs), si(s.flops), si(s.params), si(s.memory, "B")) for s in (*self.sites, total)
        ]

    def __str__(self) -> str:
        return "\n".join([self._title(), MEMORY, MACS, *self._lines(), table(HEADER, self._rows(), right=(2, 3, 4, 5))])

    def _repr_html_(self) -> str:
        """The same for notebooks."""
        caption = f"{self._title()}; {MEMORY}; {MACS}"
        return html_table(HEADER, self._rows(), right=(2, 3, 4, 5), caption=caption, lines=self._lines())


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
    total = sum(costs.values(), OpCost())
    width = next((p.element_size() for p in model.parameters()), 4)
    sites = tuple(_site_costs(model, graph, costs, width))
    params = sum(p.numel() for p in model.parameters())
    return Cost(total.macs, total.flops, params, total.memory * width, sites, graph.input_shape, uncounted(graph))


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
