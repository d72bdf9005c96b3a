"""The weights that layers compute with."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from surgery.graph.kinds import STANDARDISED


def effective_weight(model: nn.Module, name: str) -> Tensor:
    """The weight that a layer computes with, which some standardise at every call; detached."""
    module = model.get_submodule(name)
    weight = module.weight
    assert isinstance(weight, Tensor)
    if not isinstance(module, STANDARDISED):
        return weight.detach()
    with torch.no_grad(), _ConvolutionWeights() as seen:
        side = max(module.kernel_size) * max(module.dilation)
        module(torch.zeros(1, module.in_channels, side, side, dtype=weight.dtype, device=weight.device))
    return seen.weight


class _ConvolutionWeights(TorchFunctionMode):
    """Notes the weight of the convolution that is called."""

    weight: Tensor

    def __torch_function__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        if func is F.conv2d:
            self.weight = args[1]
        return func(*args, **(kwargs or {}))  # type: ignore[operator]
