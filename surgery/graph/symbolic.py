"""Symbolic tracing of one block, for the rare edit that must rewrite a forward."""

from collections.abc import Callable, Sequence
from typing import Any

from timm.layers import DropBlock2d, DropPath, get_notrace_functions, get_notrace_modules
from torch import fx, nn
from torchvision.models.feature_extraction import NodePathTracer
from torchvision.ops import StochasticDepth

from surgery.core.errors import SurgeryError
from surgery.core.surgery_layer import SurgeryLayer
from surgery.graph.scripted import script_functions
from surgery.graph.skeleton import meta_copy
from surgery.graph.watched_numbers import UnsteadyError, watch_numbers
from surgery.graph.watching import Surroundings, steady

REPEATS = 3  # traces of each mode: what goes on from call to call shows
_LEAVES = (DropPath, DropBlock2d, StochasticDepth)  # these follow the mode by themselves


class _Tracer(NodePathTracer):
    proxy_buffer_attributes = True  # what is computed from a buffer is no constant

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m.opaque if isinstance(m, SurgeryLayer) else super().is_leaf_module(m, module_qualified_name)


def trace_block(block: nn.Module) -> fx.Graph:
    """An fx graph of the block that holds in train and in eval mode, and in every call alike.

    Raises:
        SurgeryError: the block cannot be traced, its two modes differ (fx bakes ``self.training`` in), or its path
            depends on something else than shapes and structure: chance, a clock, a counter, a schedule.
    """
    kind = type(block).__name__
    texts: list[set[str]] = []
    surroundings = Surroundings()
    functions = (*get_notrace_functions(), *script_functions(block))
    try:
        for training in (True, False):
            probe = meta_copy(block).train(training)
            graphs = [_trace(probe, surroundings, functions) for _ in range(REPEATS)]
            texts.append({str(graph) for graph in graphs})
            watched = meta_copy(block).train(training)
            watch_numbers(watched)
            _trace(watched, surroundings, functions)
    except UnsteadyError as error:
        raise SurgeryError(f"{kind} takes a path that fx would bake in: {error}") from error
    except Exception as error:  # a traced forward may raise anything
        raise SurgeryError(f"{kind} cannot be traced: {error}") from error
    _check_constants(block, graphs[0])
    if max(len(mode) for mode in texts) > 1:
        raise SurgeryError(f"{kind} computes differently from call to call; fx would bake one path in")
    if texts[0] != texts[1]:
        raise SurgeryError(f"{kind} computes differently in train and eval mode; fx would bake one in")
    return graphs[0]


def _trace(probe: nn.Module, surroundings: Surroundings, functions: Sequence[Callable[..., Any]]) -> fx.Graph:
    tracer = _Tracer(leaf_modules=[*get_notrace_modules(), *_LEAVES], autowrap_functions=tuple(functions))
    with steady(probe, surroundings):
        return tracer.trace(probe)


def _check_constants(block: nn.Module, graph: fx.Graph) -> None:
    """Raise SurgeryError for a graph with tensors that the block does not hold: they were computed on the way."""
    foreign = [node for node in graph.nodes if node.op == "get_attr" and not _holds(block, str(node.target))]
    if foreign:
        raise SurgeryError(f"{type(block).__name__} makes tensors of its own in its forward; fx would bake them in")


def _holds(block: nn.Module, target: str) -> bool:
    prefix, _, name = target.rpartition(".")
    return hasattr(block.get_submodule(prefix), name)
