"""How far a feature map is from another."""

from typing import Any

import torch
from torch import Tensor


def share_of_variance(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of an output, as a share of its target's variance; a scalar, float32 or float64.

    Only ``output`` gets a gradient. Maps are big and little is computed of them, so they are read as few times as can
    be, and the output in its own dtype.
    """
    share: Tensor = _Share.apply(output, target)
    return share


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, target: Tensor) -> Tensor:
        difference = output - target
        dtype = torch.promote_types(difference.dtype, torch.float32)
        weight = 1 / (difference.numel() * target.to(dtype).var().clamp(min=1e-12))
        ctx.save_for_backward(difference, weight)
        ctx.dtype = output.dtype
        return torch.linalg.vector_norm(difference, dtype=dtype).square() * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        difference, weight = ctx.saved_tensors
        return (difference * (2 * grad * weight).to(difference.dtype)).to(ctx.dtype), None
