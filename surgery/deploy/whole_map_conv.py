"""Classifiers written as convolutions, run as the matrix products that they are."""

import torch.nn.functional as F
from torch import Tensor, fx, nn

from surgery.graph import ModelGraph
from surgery.graph.dataflow import convs, source


class WholeMapConv2d(nn.Conv2d):
    """A convolution whose kernel covers the map: one product with its weights, which oneDNN would bring to another
    layout in every call (VGG-16's takes half of a forward on one image so). Of maps of other sizes it is what it was.
    """

    @classmethod
    def wrap(cls, conv: nn.Conv2d) -> "WholeMapConv2d":
        """With the parameters of ``conv``, the same objects."""
        layer = cls.__new__(cls)
        layer.__dict__ = {**conv.__dict__, "_parameters": dict(conv._parameters)}
        return layer

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[2:]) != self.kernel_size:
            return super().forward(x)
        if self.weight.is_contiguous():
            return F.linear(x.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]
        rows, weight = (tensor.permute(0, 2, 3, 1).flatten(1) for tensor in (x, self.weight))
        return F.linear(rows, weight, self.bias)[:, :, None, None]


def covering_convs(graph: ModelGraph) -> list[str]:
    """Names of the plain convolutions whose kernel covers the map that they read."""
    return [str(node.meta["module"]) for node in convs(graph) if _covers(graph, node)]


def _covers(graph: ModelGraph, node: fx.Node) -> bool:
    conv = graph.modules.get(node.meta.get("module") or "")
    if type(conv) is not nn.Conv2d or conv._forward_hooks or conv._forward_pre_hooks:
        return False
    plain = conv.groups == 1 and conv.padding in ((0, 0), "valid") and conv.dilation == (1, 1)
    return plain and conv.kernel_size != (1, 1) and conv.kernel_size == tuple(source(node).meta["shape"][2:])
