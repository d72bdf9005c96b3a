"""Symbolic tracing of one block, for the rare edit that must rewrite a forward."""

from timm.layers import get_notrace_functions, get_notrace_modules
from torch import fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from surgery.errors import SurgeryError
from surgery.graph.scripted import script_functions
from surgery.graph.skeleton import meta_copy
from surgery.layers import SurgeryLayer


def trace_block(block: nn.Module) -> fx.Graph:
    """An fx graph of the block that holds in train and in eval mode alike.

    Raises:
        SurgeryError: the block cannot be traced, or its two modes differ (fx bakes ``self.training`` in).
    """
    functions = [*get_notrace_functions(), *script_functions(block)]
    graphs = []
    for training in (True, False):
        probe = meta_copy(block).train(training)
        leaves = [*get_notrace_modules(), SurgeryLayer]
        try:
            graphs.append(NodePathTracer(leaf_modules=leaves, autowrap_functions=functions).trace(probe))
        except Exception as error:  # a traced forward may raise anything
            raise SurgeryError(f"{type(block).__name__} cannot be traced: {error}") from error
    if str(graphs[0]) != str(graphs[1]):
        raise SurgeryError(f"{type(block).__name__} computes differently in train and eval mode; fx would bake one in")
    return graphs[1]
