"""Which shapes fit each other at a PiX site. Compiled kernels read as far as shapes say, so they are checked first."""

from collections.abc import Sequence

import torch
from torch import Tensor


def check_site(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int]) -> None:
    """Raise ValueError unless x is (N, C, H, W), weight (C_out <= C, C) or with (1, 1) behind, bias (C_out,)."""
    if torch.jit.is_tracing():  # sizes are tensors then, and the site is plain operators, which check them
        return
    fits = x.dim() == 4 and weight.dim() in (2, 4) and weight.shape[1] == x.shape[1] and weight.shape[0] > 0
    fits = fits and weight.shape[0] <= weight.shape[1] and tuple(weight.shape[2:]) in ((), (1, 1))
    if not fits or (bias is not None and bias.shape != weight.shape[:1]):
        raise ValueError(
            "a PiX site reads x (N, C, H, W) with a weight (C_out <= C, C, 1, 1) and a bias (C_out,); "
            f"the shapes are {_shapes(x, weight, bias)}"
        )
    check_stride(stride)


def check_fusion(x: Tensor, p: Tensor, stride: Sequence[int]) -> None:
    """Raise ValueError unless x is (N, C, H, W) and p (N, C_out <= C)."""
    if torch.jit.is_tracing():
        return
    fits = x.dim() == 4 and p.dim() == 2 and p.shape[0] == x.shape[0]
    if not fits or not 0 < p.shape[1] <= x.shape[1]:
        raise ValueError(f"a PiX fusion takes x (N, C, H, W) and p (N, C_out <= C); the shapes are {_shapes(x, p)}")
    check_stride(stride)


def check_gradient(grad: Tensor, y: Tensor, p: Tensor, index: Tensor, weight: Tensor, size: Sequence[int]) -> None:
    """Raise ValueError unless all that a backward pass reads is of one site on a map of (height, width) ``size``."""
    outputs = grad.shape == y.shape == index.shape and y.dim() == 4 and p.shape == y.shape[:2]
    if not outputs or weight.shape[0] != p.shape[1] or len(size) != 2:
        raise ValueError(
            "a PiX gradient reads grad, y and index (N, C_out, h, w), p (N, C_out) and a weight (C_out, C, 1, 1); "
            f"the shapes are {_shapes(grad, y, index, p, weight)}, of a map of {list(size)}"
        )


def check_stride(stride: Sequence[int]) -> None:
    """Raise ValueError unless a stride is two numbers of at least 1."""
    if len(stride) != 2 or not all(step >= 1 for step in stride):
        raise ValueError(f"stride={tuple(stride)}: two whole numbers >= 1 are needed")


def _shapes(*tensors: Tensor | None) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors if tensor is not None)
